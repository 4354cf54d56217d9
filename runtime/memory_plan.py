"""Where the values of a plan lie in one arena, so that dead values give their room to new ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from halfbyte.errors import HalfbyteError

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """A value's bytes and the first and last step that touch it."""

    nbytes: int
    first: int
    last: int


@cache
def memory_bytes() -> int | None:
    """Return the machine's memory in bytes, None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def check_bytes(name: str, nbytes: int) -> None:
    """Check that a value is not larger than the machine's memory.

    Raises:
        HalfbyteError: it is.
    """
    held = memory_bytes()
    if held is not None and nbytes > held:
        raise HalfbyteError(
            f"session: {name!r} needs {nbytes} bytes, this machine has {held}; give smaller inputs"
        )


def place(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Return the offset of each value and the size of the arena in bytes.

    Values whose lifetimes overlap never share a byte. Larger values are placed first, each in the
    lowest gap that fits.
    """
    count = len(lifetimes)
    sizes = np.fromiter((v.nbytes for v in lifetimes), np.int64, count)
    # One row for each value placed so far: first step, last step, start, end.
    placed = np.empty((4, count), np.int64)
    offsets = [0] * count
    size = 0
    order = sorted(range(count), key=lambda i: (-lifetimes[i].nbytes, lifetimes[i].first))
    for done, index in enumerate(order):
        wanted = lifetimes[index]
        first, last, starts, ends = placed[:, :done]
        alive = np.flatnonzero((first <= wanted.last) & (last >= wanted.first))
        offsets[index] = _lowest_gap(starts[alive], ends[alive], wanted.nbytes)
        end = offsets[index] + int(sizes[index])
        placed[:, done] = (wanted.first, wanted.last, offsets[index], end)
        size = max(size, end)
    return offsets, size


def _lowest_gap(starts: np.ndarray, ends: np.ndarray, nbytes: int) -> int:
    """Return the lowest aligned offset where `nbytes` lie between the ranges."""
    if not len(starts):
        return 0
    order = np.lexsort((ends, starts))
    starts, ends = starts[order], ends[order]
    free = np.zeros(len(ends) + 1, np.int64)
    np.maximum.accumulate(-(-ends // ALIGNMENT) * ALIGNMENT, out=free[1:])
    fits = np.flatnonzero(free[:-1] + nbytes <= starts)
    return int(free[fits[0]] if len(fits) else free[-1])
