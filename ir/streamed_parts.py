"""Parts of a tensor that are computed while they are read.

A tensor of several parts (codes, scales, zero points) comes from one computation per row, but a
writer reads its parts one after the other. `computed_parts` keeps the small parts of the rows
computed so far until every part has been read whole, so nothing is computed twice and only small
parts are held, each for as long as its tensor is being written.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import numpy as np

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.encoding import Array, PartSpec
from halfbyte.ir.tensor import CHUNK_BYTES, ComputedPart, Part

Small = Callable[[int, int], dict[str, Array]]
Large = Callable[[int, int, dict[str, Array]], tuple[Array, dict[str, Array]]]


@contextlib.contextmanager
def naming(tensor: str) -> Iterator[None]:
    """Give errors of an encoding, which knows no names, the name of the tensor.

    Raises:
        QuantizationError: as the block raised it, with the name.
    """
    try:
        yield
    except QuantizationError as error:
        raise QuantizationError(tensor, error.rule) from error


def row_step(columns: int, block_rows: int = 1) -> int:
    """Return the rows to compute at a time, about CHUNK_BYTES of float32."""
    return max(1, CHUNK_BYTES // max(1, 4 * columns) // block_rows) * block_rows


def computed_part(spec: PartSpec, step: int, function: Callable[[int, int], Array]) -> ComputedPart:
    """Return a part of which at most `step` rows are computed at a time."""

    def read(start: int, stop: int) -> Array:
        if start >= stop:
            return np.empty((0, *spec.shape[1:]), spec.dtype)
        if stop - start <= step:
            return function(start, stop)
        out = np.empty((stop - start, *spec.shape[1:]), spec.dtype)
        for row in range(start, stop, step):
            out[row - start : row - start + step] = function(row, min(row + step, stop))
        return out

    return ComputedPart(spec.dtype, spec.shape, read)


class _Shared:
    """The small parts of the rows computed so far, until every part has been read."""

    def __init__(self, specs: dict[str, PartSpec], rows: int) -> None:
        self.specs, self.rows = specs, rows
        self.lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self.held: dict[str, Array] = {}
        self.known = np.zeros(self.rows, np.bool_)
        self.unread = {name: self.rows for name, spec in self.specs.items() if spec.per_row}

    def keep(self, start: int, stop: int, small: dict[str, Array]) -> None:
        """Hold the small parts of rows [start, stop)."""
        with self.lock:
            for name, values in small.items():
                spec = self.specs[name]
                if name not in self.held:
                    self.held[name] = np.empty(spec.shape, spec.dtype)
                if spec.per_row:
                    self.held[name][start:stop] = values
                else:
                    self.held[name][...] = values
            self.known[start:stop] = True

    def lookup(self, start: int, stop: int) -> dict[str, Array] | None:
        """Return copies of the small parts of rows [start, stop) if all are held."""
        with self.lock:
            if not self.known[start:stop].all():
                return None
            return {
                name: values[start:stop].copy() if self.specs[name].per_row else values.copy()
                for name, values in self.held.items()
            }

    def was_read(self, name: str, rows: int) -> None:
        """Count rows of a part as read; forget everything once all parts are."""
        with self.lock:
            self.unread[name] -= rows
            if all(left <= 0 for left in self.unread.values()):
                self._reset()


def computed_parts(
    specs: dict[str, PartSpec], columns: int, small: Small, large: Large, block_rows: int = 1
) -> dict[str, Part]:
    """Return lazy parts for `specs`.

    small(start, stop) returns every part but the first, which holds the codes, for a range of rows;
    large(start, stop, known) returns the first part and the small ones, given the small ones
    ({} where they are not known yet).
    """
    step = row_step(columns, block_rows)
    main = next(iter(specs))
    rows = specs[main].shape[0]
    if len(specs) == 1:
        whole = computed_part(specs[main], step, lambda a, b: large(a, b, {})[0])
        return {main: whole}
    shared = _Shared(specs, rows)

    def read_main(start: int, stop: int) -> Array:
        known = shared.lookup(start, stop)
        values, found = large(start, stop, known or {})
        if known is None:
            shared.keep(start, stop, found)
        shared.was_read(main, stop - start)
        return values

    def read_small(name: str, start: int, stop: int) -> Array:
        known = shared.lookup(start, stop)
        if known is None:
            known = small(start, stop)
            shared.keep(start, stop, known)
        if specs[name].per_row:
            shared.was_read(name, stop - start)
        return known[name]

    parts: dict[str, Part] = {}
    for name, spec in specs.items():
        if name == main:
            parts[name] = computed_part(spec, step, read_main)
        elif spec.per_row:
            parts[name] = computed_part(spec, step, _bound(read_small, name))
        else:
            first = _bound(read_small, name)
            parts[name] = ComputedPart(spec.dtype, spec.shape, _sliced(first, min(rows, 1)))
    return parts


def _bound(function: Callable[[str, int, int], Array], name: str) -> Callable[[int, int], Array]:
    return lambda start, stop: function(name, start, stop)


def _sliced(function: Callable[[int, int], Array], rows: int) -> Callable[[int, int], Array]:
    return lambda start, stop: function(0, rows)[start:stop]
