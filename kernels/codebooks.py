"""Codebooks of ggml's types: which value, or group of values, a stored index can mean.

A block of the other IQ types stores an index into a list of points; a point is `group` levels, one
for each value. The lists are data of the `gguf` package, read when the first such type is used.
IQ1_M has the points of IQ1_S.

Raises (all functions): KeyError for a kind without a codebook.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What the 4-bit indices of IQ4_NL and IQ4_XS mean, and twice what those of MXFP4 and NVFP4 mean
# (E2M1: sign, 2 bits of exponent, 1 of mantissa; index 8 is a second zero).
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)

# Kinds with a list of points, and the kind whose list each of them has.
GRID_KINDS = {
    "IQ2_XXS": "IQ2_XXS",
    "IQ2_XS": "IQ2_XS",
    "IQ2_S": "IQ2_S",
    "IQ3_XXS": "IQ3_XXS",
    "IQ3_S": "IQ3_S",
    "IQ1_S": "IQ1_S",
    "IQ1_M": "IQ1_S",
}


@dataclass(frozen=True, eq=False)
class Codebook:
    """Points as level numbers: digits [points, group] uint8; levels: what each number means."""

    kind: str
    digits: NDArray[np.uint8]
    levels: NDArray[np.int8]

    @property
    def group(self) -> int:
        """Return the values of a point."""
        return int(self.digits.shape[1])

    @property
    def size(self) -> int:
        """Return how many points there are."""
        return int(self.digits.shape[0])

    @property
    def values(self) -> NDArray[np.int32]:
        """Return the points [points, group] as the integers that decoding takes."""
        return self.levels[self.digits].astype(np.int32)


def codebook(kind: str) -> Codebook:
    """Return the codebook of an IQ kind."""
    return _load(GRID_KINDS[kind])


@cache
def _load(kind: str) -> Codebook:
    from gguf import quants

    source: Any = getattr(quants, kind)
    size, group = source.grid_shape
    levels = np.array(source.grid_map, np.int8)
    packed = np.frombuffer(bytes.fromhex(source.grid_hex.decode("ascii")), np.uint8)
    bits = 2 if len(levels) <= 4 else 4
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    digits = (packed[:, None] >> shifts) & np.uint8((1 << bits) - 1)
    return Codebook(kind, np.ascontiguousarray(digits.reshape(size, group)), levels)
