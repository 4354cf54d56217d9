"""Parts of an Affine weight over dense tensors of codes, scales and zero points.

Each reads its source when it is read itself. turned: the source lies [in, out] (or one value for
each block and output), the rows of the part are its columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.affine import pack_bits
from halfbyte.ir.tensor import Tensor
from halfbyte.ir.transposed import transposed

Array = NDArray[Any]


@dataclass(frozen=True)
class CodeRows:
    """Codes of `bits` bits, `lift` added to make them unsigned, packed by rows."""

    source: Tensor
    turned: bool
    bits: int
    lift: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the element type."""
        return np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (rows, bytes of a row)."""
        rows, columns = self._rows.shape
        return rows, -(-columns * self.bits // 8)

    @cached_property
    def _rows(self) -> Tensor:
        return transposed(self.source) if self.turned else self.source

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop)."""
        last = self.shape[0] if stop is None else min(stop, self.shape[0])
        found = self._rows.decode(start, last)
        if self.bits == 8:
            plain = np.ascontiguousarray(found).view(np.uint8)
            return plain ^ np.uint8(self.lift) if self.lift else plain
        wide = found.astype(np.int8).view(np.uint8) + np.uint8(self.lift)
        return pack_bits(wide, self.bits)


@dataclass(frozen=True)
class ScaleRows:
    """One value for each row and group: stored so, turned, one for each row, or one for all."""

    source: Tensor
    shape: tuple[int, int]
    turned: bool
    dtype: np.dtype[Any]

    @cached_property
    def _rows(self) -> Tensor:
        return transposed(self.source) if self.turned else self.source

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop)."""
        last = self.shape[0] if stop is None else min(stop, self.shape[0])
        if self.source.size == 1:
            found = np.broadcast_to(self.source.numpy().reshape(1, 1), (last - start, 1))
        elif len(self.source.shape) == 1:
            found = self.source.numpy().reshape(-1, 1)[start:last]
        else:
            found = self._rows.decode(start, last)
        return np.ascontiguousarray(found)


@dataclass(frozen=True)
class ZeroRows:
    """Zero points like scales, `lift` added; without a source they are all `lift`."""

    source: Tensor | None
    shape: tuple[int, int]
    turned: bool
    dtype: np.dtype[Any]
    lift: int

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop) as unsigned codes."""
        last = self.shape[0] if stop is None else min(stop, self.shape[0])
        if self.source is None:
            return np.full((last - start, self.shape[1]), self.lift, np.uint8)
        rows = ScaleRows(self.source, self.shape, self.turned, self.dtype)
        found = rows.read(start, last).astype(np.int16) + self.lift
        return found.astype(np.uint8)
