"""A histogram that is told values in pieces and depends only on which values came.

Bins are equally wide and their edges whole multiples of a power of two, so that a range that has
to grow joins pairs of bins: neither order nor pieces change the counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SIDE = 1 << 13
LOWEST_EXPONENT = -100
PIECE = 1 << 20

Counts = NDArray[np.int64]


@dataclass
class Histogram:
    """Counts of values in [-2**exponent, 2**exponent), SIDE bins on either side of zero.

    low, high: the smallest and the largest value. exponent: None before the first value.
    """

    counts: Counts = field(default_factory=lambda: np.zeros(2 * SIDE, np.int64))
    exponent: int | None = None
    low: float = np.inf
    high: float = -np.inf

    @property
    def total(self) -> int:
        """Return how many values came."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Return how wide a bin is."""
        return float(2.0 ** ((self.exponent or 0) - 13))

    @property
    def edges(self) -> NDArray[np.float64]:
        """Return the 2 * SIDE + 1 edges of the bins."""
        return np.asarray(np.arange(-SIDE, SIDE + 1) * self.width, np.float64)

    @property
    def centers(self) -> NDArray[np.float64]:
        """Return the middles of the bins."""
        return np.asarray((np.arange(-SIDE, SIDE) + 0.5) * self.width, np.float64)

    def add(self, values: NDArray[np.float32], columns: Counts | None = None) -> None:
        """Count finite values of any shape.

        columns: how often values of each place of the last axis count.

        Raises:
            ValueError: one is NaN or infinite.
        """
        flat = values.reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("NaN or infinite values")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach(needed_exponent(low, high))
        factor = np.float32(1.0 / self.width)
        for start in range(0, flat.size, PIECE):
            places = np.floor(flat[start : start + PIECE] * factor).astype(np.int64) + SIDE
            if columns is None:
                self.counts += np.bincount(places, minlength=2 * SIDE)
                continue
            # Sums of whole numbers below 2**53: exact, in whatever order.
            often = columns[np.arange(start, start + len(places)) % len(columns)]
            sums = np.bincount(places, often.astype(np.float64), 2 * SIDE)
            self.counts += sums.astype(np.int64)

    def _reach(self, exponent: int) -> None:
        """Widen the bins until 2**exponent lies inside."""
        if self.exponent is None:
            self.exponent = exponent
        while self.exponent < exponent:
            joined = self.counts.reshape(SIDE, 2).sum(1)
            self.counts = np.zeros(2 * SIDE, np.int64)
            self.counts[SIDE // 2 : SIDE // 2 + SIDE] = joined
            self.exponent += 1

    def merged(self, other: Histogram) -> Histogram:
        """Return the histogram of the values of both."""
        result = Histogram(self.counts.copy(), self.exponent, self.low, self.high)
        if other.exponent is None:
            return result
        twin = Histogram(other.counts.copy(), other.exponent, other.low, other.high)
        result._reach(other.exponent)
        assert result.exponent is not None
        twin._reach(result.exponent)
        counts = result.counts + twin.counts
        return Histogram(
            counts, result.exponent, min(self.low, other.low), max(self.high, other.high)
        )

    def used(self) -> tuple[NDArray[np.float64], Counts]:
        """Return middles and counts of the bins that are not empty.

        Middles of the outermost bins are drawn inside the smallest and the largest value.
        """
        places = np.flatnonzero(self.counts)
        return np.clip(self.centers[places], self.low, self.high), self.counts[places]


def needed_exponent(low: float, high: float) -> int:
    """Return the least power of two above the magnitude of both ends."""
    _, exponent = np.frexp(max(-low, high, 0.0))
    return max(int(exponent), LOWEST_EXPONENT)
