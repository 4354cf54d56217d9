"""Tensor types and metadata value types that a GGUF file can name.

Source: ggml/include/ggml.h and ggml/include/gguf.h of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import ml_dtypes
import numpy as np

from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.kernels.layouts import LAYOUTS, Layout

DEFAULT_ALIGNMENT = 32
QUANTIZATION_VERSION = 2
MAX_NAME_BYTES = 64


class ValueType(IntEnum):
    """Type ids of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


VALUE_DTYPES: dict[ValueType, str] = {
    ValueType.UINT8: "u1",
    ValueType.INT8: "i1",
    ValueType.UINT16: "u2",
    ValueType.INT16: "i2",
    ValueType.UINT32: "u4",
    ValueType.INT32: "i4",
    ValueType.FLOAT32: "f4",
    ValueType.BOOL: "?",
    ValueType.UINT64: "u8",
    ValueType.INT64: "i8",
    ValueType.FLOAT64: "f8",
}


@dataclass(frozen=True)
class GgmlType:
    """A tensor type: blocks of `block` values along a row take `block_bytes` bytes each.

    `dtype_name` is the numpy name of a plain type, empty for block types.
    """

    id: int
    name: str
    block: int
    block_bytes: int
    dtype_name: str = ""

    def row_bytes(self, columns: int) -> int:
        """Return the bytes of a row; columns must be a multiple of the block."""
        return columns // self.block * self.block_bytes


# Types that have no encoding here yet: they are listed and copied, never decoded.
_CARRIED_TYPES = (
    GgmlType(9, "Q8_1", 32, 36),
    GgmlType(15, "Q8_K", 256, 292),
)


def _known_type(layout: Layout) -> GgmlType | None:
    if layout.ggml_id is None:
        return None
    short = {"bfloat": "BF", "float": "F", "int": "I"}
    stem = layout.name.rstrip("0123456789")
    is_plain = stem in short
    name = short[stem] + layout.name[len(stem) :] if is_plain else layout.name
    dtype_name = layout.name if is_plain else ""
    return GgmlType(layout.ggml_id, name, layout.values, layout.bytes, dtype_name)


def _table() -> dict[int, GgmlType]:
    known = [kind for kind in map(_known_type, LAYOUTS.values()) if kind is not None]
    merged = {kind.id: kind for kind in (*_CARRIED_TYPES, *known)}
    return dict(sorted(merged.items()))


GGML_TYPES = _table()
BY_NAME = {kind.name: kind for kind in GGML_TYPES.values()}
_BY_DTYPE = {kind.dtype_name: kind for kind in GGML_TYPES.values() if kind.dtype_name}

REMOVED_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}

FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 12,
    "Q4_K": 15,
    "Q5_K": 17,
    "Q6_K": 18,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "IQ3_XXS": 23,
    "IQ1_S": 24,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ2_S": 28,
    "IQ4_XS": 30,
    "IQ1_M": 31,
    "BF16": 32,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "MXFP4": 38,
    "NVFP4": 39,
    "Q1_0": 40,
    "Q2_0": 41,
}
"""The number in `general.file_type` for a file of mostly this type."""

OTHER_FILE_TYPES = {11: "Q3_K", 13: "Q3_K", 14: "Q4_K", 16: "Q5_K", 21: "Q2_K", 22: "IQ3_S"}
OTHER_FILE_TYPES |= {27: "IQ3_S", 29: "IQ2_S"}
"""Further numbers for mixes, by the type that most of their tensors have."""

ACTIVATION_ONLY = frozenset({"Q8_1", "Q8_K"})


def ggml_type_of(encoding: Encoding) -> GgmlType | None:
    """Return the tensor type that stores an encoding byte for byte, or None."""
    dtype_name = getattr(encoding, "dtype_name", None)
    if dtype_name is not None:
        return _BY_DTYPE.get(str(dtype_name))
    return BY_NAME.get(encoding.name)


def numpy_dtype(dtype_name: str) -> np.dtype[np.generic]:
    """Return the numpy dtype of a plain type, bfloat16 included."""
    return np.dtype(getattr(ml_dtypes, dtype_name, dtype_name))


def encoding_of(kind: GgmlType) -> Encoding:
    """Return the encoding of a tensor type; types not implemented come back opaque."""
    from halfbyte.converters.gguf.opaque import OpaqueBlocks
    from halfbyte.ir.encodings import encoding_from_name

    try:
        found = encoding_from_name(kind.name)
    except UnsupportedError:
        return OpaqueBlocks(kind.name, kind.block, kind.block_bytes)
    return found
