"""Typed metadata values: what a GGUF key holds, and the bytes it takes.

Value types are kept as read, so that a file copied to GGUF again keeps every pair as it was.
Strings that are not valid UTF-8 keep their bytes as lone surrogates (Python's surrogateescape).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from halfbyte.converters.gguf.ggml_types import VALUE_DTYPES, ValueType

UINT32_MAX = 2**32 - 1
FLOAT32_MAX = float(np.finfo(np.float32).max)
_TYPE_OF_DTYPE = {np.dtype(code): kind for kind, code in VALUE_DTYPES.items()}


@dataclass(frozen=True, eq=False)
class MetadataValue:
    """A value with its GGUF type.

    value: int, float, bool or str; for arrays a numpy array, a list of str, or (arrays of arrays) a
    list of MetadataValue.
    """

    value: Any
    type: ValueType
    element_type: ValueType | None = None

    def __eq__(self, other: object) -> bool:
        """Whether type and content agree."""
        if not isinstance(other, MetadataValue):
            return NotImplemented
        if (self.type, self.element_type) != (other.type, other.element_type):
            return False
        if isinstance(self.value, np.ndarray):
            return np.array_equal(self.value, other.value)
        return bool(self.value == other.value)

    __hash__ = None  # type: ignore[assignment]


def plain(metadata: Mapping[str, MetadataValue]) -> dict[str, Any]:
    """Return the values without their types."""
    return {key: entry.value for key, entry in metadata.items()}


def _typed_scalar(value: Any) -> MetadataValue | None:
    if isinstance(value, (bool, np.bool_)):
        return MetadataValue(bool(value), ValueType.BOOL)
    if isinstance(value, str):
        return MetadataValue(value, ValueType.STRING)
    if isinstance(value, np.generic):
        kind = _TYPE_OF_DTYPE.get(value.dtype)
        return None if kind is None else MetadataValue(value.item(), kind)
    if isinstance(value, int):
        if value < 0:
            return MetadataValue(value, ValueType.INT32 if value >= -(2**31) else ValueType.INT64)
        return MetadataValue(value, ValueType.UINT32 if value <= UINT32_MAX else ValueType.UINT64)
    if isinstance(value, float):
        return _float_value(value)
    return None


def _float_value(value: float) -> MetadataValue:
    """Return the nearest float32, or a float64 beyond float32's range."""
    if math.isfinite(value) and abs(value) > FLOAT32_MAX:
        return MetadataValue(value, ValueType.FLOAT64)
    return MetadataValue(float(np.float32(value)), ValueType.FLOAT32)


def _typed_sequence(values: Sequence[Any]) -> MetadataValue | None:
    if all(isinstance(item, str) for item in values):
        return MetadataValue(list(values), ValueType.ARRAY, ValueType.STRING)
    if all(isinstance(item, bool) for item in values):
        return typed(np.array(values, np.bool_))
    if all(isinstance(item, int) for item in values):
        return typed(np.array(values, np.int32 if max(map(abs, values)) < 2**31 else np.int64))
    if all(isinstance(item, (int, float)) for item in values):
        return typed(np.array(values, np.float32))
    return None


def typed(value: Any) -> MetadataValue:
    """Return a value with the GGUF type that fits it.

    Python ints become u32 (i32 when negative, 64 bits when they must), floats f32, lists of int
    i32 arrays, lists of float f32 arrays; numpy scalars and arrays keep their own type.

    Raises:
        TypeError: GGUF has no type for the value.
    """
    if isinstance(value, MetadataValue):
        return value
    found = _typed_scalar(value)
    if found is None and isinstance(value, bytes):
        value = np.frombuffer(value, np.uint8)
    if found is None and isinstance(value, np.ndarray) and value.ndim == 1:
        kind = _TYPE_OF_DTYPE.get(value.dtype.newbyteorder("="))
        found = None if kind is None else MetadataValue(value, ValueType.ARRAY, kind)
    elif found is None and isinstance(value, (list, tuple)):
        found = _typed_sequence(value)
    if found is None:
        raise TypeError(f"GGUF has no metadata type for {type(value).__name__}")
    return found


def pack_string(text: str) -> bytes:
    """Return length and bytes of a string."""
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def pack_value(entry: MetadataValue) -> bytes:
    """Return the little-endian bytes of a value, without its own type id."""
    if entry.type is ValueType.STRING:
        return pack_string(entry.value)
    if entry.type is not ValueType.ARRAY:
        return np.array(entry.value, "<" + VALUE_DTYPES[entry.type]).tobytes()
    kind = ValueType.UINT32 if entry.element_type is None else entry.element_type
    head = struct.pack("<IQ", kind, len(entry.value))
    if kind is ValueType.STRING:
        return head + b"".join(map(pack_string, entry.value))
    if kind is ValueType.ARRAY:
        return head + b"".join(map(pack_value, entry.value))
    return head + np.asarray(entry.value).astype("<" + VALUE_DTYPES[kind]).tobytes()


def pack_pair(key: str, entry: MetadataValue) -> bytes:
    """Return key, type id and value as they lie in the file."""
    return pack_string(key) + struct.pack("<I", entry.type) + pack_value(entry)
