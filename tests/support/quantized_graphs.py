"""Small quantized graphs, and the check that passes over them change nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.legality import check
from halfbyte.ir.ops.inference import infer_types
from halfbyte.ir.passes import dead_code, get_pass
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.runtime.session import Session

RNG = np.random.default_rng(3)
VERSIONS = {"Conv": 22, "MatMul": 13, "Gemm": 13, "Relu": 14, "Clip": 13, "Add": 14, "Mul": 14}
VERSIONS |= {"QuantizeLinear": 25, "DequantizeLinear": 25, "MatMulInteger": 10, "Cast": 25}
VERSIONS |= {"DynamicQuantizeLinear": 11, "ConvInteger": 10, "Reshape": 25, "Transpose": 25}
VERSIONS |= {"Concat": 13, "Split": 18, "Sigmoid": 13, "Erf": 13, "Div": 14, "Slice": 13}
VERSIONS |= {"LeakyRelu": 16, "Softmax": 13, "Sub": 14}


class Builder:
    """A graph made node by node."""

    def __init__(self, **inputs: tuple[int, ...]) -> None:
        self.graph = Graph()
        self.inputs = {n: self.graph.add_input(n, "float32", s) for n, s in inputs.items()}

    def constant(self, values, dtype=np.float32) -> Value:
        name = self.graph.fresh_name("constant")
        return self.graph.add_constant(
            tensor_from_array(name, np.asarray(values, dtype)), name, fixed=True
        )

    def node(self, op: str, *inputs: Value | None, **attributes) -> Value:
        return self.graph.add(op, inputs, since_version=VERSIONS[op], **attributes)

    def quantized(self, value: Value, scale: float, zero: int, dtype=np.uint8) -> Value:
        return self.node("QuantizeLinear", value, *self.place(scale, zero, dtype))

    def place(self, scale: float, zero: int, dtype=np.uint8) -> tuple[Value, Value]:
        return self.constant(scale), self.constant(zero, dtype)

    def rounded(self, value: Value, scale: float, zero: int, dtype=np.uint8) -> Value:
        """Quantize and dequantize."""
        stored = self.quantized(value, scale, zero, dtype)
        return self.node("DequantizeLinear", stored, *self.place(scale, zero, dtype))

    def weight(self, shape: tuple[int, ...], axis: int, dtype=np.int8) -> Value:
        info = np.iinfo(dtype)
        data = RNG.integers(info.min, info.max + 1, shape).astype(dtype)
        scales = RNG.uniform(0.001, 0.01, shape[axis])
        middle = np.full(shape[axis], 128 if dtype == np.uint8 else 0)
        inputs = [self.constant(data, dtype), self.constant(scales), self.constant(middle, dtype)]
        return self.node("DequantizeLinear", *inputs, axis=axis)


def run(
    built: Builder,
    *outputs: Value,
    one_step: float = 0.0,
    passes: Sequence[str] = ("fuse_integer",),
) -> list[str]:
    """Check that fusing changes nothing; return the operators of the fused graph.

    one_step: how much one step of the output's quantization is, where ties may fall apart.
    """
    graph = built.graph
    graph.outputs = list(outputs)
    infer_types(graph)
    check(graph)
    feeds = {
        name: (RNG.standard_normal(value.shape) * 2).astype(np.float32)
        for name, value in built.inputs.items()
    }
    plain = Session(graph, device="reference", fuse=False).run(feeds)
    fused = graph.copy()
    for name in passes:
        assert get_pass(name)(fused)
    dead_code.apply(fused)
    check(fused)
    for device in ("reference", "cpu"):
        results = Session(fused, device=device, fuse=False).run(feeds)
        for name, expected in plain.items():
            assert results[name].dtype == expected.dtype
            difference = np.abs(results[name].astype(np.float64) - expected.astype(np.float64))
            limit = 2e-6 * np.abs(expected.astype(np.float64)).max()
            assert difference.max() <= limit + one_step
            assert (difference > limit).mean() <= (0.002 if one_step else 0)
    return [node.op for node in fused.nodes]
