"""Other shapes of a stored part, without a copy: writers look through them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.tensor import Part


@dataclass(frozen=True)
class ReshapedPart:
    """The elements of another part, in the same order, in another shape."""

    source: Part
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the element type."""
        return self.source.dtype

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop) of the new shape."""
        length = self.shape[0] if self.shape else 1
        stop = length if stop is None else min(stop, length)
        own, theirs = math.prod(self.shape[1:]), math.prod(self.source.shape[1:])
        if not own or not theirs or start >= stop:
            return np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        first = start * own // theirs
        rows = self.source.read(first, -(-stop * own // theirs)).reshape(-1)
        wanted = rows[start * own - first * theirs : stop * own - first * theirs]
        return np.asarray(wanted.reshape(stop - start, *self.shape[1:]))
