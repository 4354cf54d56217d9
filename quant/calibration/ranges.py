"""Ranges of activations for static quantization: what is kept of a value, and how a range is cut.

Every rule looks at the multiset of values only, `average` at the ends that each sample had.
Sources: TensorRT's entropy calibration (2048 bins folded to 128 levels) and the moving average of
onnxruntime's calibrator (weight 0.01).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedError
from halfbyte.ir.activation_scheme import REACH
from halfbyte.quant.calibration.histogram import Histogram

AVERAGE_WEIGHT = 0.01
ENTROPY_BINS, ENTROPY_LEVELS = 2048, 128
# Ends that `mse` tries: coarse fractions of the full range, then finer ones around the best.
COARSE, FINE, ROUNDS = 12, 9, 3
SMALLEST_FRACTION = 0.05
E4M3, LARGEST_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn), REACH["float"]
OF_INTEGERS = ("entropy",)
BY_ERROR = ("mse",)  # for which a value counts by what becomes of its error

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """How ranges are cut.

    method: a name in METHODS. percentile: of the values that `percentile` keeps. levels: steps of
    the quantized grid. symmetric: the range is the same on both sides of zero. floats: the grid is
    that of float8 (e4m3), whose largest value stands for the ends; symmetric only.
    """

    method: str = "mse"
    percentile: float = 99.999
    levels: int = 255
    symmetric: bool = False
    floats: bool = False


@dataclass
class Observed:
    """What is kept of the values of an activation over all samples."""

    histogram: Histogram = field(default_factory=Histogram)
    average: tuple[float, float] | None = None

    def add(self, values: NDArray[np.float32], columns: NDArray[np.int64] | None = None) -> None:
        """Take the values of one sample; columns: as for `Histogram.add`.

        Raises:
            ValueError: one is NaN or infinite.
        """
        if not values.size:
            return
        self.histogram.add(values, columns)
        low, high = float(values.min()), float(values.max())
        if self.average is not None:
            old_low, old_high = self.average
            low = old_low + AVERAGE_WEIGHT * (low - old_low)
            high = old_high + AVERAGE_WEIGHT * (high - old_high)
        self.average = low, high

    def merged(self, other: Observed) -> Observed:
        """Return what stands for two activations that share a range."""
        ends = [pair for pair in (self.average, other.average) if pair is not None]
        both = (min(a for a, _ in ends), max(b for _, b in ends)) if ends else None
        return Observed(self.histogram.merged(other.histogram), both)


def minmax(observed: Observed, rule: Rule) -> tuple[float, float]:
    """Return the smallest and the largest value."""
    return observed.histogram.low, observed.histogram.high


def average(observed: Observed, rule: Rule) -> tuple[float, float]:
    """Return the moving averages of the samples' ends."""
    assert observed.average is not None
    return observed.average


def percentile(observed: Observed, rule: Rule) -> tuple[float, float]:
    """Return the ends that cut off equally much on both sides, inside min and max."""
    histogram = observed.histogram
    cut = (100.0 - rule.percentile) / 200.0
    shares = np.concatenate([[0.0], np.cumsum(histogram.counts) / histogram.total])
    edges = histogram.edges
    # Empty bins make equal shares: of these the innermost edges count.
    first = int(np.searchsorted(shares, cut, "right")) - 1
    last = int(np.searchsorted(shares, 1.0 - cut, "left"))
    low = _between(edges, shares, first, cut)
    high = _between(edges, shares, last - 1, 1.0 - cut)
    return max(low, histogram.low), min(high, histogram.high)


def _between(edges: Floats, shares: Floats, index: int, share: float) -> float:
    index = min(max(index, 0), len(edges) - 2)
    step = shares[index + 1] - shares[index]
    part = 0.0 if step <= 0 else (share - shares[index]) / step
    return float(edges[index] + min(max(part, 0.0), 1.0) * (edges[index + 1] - edges[index]))


def magnitude_bins(histogram: Histogram) -> tuple[Floats, float]:
    """Return counts of magnitudes in at most ENTROPY_BINS bins from zero on, and their width."""
    side = len(histogram.counts) // 2
    counts = (histogram.counts[side:] + histogram.counts[:side][::-1]).astype(np.float64)
    counts[0] = counts[1]  # zeros of a Relu are exact on every grid: they would outweigh the rest
    width = histogram.width
    reach = int(np.max(np.flatnonzero(counts), initial=0)) + 1
    while reach > ENTROPY_BINS:
        counts, width, reach = counts.reshape(-1, 2).sum(1), width * 2, -(-reach // 2)
    return counts[:reach], width


def divergence(counts: Floats, stop: int, levels: int) -> float:
    """Return KL of the first `stop` bins, the rest clipped into the last, from `levels` of them."""
    kept = counts[:stop].copy()
    kept[-1] += counts[stop:].sum()
    starts = np.arange(levels) * stop // levels
    sums = np.add.reduceat(counts[:stop], starts)
    filled = np.add.reduceat((counts[:stop] > 0).astype(np.float64), starts)
    widths = np.diff(np.append(starts, stop))
    means = np.divide(sums, filled, out=np.zeros(levels), where=filled > 0)
    folded = np.where(counts[:stop] > 0, np.repeat(means, widths), 0.0)
    p, q = kept / kept.sum(), folded / max(folded.sum(), 1e-300)
    there = p > 0
    smooth = np.maximum(q, 1e-9)  # what is clipped into an empty bin costs much, not all
    return float((p[there] * np.log(p[there] / smooth[there])).sum())


def entropy(observed: Observed, rule: Rule) -> tuple[float, float]:
    """Return the symmetric cut whose 128 levels lose least of the distribution of magnitudes."""
    histogram = observed.histogram
    counts, width = magnitude_bins(histogram)
    stops = range(ENTROPY_LEVELS, len(counts) + 1)
    if not len(stops) or not counts.sum():
        return histogram.low, histogram.high
    found = [divergence(counts, stop, ENTROPY_LEVELS) for stop in stops]
    limit = stops[int(np.argmin(found))] * width
    return max(histogram.low, -limit), min(histogram.high, limit)


def squared_errors(
    centers: Floats, counts: Floats, lows: Floats, highs: Floats, levels: int
) -> Floats:
    """Return the squared error of rounding to a grid over each range; zero is on every grid."""
    step = np.maximum((highs - lows) / levels, 1e-300)[:, None]
    offset = np.rint(-lows[:, None] / step)
    codes = np.clip(np.rint(centers / step), -offset, levels - offset)
    return np.asarray(((codes * step - centers) ** 2) @ counts)


def float8_errors(centers: Floats, counts: Floats, highs: Floats) -> Floats:
    """Return the squared error of rounding to float8 whose largest value stands for each high."""
    scale = np.maximum(highs / LARGEST_E4M3, 1e-300)[:, None]
    ratio = np.clip(centers / scale, -LARGEST_E4M3, LARGEST_E4M3).astype(np.float32)
    codes = ratio.astype(E4M3).astype(np.float64)
    return np.asarray(((codes * scale - centers) ** 2) @ counts)


def mse(observed: Observed, rule: Rule) -> tuple[float, float]:
    """Return the range whose grid has the least squared error: coarse ends first, then finer."""
    centers, whole = observed.histogram.used()
    counts = whole.astype(np.float64)
    low, high = min(observed.histogram.low, 0.0), max(observed.histogram.high, 0.0)
    if rule.symmetric:
        high = max(-low, high)
        low = -high
    if high == low:
        return low, high
    best, span = np.ones(2), np.linspace(SMALLEST_FRACTION, 1.0, COARSE)
    reach = (1.0 - SMALLEST_FRACTION) / (COARSE - 1)
    first = True
    for _ in range(ROUNDS):
        lows = span if first else _around(best[0], reach)
        highs = span if first else _around(best[1], reach)
        if rule.symmetric or low == 0.0 or high == 0.0:
            pairs = np.stack([highs, highs], 1)
        else:
            pairs = np.stack(np.meshgrid(lows, highs, indexing="ij"), -1).reshape(-1, 2)
        ends = pairs * np.asarray([low, high])
        errors = [
            float8_errors(centers, counts, part[:, 1])
            if rule.floats
            else squared_errors(centers, counts, part[:, 0], part[:, 1], rule.levels)
            for part in np.array_split(ends, max(1, len(ends) * len(centers) >> 20))
        ]
        best = pairs[int(np.argmin(np.concatenate(errors)))]
        reach = reach if first else 2 * reach / (FINE - 1)
        first = False
    return float(best[0] * low), float(best[1] * high)


def _around(best: float, reach: float) -> Floats:
    return np.clip(np.linspace(best - reach, best + reach, FINE), SMALLEST_FRACTION, 1.0)


METHODS: dict[str, Callable[[Observed, Rule], tuple[float, float]]] = {
    "minmax": minmax,
    "average": average,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def check_method(name: str) -> None:
    """Check that a method is known.

    Raises:
        UnsupportedError: it is not.
    """
    if name not in METHODS:
        raise UnsupportedError(f"calibration method {name!r}", "quantize", list(METHODS))


def chosen_range(observed: list[Observed], rule: Rule) -> tuple[float, float]:
    """Return the range for activations that share one; zero lies inside.

    observed: at least one; those without a value are left out.
    """
    check_method(rule.method)
    whole = reduce(Observed.merged, observed)
    if not whole.histogram.total:
        return 0.0, 0.0
    low, high = METHODS[rule.method](whole, rule)
    low, high = min(low, 0.0), max(high, 0.0)
    if rule.symmetric:
        high = max(-low, high)
        low = -high
    return low, high
