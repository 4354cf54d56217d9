"""Where the values of a plan lie in one arena, so that dead values give their room to new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """A value's bytes and the first and last step that touch it."""

    nbytes: int
    first: int
    last: int


def place(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Return the offset of each value and the size of the arena in bytes.

    Values whose lifetimes overlap never share a byte. Larger values are placed first, each in the
    lowest gap that fits.
    """
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    size = 0
    order = sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].nbytes, lifetimes[i].first))
    for index in order:
        wanted = lifetimes[index]
        neighbours = sorted(
            (offsets[other], offsets[other] + lifetimes[other].nbytes)
            for other in placed
            if lifetimes[other].first <= wanted.last and wanted.first <= lifetimes[other].last
        )
        offset = 0
        for start, stop in neighbours:
            if offset + wanted.nbytes <= start:
                break
            offset = max(offset, -(-stop // ALIGNMENT) * ALIGNMENT)
        offsets[index] = offset
        placed.append(index)
        size = max(size, offset + wanted.nbytes)
    return offsets, size
