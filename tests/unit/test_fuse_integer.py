"""Quantized graphs run in integers, and mean the same."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.legality import check
from halfbyte.ir.ops.inference import infer_types
from halfbyte.ir.passes import dead_code, fuse_integer
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.runtime.session import Session

RNG = np.random.default_rng(3)
VERSIONS = {"Conv": 22, "MatMul": 13, "Gemm": 13, "Relu": 14, "Clip": 13, "Add": 14, "Mul": 14}
VERSIONS |= {"QuantizeLinear": 25, "DequantizeLinear": 25, "MatMulInteger": 10, "Cast": 25}
VERSIONS |= {"DynamicQuantizeLinear": 11, "ConvInteger": 10}


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


def run(built: Builder, *outputs: Value, one_step: float = 0.0) -> list[str]:
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
    assert fuse_integer.apply(fused)
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


@pytest.mark.parametrize("bias", ["none", "float", "int32"])
@pytest.mark.parametrize("clip", ["none", "Relu", "Clip"])
def test_convolutions(bias: str, clip: str) -> None:
    built = Builder(x=(1, 3, 8, 9))
    x = built.rounded(built.inputs["x"], 0.05, 120)
    shift = None
    if bias == "float":
        shift = built.constant(RNG.standard_normal(5))
    elif bias == "int32":
        whole = built.constant(RNG.integers(-900, 900, 5), np.int32)
        shift = built.node("DequantizeLinear", whole, built.constant(np.full(5, 1e-3)), axis=0)
    inputs = [x, built.weight((5, 3, 3, 3), 0)] + ([] if shift is None else [shift])
    y = built.node("Conv", *inputs, pads=[1, 1, 1, 1], strides=[2, 1])
    if clip == "Relu":
        y = built.node("Relu", y)
    elif clip == "Clip":
        y = built.node("Clip", y, built.constant(-0.1), built.constant(0.6))
    ops = run(built, built.quantized(y, 0.02, 7), one_step=1)
    assert ops == ["QuantizeLinear", "IntegerConv"]


def test_a_convolution_whose_result_stays_float() -> None:
    built = Builder(x=(1, 4, 6, 6))
    x = built.rounded(built.inputs["x"], 0.05, -3, np.int8)
    y = built.node("Conv", x, built.weight((4, 1, 3, 3), 0, np.uint8), group=4)
    assert run(built, y) == ["QuantizeLinear", "IntegerConv"]


@pytest.mark.parametrize("form", ["MatMul", "MatMul+Add", "Gemm", "GemmT"])
def test_products(form: str) -> None:
    built = Builder(x=(6, 20))
    x = built.rounded(built.inputs["x"], 0.05, 128)
    bias = built.constant(RNG.standard_normal(7))
    if form.startswith("MatMul"):
        y = built.node("MatMul", x, built.weight((20, 7), 1))
        if form.endswith("Add"):
            y = built.node("Add", bias, y)
    elif form == "Gemm":
        y = built.node("Gemm", x, built.weight((20, 7), 1), bias)
    else:
        y = built.node("Gemm", x, built.weight((7, 20), 0), bias, transB=1)
    ops = run(built, built.quantized(built.node("Relu", y), 0.03, 0), one_step=1)
    assert ops == ["QuantizeLinear", "IntegerMatMul"]


def test_sums_of_two_quantized_values() -> None:
    built = Builder(a=(2, 5, 3), b=(2, 5, 3))
    a = built.rounded(built.inputs["a"], 0.0513, 128)
    b = built.rounded(built.inputs["b"], 0.0307, -9, np.int8)
    y = built.node("Relu", built.node("Add", a, b))
    ops = run(built, built.quantized(y, 0.0411, 3), one_step=1)
    assert ops == ["QuantizeLinear", "QuantizeLinear", "IntegerAdd"]


@pytest.mark.parametrize("bias", [False, True])
def test_dynamic_products(bias: bool) -> None:
    built = Builder(x=(2, 6, 20))
    outputs = [Value(name) for name in ("bytes", "scale", "zero")]
    built.graph.insert(
        Node("DynamicQuantizeLinear", [built.inputs["x"]], outputs, since_version=11)
    )
    weight = built.constant(RNG.integers(-128, 128, (20, 7)), np.int8)
    zero = built.constant(np.zeros(7), np.int8)
    sums = built.node("MatMulInteger", outputs[0], weight, outputs[2], zero)
    scale = built.node("Mul", outputs[1], built.constant(RNG.uniform(0.001, 0.01, 7)))
    y = built.node("Mul", built.node("Cast", sums, to="float32"), scale)
    if bias:
        y = built.node("Add", y, built.constant(RNG.standard_normal(7)))
    assert run(built, y) == ["DynamicQuantizeLinear", "IntegerMatMul"]


def test_dynamic_convolutions() -> None:
    built = Builder(x=(1, 3, 7, 7))
    outputs = [Value(name) for name in ("bytes", "scale", "zero")]
    built.graph.insert(
        Node("DynamicQuantizeLinear", [built.inputs["x"]], outputs, since_version=11)
    )
    weight = built.constant(RNG.integers(-128, 128, (4, 3, 3, 3)), np.int8)
    sums = built.node("ConvInteger", outputs[0], weight, outputs[2], pads=[1, 1, 1, 1])
    scale = built.node("Mul", built.constant(0.01), outputs[1])
    y = built.node("Mul", scale, built.node("Cast", sums, to="float32"))
    y = built.node("Add", y, built.constant(RNG.standard_normal((1, 4, 1, 1))))
    assert run(built, y) == ["DynamicQuantizeLinear", "IntegerConv"]


def test_what_others_read_stays() -> None:
    built = Builder(x=(6, 20))
    x = built.rounded(built.inputs["x"], 0.05, 128)
    y = built.node("MatMul", x, built.weight((20, 7), 1))
    stored = built.quantized(built.node("Relu", y), 0.03, 0)
    ops = run(built, stored, y, one_step=1)
    assert ops == ["QuantizeLinear", "IntegerMatMul", "Relu", "QuantizeLinear"]


def test_other_forms_stay_float() -> None:
    built = Builder(x=(6, 20))
    x = built.node(
        "DequantizeLinear",
        built.quantized(built.inputs["x"], 0.05, 128),
        *built.place(0.05, 128),
    )
    scaled = built.node("Gemm", x, built.weight((20, 7), 1), alpha=2.0)
    rows = built.node("MatMul", x, built.weight((20, 7), 0))
    infer_types(built.graph)
    built.graph.outputs = [scaled, rows]
    assert not fuse_integer.apply(built.graph)
