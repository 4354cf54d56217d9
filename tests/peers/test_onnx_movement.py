"""Operators that move data, with drawn shapes and attributes, against onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.helper import (
    make_empty_tensor_value_info,
    make_graph,
    make_model,
    make_node,
    make_opsetid,
)

import halfbyte.onnx_backend as backend

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytestmark = pytest.mark.peer
RUNS = 40
FAR = 1 << 62
Drawn = tuple[list[Any], dict[str, Any]]


class Draw:
    """Draws shapes and values."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def number(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high))

    def pick(self, choices: list[Any]) -> Any:
        return choices[self.number(0, len(choices))]

    def shape(self, low: int = 1, high: int = 4) -> list[int]:
        return [self.number(1, 5) for _ in range(self.number(low, high + 1))]

    def array(self, shape: Any, dtype: str = "float32") -> np.ndarray:
        return (self.random.standard_normal(shape) * 4).astype(dtype)

    def below(self, length: int, shape: Any) -> np.ndarray:
        return np.asarray(self.random.integers(-length, length, shape), np.int64)


def ints(values: Any) -> np.ndarray:
    return np.asarray(values, np.int64)


def slices(draw: Draw) -> Drawn:
    shape = draw.shape()
    axes = draw.random.permutation(len(shape))[: draw.number(1, len(shape) + 1)]
    starts = [draw.number(-7, 8) for _ in axes]
    ends = [draw.pick([draw.number(-7, 8), FAR, -FAR]) for _ in axes]
    steps = [draw.pick([1, 2, 3, -1, -2]) for _ in axes]
    return [draw.array(shape), ints(starts), ints(ends), ints(axes), ints(steps)], {}


def pads(draw: Draw) -> Drawn:
    shape, mode = draw.shape(), draw.pick(["constant", "edge", "reflect", "wrap"])
    counts = [draw.number(-1 if mode == "constant" else 0, 3) for _ in range(2 * len(shape))]
    if mode == "reflect":
        counts = [min(n, shape[i % len(shape)] - 1) for i, n in enumerate(counts)]
    more = [np.asarray(3, np.int32)] if mode == "constant" else []
    return [draw.array(shape, "int32"), ints(counts), *more], {"mode": mode}


def gathers(draw: Draw) -> Drawn:
    shape = draw.shape()
    axis = draw.number(-len(shape), len(shape))
    return [draw.array(shape), draw.below(shape[axis], draw.shape(0, 2))], {"axis": axis}


def gathered_elements(draw: Draw) -> Drawn:
    shape = draw.shape()
    axis = draw.number(-len(shape), len(shape))
    return [draw.array(shape), draw.below(shape[axis], shape)], {"axis": axis}


def scattered_elements(draw: Draw) -> Drawn:
    shape = draw.shape()
    axis, reduction = draw.number(-len(shape), len(shape)), draw.pick(["none", "add", "mul", "max"])
    part = [draw.number(1, n + 1) for n in shape]
    if reduction == "none":
        part[axis] = 1
    rules = {"axis": axis, "reduction": reduction}
    return [draw.array(shape), draw.below(shape[axis], part), draw.array(part)], rules


def gathered_nd(draw: Draw) -> Drawn:
    shape = draw.shape()
    batch = draw.number(0, len(shape))
    lead = shape[:batch] + draw.shape(0, 2)
    count = draw.number(1, len(shape) - batch + 1)
    columns = [draw.below(shape[batch + i], lead) for i in range(count)]
    return [draw.array(shape), np.stack(columns, -1)], {"batch_dims": batch}


def scattered_nd(draw: Draw) -> Drawn:
    shape, lead = draw.shape(), draw.shape(1, 2)
    count = draw.number(1, len(shape) + 1)
    indices = np.stack([draw.below(shape[i], lead) for i in range(count)], -1)
    rules = {"reduction": draw.pick(["add", "mul", "max", "min"])}
    return [draw.array(shape), indices, draw.array(lead + shape[count:])], rules


def top(draw: Draw) -> Drawn:
    shape = draw.shape()
    axis = draw.number(-len(shape), len(shape))
    k = ints([draw.number(0, shape[axis] + 1)])
    return [np.round(draw.array(shape)), k], {"axis": axis, "largest": draw.number(0, 2)}


def uniques(draw: Draw) -> Drawn:
    shape = draw.shape()
    axis = draw.pick([{}, {"axis": draw.number(-len(shape), len(shape))}])
    return [np.round(draw.array(shape))], {**axis, "sorted": draw.number(0, 2)}


def one_hots(draw: Draw) -> Drawn:
    shape = draw.shape()
    axis = draw.number(-len(shape) - 1, len(shape) + 1)
    depth, values = ints(draw.number(1, 5)), np.asarray([1, 5], np.float32)
    return [draw.below(6, shape), depth, values], {"axis": axis}


def reversals(draw: Draw) -> Drawn:
    shape, time = draw.shape(2, 4), draw.number(0, 2)
    lengths = ints([draw.number(1, shape[time] + 1) for _ in range(shape[1 - time])])
    return [draw.array(shape), lengths], {"time_axis": time, "batch_axis": 1 - time}


def crops(draw: Draw) -> Drawn:
    shape = draw.shape()
    return [draw.array(shape), ints([draw.number(1, 6) for _ in shape])], {}


def triangles(draw: Draw) -> Drawn:
    return [draw.array(draw.shape(2, 4)), ints(draw.number(-4, 5))], {"upper": draw.number(0, 2)}


def expansions(draw: Draw) -> Drawn:
    shape = draw.shape()
    held = [draw.pick([n, 1]) for n in shape]
    return [draw.array(held), ints(draw.shape(0, 1) + [draw.pick([n, 1]) for n in shape])], {}


CASES: dict[str, tuple[int, int, Callable[[Draw], Drawn]]] = {
    "CenterCropPad": (18, 1, crops),
    "Expand": (13, 1, expansions),
    "Gather": (13, 1, gathers),
    "GatherElements": (13, 1, gathered_elements),
    "GatherND": (13, 1, gathered_nd),
    "OneHot": (11, 1, one_hots),
    "Pad": (19, 1, pads),
    "ReverseSequence": (10, 1, reversals),
    "ScatterElements": (18, 1, scattered_elements),
    "ScatterND": (18, 1, scattered_nd),
    "Slice": (13, 1, slices),
    "TopK": (11, 2, top),
    "Trilu": (14, 1, triangles),
    "Unique": (11, 4, uniques),
}


def model_of(op: str, inputs: list[Any], rules: dict[str, Any], stored: bool) -> onnx.ModelProto:
    """Return one node; with `stored`, all inputs but the first lie in the file."""
    opset, outputs, _ = CASES[op]
    names, outs = [f"i{k}" for k in range(len(inputs))], [f"o{k}" for k in range(outputs)]
    infos = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in zip(names, inputs, strict=True)
    ]
    held = [onnx.numpy_helper.from_array(a, n) for n, a in zip(names, inputs, strict=True)][1:]
    results = [make_empty_tensor_value_info(name) for name in outs]
    node = make_node(op, names, outs, **rules)
    kept = (infos[:1], held) if stored else (infos, [])
    graph = make_graph([node], "drawn", kept[0], results, kept[1])
    opsets = [make_opsetid("", max(opset, 11))]
    return onnx.shape_inference.infer_shapes(make_model(graph, opset_imports=opsets, ir_version=9))


@pytest.mark.parametrize("op", CASES)
def test_drawn_nodes(op: str) -> None:
    draw = Draw(sum(op.encode()))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    for turn in range(RUNS):
        inputs, rules = CASES[op][2](draw)
        model = model_of(op, inputs, rules, stored=bool(turn % 2))
        feeds = {value.name: inputs[int(value.name[1:])] for value in model.graph.input}
        peer = ort.InferenceSession(model.SerializeToString(), options)
        wanted = peer.run(None, feeds)
        found = backend.prepare(model, threads=1).run(feeds)
        for result, expected in zip(found, wanted, strict=True):
            assert result.dtype == expected.dtype
            assert result.shape == expected.shape
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
