"""Stored arrays seen as parts of encodings, and parts folded into what containers store."""

from __future__ import annotations

from typing import Any

import numpy as np

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.tensor import ComputedPart, Part, Tensor

BYTE = np.dtype(np.uint8)


def viewed(source: Part, dtype: np.dtype[Any]) -> ComputedPart:
    """Return the bytes of rows [rows, n] as another type: [rows, bytes of a row / its size]."""
    rows = source.shape[0]
    width = source.shape[1] * source.dtype.itemsize // dtype.itemsize

    def read(start: int, stop: int) -> Array:
        found = np.ascontiguousarray(source.read(start, stop))
        return found.view(dtype).reshape(stop - start, width)

    return ComputedPart(dtype, (rows, width), read)


def cast(source: Part, dtype: np.dtype[Any]) -> Part:
    """Return a part in a type that holds all its values."""
    if source.dtype == dtype:
        return source
    return ComputedPart(
        dtype, source.shape, lambda start, stop: source.read(start, stop).astype(dtype)
    )


def constant(value: Array, rows: int) -> ComputedPart:
    """Return [rows, 1] of one value (0-d)."""
    return ComputedPart(
        value.dtype, (rows, 1), lambda start, stop: np.full((stop - start, 1), value)
    )


def repeated(source: Part, rows: int, block: int) -> ComputedPart:
    """Return [rows, n]: row r is row r // block of the source."""

    def read(start: int, stop: int) -> Array:
        found = source.read(start // block, -(-stop // block))
        return found[np.arange(start, stop) // block - start // block]

    return ComputedPart(source.dtype, (rows, source.shape[1]), read)


def folded(name: str, source: Part, block: int, columns: int | None = None) -> ComputedPart:
    """Return one row for each `block` rows of a part, which must be alike.

    columns: repeat it to so many columns. Errors name the weight `name`.

    Raises:
        QuantizationError: while reading: rows that share a place differ.
    """
    rows, width = source.shape

    def read(start: int, stop: int) -> Array:
        found = source.read(start * block, min(stop * block, rows))
        first = found[::block]
        if not np.array_equal(np.repeat(first, block, axis=0)[: len(found)], found):
            rule = f"rows of a block of {block} have different scales, one was required"
            raise QuantizationError(name, f"{rule}; choose a type with a scale per row")
        return first if columns is None else np.repeat(first, columns, axis=1)

    shape = (-(-rows // block), width if columns is None else columns * width)
    return ComputedPart(source.dtype, shape, read)


def number_of(tensor: Tensor) -> float:
    """Return the one value of an array, as a float."""
    return float(np.asarray(tensor.parts["data"].read()).astype(np.float32).reshape(-1)[0])
