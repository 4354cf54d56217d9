"""Quantization: rounding, ranges, granularity, types; products of quantized matrices."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import INTEGERS, numpy_dtype
from halfbyte.ir.ops.quantization import integer_range, spread
from halfbyte.ir.ops.spec import generator, normal
from support.op_evaluation import evaluated, evaluated_one

F32 = np.float32
ONE = np.asarray(1.0, F32)
QUANTIZED = sorted(name for name in INTEGERS if int(name.partition("int")[2]) <= 16)


def f32(*values: float) -> np.ndarray:
    return np.asarray(values, F32)


@pytest.mark.parametrize("to", QUANTIZED)
def test_integers_round_to_even_and_stay_in_range(to: str) -> None:
    low, high = integer_range(to)
    result = evaluated_one("QuantizeLinear", f32(1e9, -1e9, np.inf, 0.5, 1.5), ONE, output_dtype=to)
    assert result.dtype == numpy_dtype(to)
    assert result.astype(int).tolist() == [high, low, high, 0, min(2, high)]


def test_default_is_uint8_and_not_a_number_is_the_lowest() -> None:
    result = evaluated_one("QuantizeLinear", f32(np.nan, 3.2), ONE)
    assert result.dtype == np.uint8
    assert result.tolist() == [0, 3]


@pytest.mark.parametrize("scale", [np.float16, ml_dtypes.bfloat16, F32])
@pytest.mark.parametrize("to", ["int8", "uint4", "float8_e4m3fn", "float4_e2m1fn"])
def test_round_trip_is_within_half_a_step(scale: type, to: str) -> None:
    data = np.clip(np.abs(normal(1, 4, 6)), 0, 2.5).astype(F32)
    step = np.asarray(0.5, scale)
    codes = evaluated_one("QuantizeLinear", data, step, output_dtype=to)
    back = evaluated_one("DequantizeLinear", codes, step)
    assert back.dtype == scale
    assert np.abs(back.astype(F32) - data).max() <= 0.25 + 1e-6


def test_precision_is_that_of_the_scale_or_asked_for() -> None:
    data, step = f32(2049.0), np.asarray(1.0, np.float16)
    assert evaluated_one("QuantizeLinear", data, step, output_dtype="int16").tolist() == [2048]
    wide = evaluated_one("QuantizeLinear", data, step, output_dtype="int16", precision="float32")
    assert wide.tolist() == [2049]


def test_scales_may_be_powers_of_two() -> None:
    steps = np.asarray([0.5, 2.0], F32).astype(ml_dtypes.float8_e8m0fnu)
    data = f32(1, 2, 3, 4)
    codes = evaluated_one(
        "QuantizeLinear", data, steps, axis=0, block_size=2, output_dtype="float4_e2m1fn"
    )
    assert codes.astype(F32).tolist() == [2, 4, 1.5, 2]
    back = evaluated_one(
        "DequantizeLinear", codes, steps, axis=0, block_size=2, output_dtype="float32"
    )
    assert back.tolist() == data.tolist()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_last_block_may_be_short(axis: int) -> None:
    data = generator(2).integers(-8, 8, (5, 7)).astype(np.int8)
    blocks = [-(-n // 3) if i == axis % 2 else n for i, n in enumerate(data.shape)]
    steps = np.abs(normal(3, *blocks)) + F32(0.1)
    zeros = generator(4).integers(-3, 3, blocks).astype(np.int8)
    result = evaluated_one("DequantizeLinear", data, steps, zeros, axis=axis, block_size=3)
    for i, j in np.ndindex(5, 7):
        at = (i // 3, j) if axis == 0 else (i, j // 3)
        assert result[i, j] == F32(int(data[i, j]) - int(zeros[at])) * steps[at]


def test_shapes_of_scales_are_checked() -> None:
    with pytest.raises(GraphError, match="4 scales for 3 indexes of axis 1"):
        spread(np.ones(4, F32), (2, 3), 1, 0)
    with pytest.raises(GraphError, match="in blocks of 2 .* one scale for each block of axis 1"):
        spread(np.ones((2, 1), F32), (2, 3), 1, 2)


def test_int32_is_dequantized_exactly() -> None:
    data = np.asarray([2**31 - 1, -(2**31)], np.int32)
    result = evaluated_one("DequantizeLinear", data, np.asarray(1.0, F32))
    assert result.tolist() == [2.0**31, -(2.0**31)]


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0, 2.0], [-3.0, -1.0], [-1.0, 3.0], []])
def test_dynamic_range_includes_zero(values: list[float]) -> None:
    data = f32(*values)
    codes, step, zero = evaluated("DynamicQuantizeLinear", data, outputs=3)
    back = (codes.astype(F32) - F32(zero)) * step
    assert np.all(np.abs(back - data) <= step * 0.501 + 1e-6)
    assert (step.shape, zero.shape, step.dtype, zero.dtype) == ((), (), F32, np.uint8)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_integer_products_subtract_zero_points(kind: type) -> None:
    a, b = (generator(s).integers(0, 100, (2, 3, 3)).astype(kind) for s in (5, 6))
    rows, columns = np.asarray([1, 2, 3], kind), np.asarray([4, 5, 6], kind)
    result = evaluated_one("MatMulInteger", a, b, rows, columns)
    wanted = (a.astype(int) - rows[:, None]) @ (b.astype(int) - columns.astype(int))
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, wanted)
    np.testing.assert_array_equal(
        evaluated_one("MatMulInteger", a, b), a.astype(int) @ b.astype(int)
    )


def test_quantized_product_saturates() -> None:
    a = np.full((2, 4), 255, np.uint8)
    step, zero = np.asarray(1.0, F32), np.asarray(0, np.uint8)
    assert (
        evaluated_one("QLinearMatMul", a, step, zero, a.T.copy(), step, zero, step, zero).max()
        == 255
    )
    halves = np.asarray(2.0**16, F32)
    result = evaluated_one("QLinearMatMul", a, step, zero, a.T.copy(), step, zero, halves, zero)
    assert result.tolist() == [[4, 4], [4, 4]]
