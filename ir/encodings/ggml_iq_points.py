"""Points of ggml's IQ codebooks: from codes to the stored index, and the nearest point.

A point is `group` digits (level numbers); the searches of the encoder see level `2 digit + 1` in
the 2- and 3-bit types and `digit - 1` in the 1-bit types. Codes that are no point go to the best
of a list of neighbours: the points at the few smallest distinct distances, by distance, then index.

Source: iq2xs_init_impl, iq3xs_init_impl and the neighbour searches of ggml-quants.c.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.ggml_search import Codes, Float
from halfbyte.kernels.codebooks import GRID_KINDS, Codebook, codebook

# How many distinct distances a list of neighbours spans.
_DISTANCES = {"IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ3_XXS": 2, "IQ3_S": 3, "IQ1_S": 3}
_CHUNK = 512


class Points:
    """The codebook of one kind, ready for searches."""

    def __init__(self, book: Codebook) -> None:
        """Index the points of `book`; neighbours are listed when first needed."""
        self.book = book
        self.group, self.size, self.base = book.group, book.size, len(book.levels)
        self.values = book.values
        self._places = self.base ** np.arange(self.group, dtype=np.int32)
        self._index = np.full(self.base**self.group, -1, np.int32)
        self._index[book.digits.astype(np.int32) @ self._places] = np.arange(self.size)
        signed = book.levels[0] < 0
        low, step = (-1, 1) if signed else (1, 2)
        # [group, points], so that one value of many points is one row.
        self.levels = (low + step * book.digits.T.astype(np.float32)).astype(np.float32)
        self._neighbours: tuple[NDArray[np.int64], NDArray[np.int64], Codes] | None = None

    def keys(self, digits: Codes) -> Codes:
        """Return [octets, n]: one number for the digits [octets * group, n] of each point."""
        count = len(digits) // self.group
        parts = digits.reshape(count, self.group, digits.shape[-1])
        total: Codes = parts[:, 0].copy()
        for i in range(1, self.group):
            total += parts[:, i] * self._places[i]
        return total

    def index_of(self, keys: Codes) -> Codes:
        """Return the index of each key's point, -1 for what is no point."""
        found: Codes = self._index[keys]
        return found

    def _lists(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Codes]:
        """Return (first, count, members): the neighbours of every key, as one flat list."""
        if self._neighbours is None:
            keys = np.flatnonzero(self._index < 0)
            digits = (keys[:, None] // self._places % self.base).astype(np.float32)
            points = self.book.digits.astype(np.float32)
            pieces = [
                _neighbours(digits[i : i + _CHUNK], points, _DISTANCES[self.book.kind])
                for i in range(0, len(keys), _CHUNK)
            ]
            count = np.zeros(len(self._index), np.int64)
            count[keys] = np.concatenate([piece[0] for piece in pieces])
            members = np.concatenate([piece[1] for piece in pieces])
            self._neighbours = np.cumsum(count) - count, count, members
        return self._neighbours

    def best_neighbour(
        self, keys: Codes, x: Float, weight: Float, scale: Float, shift: Float | None = None
    ) -> Codes:
        """Return the neighbour of least weighted squared error for each key [n], none a point.

        x, weight: [group, n]; scale, shift: [n]; a level stands for (level + shift) * scale.
        """
        first, count, members = self._lists()
        own = count[keys]
        ends = np.cumsum(own)
        owner = np.repeat(np.arange(len(keys)), own)
        member = members[np.arange(len(owner)) + (first[keys] - ends + own)[owner]]
        scales = scale[owner]
        error = np.zeros(len(owner), np.float32)
        for i in range(self.group):
            level = self.levels[i][member]
            if shift is not None:
                level = level + shift[owner]
            difference = scales * level - x[i][owner]
            error += (weight[i][owner] * difference) * difference
        error[~(error < np.inf)] = np.finfo(np.float32).max
        starts = ends - own
        least = np.minimum.reduceat(error, starts)
        hits = np.flatnonzero(error == least[owner])
        first_hit = hits[np.searchsorted(hits, starts)]
        best: Codes = member[first_hit]
        return best

    def nearest(self, wanted: NDArray[np.float64]) -> tuple[Codes, NDArray[np.float64]]:
        """Return (index, squared distance) of the point next to wanted [n, group], in its levels.

        Levels are those of decoding.
        """
        values = self.values.astype(np.float64)
        norms = (values * values).sum(axis=1)
        found = np.empty(len(wanted), np.int32)
        distance = np.empty(len(wanted))
        for i in range(0, len(wanted), _CHUNK):
            part = wanted[i : i + _CHUNK]
            scores = norms - 2 * (part @ values.T)
            found[i : i + _CHUNK] = scores.argmin(axis=1)
            distance[i : i + _CHUNK] = scores.min(axis=1) + (part * part).sum(axis=1)
        return found, distance


def _neighbours(digits: Float, points: Float, distances: int) -> tuple[NDArray[np.int64], Codes]:
    """Return (count [n], members): the points at the smallest distances from digits [n, group]."""
    squares = (digits * digits).sum(axis=1)[:, None] + (points * points).sum(axis=1)
    apart = squares - 2 * (digits @ points.T)
    bound = apart.min(axis=1, keepdims=True)
    for _ in range(distances - 1):
        bound = np.where(apart > bound, apart, np.float32(np.inf)).min(axis=1, keepdims=True)
    rows, members = np.nonzero(apart <= bound)
    order = np.lexsort((members, apart[rows, members], rows))
    return np.bincount(rows, minlength=len(digits)), members[order].astype(np.int32)


def points_of(kind: str) -> Points:
    """Return the points of an IQ kind."""
    return _points(GRID_KINDS[kind])


@cache
def _points(kind: str) -> Points:
    return Points(codebook(kind))
