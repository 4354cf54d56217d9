"""Operators over stored weights on the CPU: bound to kernels, and as the reference has it."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.legality import check
from halfbyte.ir.ops import op_spec
from halfbyte.ir.ops.inference import infer_types
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.runtime.session import Session
from support.kernel_cases import needs_extension

pytestmark = needs_extension


def normal(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


IMAGE, LINES, STEPS = (2, 4, 9, 11), (2, 4, 30), (5, 2, 3)
X, W, R = STEPS, normal(2, 20, 3, seed=4), normal(2, 20, 5, seed=5) * np.float32(0.5)
W3, R3 = W[:, :15], R[:, :15]
BOTH = {"direction": "bidirectional", "hidden_size": 5}
HALF = np.array([1, 1, 0.6, 2.5], np.float32)
# name: operator, shape of x, stored inputs, attributes, outputs
CASES = {
    "conv": ("Conv", IMAGE, [normal(6, 4, 3, 3), normal(6)], {"auto_pad": "SAME_UPPER"}, 1),
    "patches": (
        *("Conv", (2, 3, 16, 24), [normal(5, 3, 8, 8) / np.float32(14), normal(5)]),
        *({"strides": [8, 8]}, 1),
    ),
    "patches without bias": (
        "Conv",
        (1, 2, 18, 8),
        [normal(7, 2, 9, 8) / np.float32(12)],
        {"strides": [9, 8]},
        1,
    ),
    "conv line": ("Conv", LINES, [normal(6, 2, 5)], {"group": 2, "pads": [1, 3]}, 1),
    "transposed": (
        *("ConvTranspose", IMAGE, [normal(4, 6, 3, 2), normal(6)]),
        *({"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 2]}, 1),
    ),
    "transposed line": ("ConvTranspose", LINES, [normal(4, 3, 4)], {"strides": [2]}, 1),
    "max pool": ("MaxPool", IMAGE, [], {"kernel_shape": [3, 2], "ceil_mode": 1}, 1),
    "average pool": (
        *("AveragePool", IMAGE, []),
        *({"kernel_shape": [3, 3], "pads": [1, 1, 0, 1], "strides": [2, 2], "ceil_mode": 1}, 1),
    ),
    "average with padding": (
        *("AveragePool", LINES, []),
        *({"kernel_shape": [4], "pads": [1, 2], "count_include_pad": 1}, 1),
    ),
    "top k": ("TopK", LINES, [ints(7)], {}, 2),
    "smallest of an axis": ("TopK", IMAGE, [ints(3)], {"axis": 1, "largest": 0}, 2),
    "picked elements": (
        *("GatherElements", (2, 4, 3), [np.arange(-12, 12).reshape(2, 4, 3) % 7 - 3]),
        *({"axis": 1}, 1),
    ),
    "short rows": ("Softmax", (2, 300, 3), [], {"axis": -1}, 1),
    "logarithms": ("LogSoftmax", LINES, [], {"axis": -1}, 1),
    "slopes": ("PRelu", IMAGE, [normal(4, 1, 1)], {}, 1),
    "reflected": ("Pad", LINES, [ints(0, 2, 3, 1, 0, 4)], {"mode": "reflect"}, 1),
    "reflected whole": ("Pad", (2, 3, 5), [ints(1, 0, 4, 0, 2, 4)], {"mode": "reflect"}, 1),
    "edges": ("Pad", (2, 3, 5), [ints(1, 0, 7, 2, 2, 0)], {"mode": "edge"}, 1),
    "wrapped": ("Pad", (2, 3, 5), [ints(1, 0, 7, 2, 2, 0)], {"mode": "wrap"}, 1),
    "repeated edge": ("Pad", LINES, [ints(0, 2, -3, 1, 0, 4)], {"mode": "edge"}, 1),
    "batch norm": (
        *("BatchNormalization", IMAGE, [*normal(3, 4), np.abs(normal(4)) + np.float32(0.1)]),
        *({}, 1),
    ),
    "instance norm": ("InstanceNormalization", IMAGE, [normal(4), normal(4)], {}, 1),
    "lstm": ("LSTM", X, [W, R, normal(2, 40)], BOTH, 3),
    "lstm with states": (
        *("LSTM", X, [W[:1], R[:1], None, None, normal(1, 2, 5), normal(1, 2, 5)]),
        *({"hidden_size": 5, "direction": "reverse"}, 3),
    ),
    "lstm with peepholes": (
        *("LSTM", X, [W, R, normal(2, 40), None, None, None, normal(2, 15)]),
        *(BOTH, 3),
    ),
    "gru": ("GRU", X, [W3, R3, normal(2, 30)], BOTH, 2),
    "gru after": ("GRU", X, [W3, R3, normal(2, 30)], BOTH | {"linear_before_reset": 1}, 2),
    "matmul": ("MatMul", IMAGE, [normal(11, 7)], {}, 1),
    "matmul of a batch": ("MatMul", IMAGE, [normal(4, 11, 7)], {}, 1),
    "gemm": ("Gemm", (5, 6), [normal(7, 6), normal(7)], {"transB": 1}, 1),
    "softmax": ("Softmax", IMAGE, [], {"axis": 1}, 1),
    "mean": ("ReduceMean", IMAGE, [ints(2, 3)], {"keepdims": 0}, 1),
    "sum": ("ReduceSum", IMAGE, [ints(1)], {}, 1),
    "maximum": ("ReduceMax", IMAGE, [], {}, 1),
    "transpose": ("Transpose", IMAGE, [], {"perm": [0, 2, 3, 1]}, 1),
    "slice": ("Slice", IMAGE, [ints(-2, 20), ints(-100, 0), ints(2, 3), ints(-1, -2)], {}, 1),
    "pad": ("Pad", LINES, [ints(0, 1, 2, 0, 0, 3), np.float32(1.5)], {}, 1),
    "split": ("Split", IMAGE, [ints(1, 3)], {"axis": 1}, 2),
    "expand": ("Expand", (2, 1, 3), [ints(4, 1, 5, 1)], {}, 1),
    "resize": ("Resize", IMAGE, [None, HALF], {"mode": "linear"}, 1),
    "repeated pixels": ("Resize", IMAGE, [None, np.array([1, 1, 2, 3], np.float32)], {}, 1),
    "resize to sizes": ("Resize", IMAGE, [None, None, ints(2, 4, 5, 30)], {}, 1),
    "cubic": ("Resize", IMAGE, [None, HALF], {"mode": "cubic", "antialias": 1}, 1),
    "clip": ("Clip", IMAGE, [np.float32(-0.5), np.float32(0.5)], {}, 1),
    "power": ("Pow", IMAGE, [np.float32(2)], {}, 1),
    "product": ("Mul", IMAGE, [normal(4, 1, 1)], {}, 1),
}


def graph_of(name: str) -> Graph:
    op, shape, stored, attributes, outputs = CASES[name]
    graph = Graph(op)
    inputs: list[Value | None] = [graph.add_input("x", "float32", shape)]
    for index, array in enumerate(stored):
        tensor = None if array is None else tensor_from_array(f"c{index}", np.asarray(array))
        inputs.append(None if tensor is None else graph.add_constant(tensor, fixed=True))
    spec = op_spec(op)
    made = [Value(f"y{i}") for i in range(outputs)]
    graph.insert(Node(op, inputs, made, dict(attributes), "", max(spec.versions)))
    graph.outputs = made
    infer_types(graph)
    check(graph)
    return graph


@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_the_reference(name: str) -> None:
    x = normal(*CASES[name][1], seed=11)
    session = Session(graph_of(name), threads=2, fuse=False)
    found = session.run({"x": x})
    assert session.fallbacks == []
    wanted = Session(graph_of(name), "reference", fuse=False).run({"x": x})
    for key, values in wanted.items():
        assert found[key].dtype == values.dtype
        np.testing.assert_allclose(found[key], values, rtol=0, atol=1e-5)
    again = session.run({"x": x})
    for key, values in found.items():
        np.testing.assert_array_equal(again[key], values)
