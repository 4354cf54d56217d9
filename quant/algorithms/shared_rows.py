"""Fitting ranges of rows of a matrix whose rows share scales: what they share is measured first."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Array, Encoding, Scales, Unpacked
from halfbyte.ir.streamed_parts import row_step
from halfbyte.ir.tensor import Tensor, tensor_from_array

Float = NDArray[np.float32]
# (rows, number of the first of them in the tensor, importance) -> their scales
Fit = Callable[[Float, int, "Float | None"], Scales]


def fitter(tensor: Tensor, encoding: Encoding) -> Fit:
    """Return what fits scales to ranges of rows of a tensor as if its matrices were fitted whole.

    The tensor's matrices (experts) share nothing with one another.
    """
    if encoding.shared_rows == 1:
        return lambda rows, start, importance: encoding.fit(rows, importance)
    measured = _Measured(tensor, encoding)

    def fit(rows: Float, start: int, importance: Float | None) -> Scales:
        return encoding.fit_measured(rows, measured.of(start, start + len(rows)), importance)

    return fit


def row_encoder(
    weight: Float, encoding: Encoding
) -> Callable[[Float, int, Float | None], dict[str, Array]]:
    """Return what encodes ranges of rows of one matrix [rows, columns] as `encode` does the whole.

    It takes rows, the number of the first of them, and importance.
    """
    if encoding.shared_rows == 1:
        return lambda rows, start, importance: encoding.encode(rows, importance)
    fit = fitter(tensor_from_array("", weight), encoding)

    def encode(rows: Float, start: int, importance: Float | None) -> dict[str, Array]:
        scales = fit(rows, start, importance)
        return encoding.pack(Unpacked(encoding.assign(rows, scales), scales))

    return encode


class _Measured:
    """What rows share, by row: computed once for each run of rows when first asked for."""

    def __init__(self, tensor: Tensor, encoding: Encoding) -> None:
        self._tensor, self._encoding = tensor, encoding
        self._matrix = tensor.shape[-2] if len(tensor.shape) > 1 else tensor.rows
        self._run = encoding.shared_rows or max(self._matrix, 1)
        self._known: dict[tuple[int, int], Float] = {}
        self._lock = threading.Lock()

    def of(self, start: int, stop: int) -> Float:
        """Return the measures of rows [start, stop): [rows, n]."""
        found = []
        while start < stop:
            first, last = self._bounds(start)
            end = min(stop, last)
            found.append(np.tile(self._measure(first, last), (end - start, 1)))
            start = end
        if not found:
            return np.repeat(self._encoding.measure(self._tensor.float32(0, 0))[None], 0, axis=0)
        return np.concatenate(found)

    def _bounds(self, row: int) -> tuple[int, int]:
        matrix = row // self._matrix * self._matrix
        first = matrix + (row - matrix) // self._run * self._run
        return first, min(first + self._run, matrix + self._matrix)

    def _measure(self, first: int, last: int) -> Float:
        with self._lock:
            known = self._known.get((first, last))
            if known is None:
                step = row_step(self._tensor.columns)
                for start in range(first, last, step):
                    rows = self._tensor.float32(start, min(start + step, last))
                    found = self._encoding.measure(rows)
                    known = found if known is None else np.maximum(known, found)
                assert known is not None
                self._known[first, last] = known
            return known
