"""Quantized graphs run in integers, and mean the same."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.ir.graph import Node, Value
from halfbyte.ir.ops.inference import infer_types
from halfbyte.ir.passes import fuse_integer
from support.quantized_graphs import RNG, Builder, run


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
