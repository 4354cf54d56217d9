"""Elementwise operators: special values, empty arrays, integers, 16-bit floats."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.ops import FAMILIES, infer, op_spec
from halfbyte.ir.ops.activation import sigmoid
from halfbyte.ir.ops.error_function import erf
from halfbyte.ir.ops.numerics import CHUNK, by_chunks
from halfbyte.ir.ops.spec import normal
from support.op_evaluation import evaluated_one, node_graph

INF, NAN = np.inf, np.nan
F32 = np.float32
UNARY = [
    key
    for family in ("unary", "trigonometry", "activation", "piecewise", "softmax")
    for key in FAMILIES[family]
    if "." not in key and len(op_spec(key).inputs) == 1 and key != "Not"
]
BINARY = ["Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean", "PRelu"]


def f32(*values: float) -> np.ndarray:
    return np.asarray(values, F32)


@pytest.mark.parametrize("key", UNARY)
@pytest.mark.parametrize("dtype", [F32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_unary_operators_keep_dtype_and_shape(key: str, dtype: type) -> None:
    for shape in [(2, 3), (0,), (2, 0, 3)]:
        data = np.full(shape, 0.5, dtype)
        result = evaluated_one(key, data)
        assert result.shape == shape
        assert result.dtype == (np.bool_ if key in ("IsNaN", "IsInf") else data.dtype)


@pytest.mark.parametrize("key", UNARY)
def test_unary_operators_take_special_values_silently(key: str) -> None:
    data = f32(NAN, INF, -INF, 0.0, -0.0, 1e-40, 3e38, -3e38)
    assert evaluated_one(key, data.reshape(-1, 1)).shape == (8, 1)


@pytest.mark.parametrize("key", BINARY)
@pytest.mark.parametrize("dtype", [F32, np.float16, ml_dtypes.bfloat16])
def test_binary_operators_broadcast_empty_dimensions(key: str, dtype: type) -> None:
    result = evaluated_one(key, np.ones((0, 3), dtype), np.ones((3,), dtype))
    assert result.shape == (0, 3)
    assert result.dtype == dtype
    assert evaluated_one(key, np.ones((2, 3), dtype), np.ones((1, 3), dtype)).dtype == dtype


def test_scalars_stay_arrays_without_dimensions() -> None:
    for key in ("Add", "Div", "Equal", "Max"):
        result = evaluated_one(key, np.asarray(2.0, F32), np.asarray(2.0, F32))
        assert isinstance(result, np.ndarray)
        assert result.shape == ()


@pytest.mark.parametrize(
    ("key", "inputs", "expected"),
    [
        ("Abs", [f32(-0.0, -INF)], f32(0, INF)),
        ("Sign", [f32(-2, -0.0, 3)], f32(-1, 0, 1)),
        ("Round", [f32(0.5, 1.5, 2.5, -0.5)], f32(0, 2, 2, -0.0)),
        ("Reciprocal", [f32(0.0, -0.0, INF)], f32(INF, -INF, 0)),
        ("Log", [f32(0.0, -1.0)], f32(-INF, NAN)),
        ("Sqrt", [f32(-1.0, 4.0)], f32(NAN, 2)),
        ("Exp", [f32(1000.0, -1000.0)], f32(INF, 0)),
        ("Relu", [f32(-0.5, 0.5, NAN)], f32(0, 0.5, NAN)),
        ("Max", [f32(NAN, 1), f32(2, 2)], f32(NAN, 2)),
        ("Min", [f32(NAN, 1), f32(2, 2)], f32(NAN, 1)),
        ("Div", [f32(1, -1, 0), f32(0, 0, 0)], f32(INF, -INF, NAN)),
        ("Div", [np.asarray([-7, 7, -8]), np.asarray([2, -2, 2])], np.asarray([-3, -3, -4])),
        ("Mod", [np.asarray([-7, 7]), np.asarray([3, -3])], np.asarray([2, -2])),
        ("Mod", [f32(-7, 7, 5, -5), f32(3, -3, INF, INF)], f32(2, -2, 5, INF)),
        ("Pow", [np.asarray([2, 3]), np.asarray([3, -1])], np.asarray([8, 0])),
        ("Pow", [np.asarray([2, 3]), f32(0.5, 2.0)], np.asarray([1, 9])),
        ("Pow", [f32(2, 4), np.asarray([3, -1])], f32(8, 0.25)),
        ("Sigmoid", [f32(-1000, 0, 1000)], f32(0, 0.5, 1)),
        ("Softplus", [f32(-1000, 1000)], f32(0, 1000)),
        ("Erf", [f32(NAN, INF, -INF, 0)], f32(NAN, 1, -1, 0)),
        ("LeakyRelu", [f32(-1, 2, -INF)], f32(-0.01, 2, -INF)),
        ("Not", [np.asarray([True, False])], np.asarray([False, True])),
        ("Sum", [f32(1e8, 1), f32(1, 1), f32(-1e8, 1)], f32(1, 3)),
        ("Mean", [f32(1e8, 1), f32(3, 1), f32(-1e8, 4)], f32(1, 2)),
        ("Clip", [f32(-2, 0, NAN), f32(1)[0], f32(-1)[0]], f32(-1, -1, NAN)),
    ],
)
def test_values(key: str, inputs: list[np.ndarray], expected: np.ndarray) -> None:
    result = evaluated_one(key, *inputs)
    assert result.dtype == expected.dtype
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    if result.dtype == F32:
        number = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(result[number]), np.signbit(expected[number]))


def test_remainder_of_truncation_has_the_sign_of_the_dividend() -> None:
    data, divisor = np.asarray([-7, 7]), np.asarray([3, -3])
    assert evaluated_one("Mod", data, divisor, fmod=1).tolist() == [-1, 1]
    assert evaluated_one("Mod", f32(-7.5), f32(2), fmod=1).tolist() == [-1.5]


def test_infinities_are_found_by_sign() -> None:
    data = f32(INF, -INF, NAN, 1)
    assert evaluated_one("IsInf", data, detect_negative=0).tolist() == [True, False, False, False]
    assert evaluated_one("IsInf", data, detect_positive=0).tolist() == [False, True, False, False]
    small = data.astype(ml_dtypes.float8_e5m2)
    assert evaluated_one("IsInf", small).tolist() == [True, True, False, False]
    assert evaluated_one("IsNaN", small).tolist() == [False, False, True, False]


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_signed_bits_shift_arithmetically(dtype: type) -> None:
    data = np.asarray([-8, 8, -1], dtype)
    assert evaluated_one("BitShift", data, dtype(1), direction="RIGHT").tolist() == [-4, 4, -1]
    far = dtype(100)
    assert evaluated_one("BitShift", data, far, direction="RIGHT").tolist() == [-1, 0, -1]
    assert evaluated_one("BitShift", data, far, direction="LEFT").tolist() == [0, 0, 0]
    assert evaluated_one("BitShift", data, dtype(-1), direction="LEFT").tolist() == [0, 0, 0]


def test_running_sums_are_exclusive_and_reversed() -> None:
    data = f32(1, 2, 3)
    axis = np.asarray(0)
    assert evaluated_one("CumSum", data, axis, exclusive=1).tolist() == [0, 1, 3]
    assert evaluated_one("CumSum", data, axis, exclusive=1, reverse=1).tolist() == [5, 3, 0]
    assert evaluated_one("CumProd", data, axis, exclusive=1).tolist() == [1, 1, 2]
    assert evaluated_one("CumSum", np.ones((2, 0), F32), np.asarray(-1), exclusive=1).shape == (
        2,
        0,
    )


def test_error_function_is_within_its_bound() -> None:
    points = np.concatenate([np.linspace(-7, 7, 4001), [1e-30, -1e-5, 1.0, -1.0]])
    wanted = np.asarray([math.erf(x) for x in points])
    np.testing.assert_array_equal(erf(points), wanted)
    narrow = points.astype(F32)
    exact = np.asarray([math.erf(float(x)) for x in narrow])
    np.testing.assert_allclose(erf(narrow), exact, rtol=1e-12, atol=0)


def test_pieces_give_what_the_whole_gives() -> None:
    data = normal(1, 3, CHUNK // 2 + 7)
    whole = sigmoid(data).astype(F32)
    np.testing.assert_array_equal(by_chunks(sigmoid, data), whole)
    np.testing.assert_array_equal(by_chunks(sigmoid, data.T), whole.T)


def test_inputs_are_not_written() -> None:
    for key in UNARY:
        data = np.linspace(-2, 2, 12, dtype=F32).reshape(3, 4)
        data.flags.writeable = False
        evaluated_one(key, data)


@pytest.mark.parametrize(
    ("key", "inputs", "attributes", "rule"),
    [
        ("BitShift", [np.asarray([1]), np.asarray([1])], {"direction": "UP"}, "'LEFT' or 'RIGHT'"),
        ("BitCast", [f32(1)], {"to": "int64"}, "give equal widths"),
        ("Add", [f32(1), np.asarray([1])], {}, "float32 and int64 meet"),
        ("Cast", [f32(1)], {"to": "float31"}, "'float31'"),
    ],
)
def test_broken_rules(key: str, inputs: list, attributes: dict, rule: str) -> None:
    _, node = node_graph(key, op_spec(key).versions[-1], inputs, attributes)
    with pytest.raises(GraphError, match=rule):
        infer(node)
