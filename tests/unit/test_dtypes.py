"""Names of element types."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from halfbyte.ir.dtypes import (
    BITS,
    DTYPES,
    FLOATING,
    NARROW_FLOATS,
    ONNX_DTYPES,
    dtype_of,
    element_dtype,
    is_dtype,
    numpy_dtype,
)


def test_numbers_are_those_of_onnx() -> None:
    known = {number: str(helper.tensor_dtype_to_np_dtype(number)) for number in ONNX_DTYPES}
    assert known == {**ONNX_DTYPES, TensorProto.STRING: "object"}


def test_bits_of_packed_and_plain_types() -> None:
    assert [BITS[n] for n in ("int4", "uint2", "float6_e2m3fn", "bfloat16", "bool")] == [
        *(4, 2, 6, 16, 8)
    ]
    assert BITS.keys() == DTYPES - {"string"}


def test_float64_is_no_narrow_float() -> None:
    assert {"float64", "float32", "float16", "bfloat16"} == FLOATING - NARROW_FLOATS


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_names_survive_numpy(name: str) -> None:
    assert dtype_of(np.zeros(2, numpy_dtype(name))) == name


def test_composed_names() -> None:
    assert is_dtype("optional.sequence.float32")
    assert element_dtype("optional.sequence.float32") == "float32"
    assert not is_dtype("sequence.float31")
