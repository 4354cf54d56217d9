"""Typed, bounded reading of a file's `%arch%.*` keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from halfbyte.converters.gguf.ggml_types import ValueType
from halfbyte.converters.gguf.metadata_value import MetadataValue
from halfbyte.errors import FormatError, UnsupportedError

MAX_DIMENSION = 2**31 - 1

_INTEGERS = frozenset(
    {
        ValueType.UINT8,
        ValueType.INT8,
        ValueType.UINT16,
        ValueType.INT16,
        ValueType.UINT32,
        ValueType.INT32,
        ValueType.UINT64,
        ValueType.INT64,
    }
)
_FLOATS = frozenset({ValueType.FLOAT32, ValueType.FLOAT64})


def shortest_float(entry: MetadataValue) -> float:
    """Return the shortest decimal that a float32 value stands for: 1e-05, not 9.99999974e-06."""
    if entry.type is ValueType.FLOAT32:
        return float(str(np.float32(entry.value)))
    return float(entry.value)


class Hyperparameters:
    """The keys of one architecture, asked for without its prefix."""

    def __init__(self, where: str, prefix: str, metadata: Mapping[str, MetadataValue]) -> None:
        """Keep the metadata; `where` names the file in errors."""
        self.where = where
        self.prefix = prefix
        self.metadata = metadata

    def _fail(self, name: str, found: object, required: str) -> NoReturn:
        key = f"{self.prefix}.{name}"
        raise FormatError(self.where, f"key {key!r} is {str(found)[:60]}, {required} was required")

    def find(self, name: str) -> MetadataValue | None:
        """Return the typed value of a key, or None; an array of equal numbers counts as one.

        Raises:
            UnsupportedError: the layers differ.
        """
        entry = self.metadata.get(f"{self.prefix}.{name}")
        if entry is None or not isinstance(entry.value, np.ndarray) or not len(entry.value):
            return entry
        if (entry.value != entry.value[0]).any():
            what = f"{name} that differs between layers ({entry.value[:8].tolist()})"
            raise UnsupportedError(what, self.where, advice="the file can still be copied to GGUF")
        kind = entry.element_type
        return None if kind is None else MetadataValue(entry.value[0].item(), kind)

    def integer(self, name: str, default: int | None = None, low: int = 1) -> int:
        """Return an integer of [low, 2^31); any integer type is taken.

        Raises:
            FormatError: it is missing without default, no integer or out of range.
        """
        entry = self.find(name)
        if entry is None and default is not None:
            return default
        if entry is None:
            self._fail(name, "missing", "an integer")
        if entry.type not in _INTEGERS or not low <= entry.value <= MAX_DIMENSION:
            self._fail(name, f"{entry.type.name} {entry.value!r}", f"an integer of at least {low}")
        return int(entry.value)

    def number(self, name: str, default: float | None = None) -> float:
        """Return a finite number that is not negative.

        Raises:
            FormatError: it is missing without default, no number, negative or not finite.
        """
        entry = self.find(name)
        if entry is None and default is not None:
            return default
        if entry is None:
            self._fail(name, "missing", "a number")
        if entry.type not in _FLOATS | _INTEGERS or not math.isfinite(entry.value):
            self._fail(name, f"{entry.type.name} {entry.value!r}", "a finite number")
        if entry.value < 0:
            self._fail(name, entry.value, "a number of at least 0")
        return shortest_float(entry)

    def text(self, name: str, default: str) -> str:
        """Return a string.

        Raises:
            FormatError: the key has another type.
        """
        entry = self.find(name)
        if entry is None:
            return default
        if entry.type is not ValueType.STRING:
            self._fail(name, entry.type.name, "a string")
        return str(entry.value)

    def flag(self, name: str, default: bool) -> bool:
        """Return a truth value.

        Raises:
            FormatError: the key has another type.
        """
        entry = self.find(name)
        if entry is None:
            return default
        if entry.type is not ValueType.BOOL:
            self._fail(name, f"{entry.type.name} {entry.value!r}", "a bool")
        return bool(entry.value)

    def own(self) -> dict[str, Any]:
        """Return all keys of the architecture with their typed values."""
        start = self.prefix + "."
        return {key: entry for key, entry in self.metadata.items() if key.startswith(start)}
