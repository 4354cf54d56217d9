"""A stored matrix seen with rows and columns exchanged."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.tensor import Part, Tensor

NARROW = 64
TILE = 256


@dataclass(frozen=True)
class TransposedPart:
    """Rows are the columns of `source`, copied by tiles when they are read.

    A read of a few rows touches every page of the source, so narrow reads are served from a block
    of NARROW rows that is kept.
    """

    source: Part
    _block: list[tuple[int, Array]] = field(default_factory=list, compare=False, repr=False)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the element type."""
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (columns, rows) of the source."""
        rows, columns = self.source.shape
        return columns, rows

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop), contiguous."""
        length = self.shape[0]
        stop = length if stop is None else min(stop, length)
        first = start // NARROW * NARROW
        if stop - start >= NARROW or stop > first + NARROW:
            return self._columns(start, stop)
        held = self._block[0] if self._block else None
        if held is None or held[0] != first:
            held = (first, self._columns(first, min(first + NARROW, length)))
            self._block[:] = [held]
        return held[1][start - first : max(start, stop) - first]

    def _columns(self, start: int, stop: int) -> Array:
        whole = self.source.read()
        rows = len(whole)
        made = np.empty((max(0, stop - start), rows), self.dtype)
        for column in range(start, stop, TILE):
            last = min(column + TILE, stop)
            for row in range(0, rows, TILE):
                tile = whole[row : row + TILE, column:last]
                made[column - start : last - start, row : row + TILE] = tile.T
        return made


def transposed(tensor: Tensor) -> Tensor:
    """Return a dense matrix with rows and columns exchanged, under the same name; nothing is read.

    A matrix that is seen transposed already becomes the stored one again.
    """
    part = tensor.parts["data"]
    turned = part.source if isinstance(part, TransposedPart) else TransposedPart(part)
    return replace(tensor, shape=tensor.shape[::-1], parts={"data": turned})
