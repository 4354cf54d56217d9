"""Names of element types: numpy's and ml_dtypes' names, `string`, and composed ones.

A sequence of tensors is `sequence.float32`, an optional one `optional.float32` or
`optional.sequence.float32`. Sub-byte types lie one element per byte in arrays.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, cast

import numpy as np

ONNX_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4_e2m1fn",
    24: "float8_e8m0fnu",
    25: "uint2",
    26: "int2",
    27: "float6_e2m3fn",
    28: "float6_e3m2fn",
}
ONNX_NUMBERS = {name: number for number, name in ONNX_DTYPES.items()}
DTYPES = frozenset(ONNX_NUMBERS)
NARROW_INTEGERS = frozenset({"int2", "uint2", "int4", "uint4"})
INTEGERS = NARROW_INTEGERS | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
FLOATING = frozenset(name for name in DTYPES if name.startswith(("float", "bfloat")))
WIDE_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
NARROW_FLOATS = FLOATING - WIDE_FLOATS
BITS = {"bool": 8} | {
    name: int(match.group()) for name in DTYPES if (match := re.search(r"\d+", name)) is not None
}
FIXED_SIZE = DTYPES - {"string"}
MIXED = frozenset({"sequence", "optional"})


@cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype of a dtype name; strings are Python objects.

    Raises:
        TypeError: no element type has the name.
    """
    if name == "string":
        return np.dtype(object)
    if name in DTYPES and not hasattr(np, name):
        import ml_dtypes

        return cast("np.dtype[Any]", np.dtype(getattr(ml_dtypes, name)))
    return np.dtype(name)


def dtype_of(array: Any) -> str:
    """Return the dtype name of an array."""
    return _dtype_name(array.dtype)


@cache
def _dtype_name(dtype: np.dtype[Any]) -> str:
    return "string" if dtype.kind in "OUST" else str(dtype.name)


def dtype_name(to: Any) -> str:
    """Return the dtype that attribute `to` names: a name or an ONNX type number."""
    return ONNX_DTYPES.get(to, str(to)) if isinstance(to, int) else str(to)


def is_dtype(name: str) -> bool:
    """Whether a name is an element type or composed of one."""
    return element_dtype(name) in DTYPES


def element_dtype(name: str) -> str:
    """Return the element type of a possibly composed name."""
    while name.partition(".")[0] in MIXED:
        name = name.partition(".")[2]
    return name
