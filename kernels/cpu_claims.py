"""What the compiled CPU kernels take: kinds of weights, and for each function those it claims."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from halfbyte.kernels.codebooks import GRID_KINDS
from halfbyte.kernels.layouts import LAYOUTS

# Order of the C++ enum Kind, which has no plain integers and no float64.
_NO_KINDS = frozenset({"float64", "int8", "int16", "int32", "int64"})
KINDS = (*(name for name in LAYOUTS if name not in _NO_KINDS), "affine")
_BLOCKS = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"})
_K_BLOCKS = frozenset({"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"})
_DENSE = frozenset({"float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"})
_SMALL_BLOCKS = frozenset({"Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "IQ4_NL", "IQ4_XS"})
_READABLE = _DENSE | _BLOCKS | _K_BLOCKS | _SMALL_BLOCKS | GRID_KINDS.keys() | {"affine"}

# What each function takes: encodings of weights, or "float32" for plain arrays.
CLAIMS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "decode": _READABLE,
        "encode": _BLOCKS
        | _K_BLOCKS
        | _SMALL_BLOCKS
        | GRID_KINDS.keys()
        | {"float32", "float16", "bfloat16"},
        "linear": _READABLE,
        "linear_int8": _BLOCKS | _K_BLOCKS | (_SMALL_BLOCKS - {"NVFP4"}) | {"affine"},
        "gather_rows": _READABLE,
        **{
            name: frozenset({"float32"})
            for name in (
                "rms_norm",
                "add_rms_norm",
                "layer_norm",
                "rope",
                "attention",
                "append_kv",
                "swiglu",
                "silu",
                "gelu",
                "add",
                "mul",
                "softmax",
            )
        },
    }
)
