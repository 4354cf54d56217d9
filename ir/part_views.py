"""Other shapes of a stored part, without a copy: writers look through them."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.tensor import Part, Tensor


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


@dataclass(frozen=True)
class StackedPart:
    """The rows of several parts, one part after the other."""

    sources: tuple[Part, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the element type."""
        return self.sources[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape."""
        return (sum(part.shape[0] for part in self.sources), *self.sources[0].shape[1:])

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop) of the whole."""
        ends = list(accumulate(part.shape[0] for part in self.sources))
        stop = ends[-1] if stop is None else min(stop, ends[-1])
        if start >= stop:
            return self.sources[0].read(0, 0)
        pieces = []
        for index in range(bisect.bisect_right(ends, start), len(ends)):
            first = ends[index] - self.sources[index].shape[0]
            if first >= stop:
                break
            pieces.append(self.sources[index].read(max(0, start - first), stop - first))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


@dataclass(frozen=True)
class SlicePart:
    """Rows [start, stop) of another part."""

    source: Part
    start: int
    stop: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the element type."""
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape."""
        return (self.stop - self.start, *self.source.shape[1:])

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop) of the slice."""
        end = self.stop if stop is None else min(self.start + stop, self.stop)
        return self.source.read(min(self.start + start, end), end)


def matrix_of(tensor: Tensor, number: int) -> Tensor:
    """Return one matrix of a stack [matrices, rows, columns], over the same memory."""
    rows = tensor.shape[1]
    specs = tensor.encoding.part_specs(tensor.rows, tensor.columns)
    parts: dict[str, Part] = {
        name: SlicePart(part, number * rows, (number + 1) * rows) if specs[name].per_row else part
        for name, part in tensor.parts.items()
    }
    return replace(tensor, shape=tensor.shape[1:], parts=parts)
