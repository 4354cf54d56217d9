"""Dense encodings: rounding, ranges, what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.encodings.dense import DTYPES, Dense
from halfbyte.ir.encodings.encoding import Scales, Unpacked


def rows(*values: float, dtype: object = np.float32) -> np.ndarray:
    return np.asarray([values], dtype)


@pytest.mark.parametrize("name", list(DTYPES))
def test_own_dtype_passes_untouched(name: str) -> None:
    values = np.ones((2, 3), DTYPES[name])
    encoding = Dense(name)
    parts = encoding.encode(values)
    assert parts["data"] is values
    assert encoding.decode(parts, 3).dtype == DTYPES[name]
    assert encoding.bits_per_weight == 8 * DTYPES[name].itemsize


@pytest.mark.parametrize(
    ("name", "just_fits", "largest", "overflows"),
    [
        ("float16", 65519.996, 65504.0, 65520.0),
        ("bfloat16", 3.3961774e38, 3.3895314e38, 3.3961778e38),
        ("float8_e4m3fn", 464.0, 448.0, 464.00003),
        ("float8_e5m2", 61439.996, 57344.0, 61440.0),
    ],
)
def test_the_range_ends_where_rounding_leaves_it(
    name: str, just_fits: float, largest: float, overflows: float
) -> None:
    encoding = Dense(name)
    got = encoding.encode(rows(-just_fits, just_fits))["data"].astype(np.float64)
    np.testing.assert_allclose(got, [[-largest, largest]], rtol=1e-7)
    with pytest.raises(QuantizationError, match=f"beyond the range of {name}"):
        encoding.encode(rows(1.0, -overflows))


def test_the_message_says_what_to_do() -> None:
    with pytest.raises(QuantizationError) as error:
        Dense("float16").encode(rows(1.0, -1e6))
    assert error.value.rule == (
        "holds 1e+06, beyond the range of float16 (+-65504); "
        "keep a wider type for it, for example bfloat16 or float32"
    )


def test_float64_beyond_float32() -> None:
    with pytest.raises(QuantizationError, match="beyond the range of float32"):
        Dense("float32").encode(rows(1e39, dtype=np.float64))


def test_nan_and_infinity_pass_where_the_type_has_them() -> None:
    special = rows(np.nan, np.inf, -np.inf, 2.0)
    for name in ("float64", "float16", "bfloat16", "float8_e5m2"):
        got = Dense(name).encode(special)["data"].astype(np.float32)
        np.testing.assert_array_equal(got, special)
    with pytest.raises(QuantizationError, match="infinite weights, which float8_e4m3fn has not"):
        Dense("float8_e4m3fn").encode(special)
    nan = Dense("float8_e4m3fn").encode(rows(np.nan, 448.0))["data"]
    assert np.isnan(nan.astype(np.float32)[0, 0])


def test_bfloat16_infinity_becomes_float16_infinity() -> None:
    source = rows(np.inf, 1.0, dtype=ml_dtypes.bfloat16)
    assert np.isinf(Dense("float16").encode(source)["data"][0, 0])


def test_float64_is_rounded_once() -> None:
    # Nearest float32 lies on a bfloat16 tie and would round down; the value itself is above it.
    value = 1.0 + 2.0**-8 + 2.0**-40
    assert float(Dense("bfloat16").encode(rows(value, dtype=np.float64))["data"][0, 0]) == 1.0078125
    assert float(Dense("bfloat16").encode(rows(1 + 2.0**-8))["data"][0, 0]) == 1.0


def test_integers_take_whole_numbers_in_range() -> None:
    got = Dense("int8").encode(rows(-128.4, 0.5, 1.5, 127.4))["data"]
    np.testing.assert_array_equal(got, np.asarray([[-128, 0, 2, 127]], np.int8))
    assert Dense("bool").encode(rows(0, 1))["data"].dtype == np.bool_
    wide = np.asarray([[2**40 + 1]], np.int64)
    assert Dense("uint64").encode(wide)["data"][0, 0] == 2**40 + 1
    assert Dense("int8").encode(np.zeros((0, 3), np.float32))["data"].shape == (0, 3)


@pytest.mark.parametrize("value", [128.0, -129.0, np.nan, np.inf])
def test_integers_refuse_the_rest(value: float) -> None:
    with pytest.raises(QuantizationError) as error:
        Dense("int8").encode(rows(0.0, value))
    assert error.value.rule == "holds values outside -128..127, the range of i8"


def test_integers_become_floats_if_they_fit() -> None:
    source = np.asarray([[1000, -3]], np.int64)
    assert Dense("float16").encode(source)["data"][0, 0] == 1000
    with pytest.raises(QuantizationError, match="holds 70000"):
        Dense("float16").encode(np.asarray([[70000]], np.int64))
    assert Dense("float32").encode(np.zeros((0, 2), np.int8))["data"].shape == (0, 2)


def test_dense_has_no_codes() -> None:
    encoding = Dense("float16")
    scales = Scales(np.ones((1, 1), np.float32), 1)
    codes = np.zeros((1, 1), np.int32)
    message = "dense encoding: codes of float16 is not supported; decode it"
    for call in (
        lambda: encoding.unpack({}, 1),
        lambda: encoding.pack(Unpacked(codes, scales)),
        lambda: encoding.fit(rows(1.0)),
        lambda: encoding.assign(rows(1.0), scales),
    ):
        with pytest.raises(UnsupportedError) as error:
            call()
        assert str(error.value) == message
