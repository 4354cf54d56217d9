"""Arrays whose columns are the rows of a weight: filled by ranges of these, read by their own."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from halfbyte.ir.encodings.encoding import Array

IN_MEMORY_BYTES = 32 << 20


class GatheredPart:
    """An array [length, width] made by columns.

    A weight's rows come a range at a time and fill columns; the whole stands in memory, past
    IN_MEMORY_BYTES in a temporary file, until all of it was read.
    """

    def __init__(
        self,
        dtype: np.dtype[Any],
        shape: tuple[int, int],
        step: int,
        columns: Callable[[int, int], Array],
    ) -> None:
        """Take dtype, shape, columns per fill, and what returns columns [start, stop)."""
        self.dtype, self.shape = dtype, shape
        self._step, self._columns = max(1, step), columns
        self.fills = -(-shape[1] // self._step)
        self._locks = [threading.Lock() for _ in range(self.fills)]
        self._guard, self._reading = threading.Lock(), threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._whole: Array | None = None
        self._filled = [False] * self.fills
        self._unread = self.shape[0]

    def _buffer(self) -> Array:
        with self._guard:
            if self._whole is None:
                if self.dtype.itemsize * self.shape[0] * self.shape[1] <= IN_MEMORY_BYTES:
                    self._whole = np.empty(self.shape, self.dtype)
                else:
                    with tempfile.TemporaryFile() as file:
                        self._whole = np.memmap(file, self.dtype, "w+", shape=self.shape)
            return self._whole

    def fill(self, number: int) -> None:
        """Compute the columns of one range, unless they are there."""
        with self._locks[number]:
            if not self._filled[number]:
                start = number * self._step
                stop = min(start + self._step, self.shape[1])
                self._buffer()[:, start:stop] = self._columns(start, stop)
                self._filled[number] = True

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop) of the whole array."""
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        with self._reading:
            for number in range(self.fills):
                self.fill(number)
            found = np.array(self._buffer()[start:stop])
            self._unread -= stop - start
            if self._unread <= 0:
                self._forget()
        return found
