"""Conversions: narrow floats and integers, text, bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from halfbyte.ir.dtypes import NARROW_FLOATS, NARROW_INTEGERS, numpy_dtype
from halfbyte.ir.ops.spec import normal
from support.op_evaluation import evaluated_one

INF, NAN = np.inf, np.nan
F32 = np.float32


def f32(*values: float) -> np.ndarray:
    return np.asarray(values, F32)


def cast(values: np.ndarray, to: str, **attributes) -> list:
    return evaluated_one("Cast", values, to=to, **attributes).astype(F32).tolist()


LARGEST = {
    "float8_e4m3fn": 448.0,
    "float8_e4m3fnuz": 240.0,
    "float8_e5m2": 57344.0,
    "float8_e5m2fnuz": 57344.0,
}


@pytest.mark.parametrize("to", sorted(LARGEST))
def test_float8_saturates_or_overflows(to: str) -> None:
    top = LARGEST[to]
    assert cast(f32(INF, -INF, 1e9, top), to) == [top, -top, top, top]
    outside = np.asarray(cast(f32(INF, 1e9, top), to, saturate=0))
    assert not np.isfinite(outside[:2]).any()
    assert np.isinf(outside[:2]).all() == (to == "float8_e5m2")
    assert np.isnan(cast(f32(NAN), to)[0])


@pytest.mark.parametrize(
    ("mode", "saturate", "expected"),
    [
        ("up", 1, [2.0, 2.0, 4.0, 2.0**127, 2.0**127]),
        ("down", 1, [2.0, 1.0, 2.0, 2.0**127, 2.0**127]),
        ("nearest", 1, [2.0, 2.0, 4.0, 2.0**127, 2.0**127]),
    ],
)
def test_powers_of_two_round_as_asked(mode: str, saturate: int, expected: list) -> None:
    data = f32(2.0, 1.5, 3.0, 3e38, INF)
    assert cast(data, "float8_e8m0fnu", round_mode=mode, saturate=saturate) == expected


def test_powers_of_two_of_nothing() -> None:
    assert np.isnan(cast(f32(NAN, 0.0, INF), "float8_e8m0fnu", saturate=0)).all()
    small = cast(f32(0.0, 1e-45), "float8_e8m0fnu", round_mode="down")
    assert small == [2.0**-127, 2.0**-127]


@pytest.mark.parametrize("to", sorted(NARROW_INTEGERS))
def test_narrow_integers_keep_the_low_bits(to: str) -> None:
    bits = int(to[-1])
    values = np.arange(-20, 21)
    low = values & (2**bits - 1)
    if to.startswith("int"):
        low = np.where(low >= 2 ** (bits - 1), low - 2**bits, low)
    assert cast(values, to) == low.tolist()
    assert evaluated_one("Cast", values, to=to).dtype == numpy_dtype(to)


@pytest.mark.parametrize("to", sorted(NARROW_FLOATS))
def test_narrow_floats_round_like_ml_dtypes(to: str) -> None:
    data = np.abs(normal(1, 200)) + F32(0.01)
    if to == "float8_e8m0fnu":
        assert np.all(np.asarray(cast(data, to)) >= data)
    else:
        wanted = data.astype(numpy_dtype(to)).astype(F32)
        assert cast(data, to) == wanted.tolist()


def test_float32_to_integer_truncates() -> None:
    assert evaluated_one("Cast", f32(1.9, -1.9), to="int32").tolist() == [1, -1]
    assert evaluated_one("Cast", np.asarray([200], np.int16), to="int8").tolist() == [-56]
    assert evaluated_one("Cast", f32(0.0, -0.0, 0.5, NAN), to="bool").tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_text_reads_back() -> None:
    data = f32(0.1, -1e30, 3.0)
    text = evaluated_one("Cast", data, to="string")
    assert text.tolist()[0] == "0.1"
    np.testing.assert_array_equal(evaluated_one("Cast", text, to="float32"), data)
    special = np.asarray(["+INF", "inf", "-INF", "NaN", "1e2"], object)
    read = evaluated_one("Cast", special, to="float64")
    np.testing.assert_array_equal(read, [INF, INF, -INF, NAN, 100])
    assert evaluated_one("Cast", np.asarray(["7", "-8"], object), to="int64").tolist() == [7, -8]
    assert evaluated_one("Cast", np.asarray(["7.0"], object), to="int64").tolist() == [7]
    assert evaluated_one("Cast", np.asarray(["2.5"], object), to="bfloat16").astype(F32)[0] == 2.5


def test_narrow_numbers_become_text() -> None:
    whole = np.asarray([-2, 1]).astype(ml_dtypes.int4)
    assert evaluated_one("Cast", whole, to="string").tolist() == ["-2", "1"]
    small = f32(0.5, -6).astype(ml_dtypes.float4_e2m1fn)
    assert evaluated_one("Cast", small, to="string").tolist() == ["0.5", "-6.0"]
    assert evaluated_one("Cast", small, to="int32").tolist() == [0, -6]


def test_cast_like_takes_the_other_dtype() -> None:
    like = np.zeros(2, ml_dtypes.bfloat16)
    assert evaluated_one("CastLike", f32(1.0), like).dtype == like.dtype


@pytest.mark.parametrize(
    ("source", "to"),
    [("float32", "uint32"), ("int8", "uint8"), ("float16", "bfloat16"), ("bool", "int8")],
)
def test_bits_go_there_and_back(source: str, to: str) -> None:
    data = np.asarray([0, 1, 1], source) if source == "bool" else np.asarray([1, -2, 3], source)
    there = evaluated_one("BitCast", data, to=to)
    assert there.tobytes() == data.tobytes()
    np.testing.assert_array_equal(evaluated_one("BitCast", there, to=source), data)


def test_sub_byte_bits() -> None:
    data = np.asarray([-1, -8, 7]).astype(ml_dtypes.int4)
    unsigned = evaluated_one("BitCast", data, to="uint4")
    assert unsigned.astype(int).tolist() == [15, 8, 7]
    assert evaluated_one("BitCast", unsigned, to="int4").astype(int).tolist() == [-1, -8, 7]
    floats = evaluated_one("BitCast", unsigned, to="float4_e2m1fn")
    assert floats.astype(F32).tolist() == [-6.0, -0.0, 6.0]
