"""Scale searches of ggml's file encoder, vectorized over blocks.

Arrays are [values of a block, blocks] float32, so each step works on all blocks at once while the
sums inside a block run one value after the other in float32: their order decides bytes.

Source: the routines that ggml-quants.c calls for weights with an importance matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Codes = NDArray[np.int32]

ZERO_BLOCK = np.float32(1e-15)
_ROUNDER = np.float32(
    12582912.0
)  # 1.5 * 2^23: adding it leaves the rounded integer in the mantissa


def nearest_int(values: Float) -> Codes:
    """Return values rounded half to even, by ggml's mantissa trick (also for what overflows it)."""
    bits: Codes = (values + _ROUNDER).view(np.int32)
    return (bits & 0x007FFFFF) - 0x00400000


def ordered_sum(terms: Float) -> Float:
    """Return the sum over the first axis, added in order."""
    total: Float = np.zeros(terms.shape[1:], np.float32)
    for term in terms:
        total += term
    return total


def signed_extreme(x: Float) -> Float:
    """Return per block the signed value of largest magnitude; the first wins; +0 for all zeros."""
    first = np.abs(x).argmax(axis=0)[None]
    extreme: Float = np.take_along_axis(x, first, 0)[0]
    return np.where(extreme == 0, np.float32(0), extreme)


def lowest_and_highest(x: Float) -> tuple[Float, Float]:
    """Return per block the least and the greatest value; of zeros the first keeps its sign."""
    low, high = x.argmin(axis=0)[None], x.argmax(axis=0)[None]
    return np.take_along_axis(x, low, 0)[0], np.take_along_axis(x, high, 0)[0]


def _symmetric_try(x: Float, weight: Float, iscale: Float, nmax: int) -> tuple[Codes, Float, Float]:
    codes = np.clip(nearest_int(iscale * x), -nmax, nmax - 1)
    step = codes.astype(np.float32)
    return codes, ordered_sum((weight * x) * step), ordered_sum((weight * step) * step)


@np.errstate(all="ignore")
def symmetric_search(x: Float, weight: Float, nmax: int) -> tuple[Codes, Float]:
    """Return (codes in 0..2 nmax - 1 with nmax for zero, scale) of least weighted squared error.

    x, weight: [n, blocks]. Tries nineteen scales around -nmax / extreme.
    """
    extreme = signed_extreme(x)
    codes, sum_lx, sum_l2 = _symmetric_try(x, weight, np.float32(-nmax) / extreme, nmax)
    scale = np.where(sum_l2 != 0, sum_lx / sum_l2, np.float32(0))
    best = scale * sum_lx
    for step in (*range(-9, 0), *range(1, 10)):
        factor = np.float32(nmax) + np.float32(0.1) * np.float32(step)
        trial, sum_lx, sum_l2 = _symmetric_try(x, weight, -factor / extreme, nmax)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        codes = np.where(better, trial, codes)
        scale = np.where(better, sum_lx / sum_l2, scale)
        best = np.where(better, scale * sum_lx, best)
    zero = np.abs(extreme) < ZERO_BLOCK
    return np.where(zero, 0, codes + nmax), np.where(zero, np.float32(0), scale)


def _error(
    x: Float, weight: Float, codes: Codes, scale: Float, low: Float, absolute: bool
) -> Float:
    difference = scale * codes.astype(np.float32) + low - x
    return ordered_sum(weight * (np.abs(difference) if absolute else difference * difference))


class _Fit:
    """Weighted least squares for scale and minimum, given codes."""

    def __init__(self, x: Float, weight: Float) -> None:
        self.x, self.weight = x, weight
        self.sum_w, self.sum_x = weight[0].copy(), weight[0] * x[0]
        for w, value in zip(weight[1:], x[1:], strict=True):
            self.sum_w += w
            self.sum_x += w * value

    def solve(self, codes: Codes) -> tuple[Any, Float, Float]:
        """Return (solvable, scale, minimum); the minimum is never above 0."""
        step = codes.astype(np.float32)
        weighted = self.weight * step
        sum_l, sum_l2 = ordered_sum(weighted), ordered_sum(weighted * step)
        sum_xl = ordered_sum(weighted * self.x)
        determinant = self.sum_w * sum_l2 - sum_l * sum_l
        scale = (self.sum_w * sum_xl - self.sum_x * sum_l) / determinant
        low = (sum_l2 * self.sum_x - sum_l * sum_xl) / determinant
        scale = np.where(low > 0, sum_xl / sum_l2, scale)
        return determinant > 0, scale, np.where(low > 0, np.float32(0), low)


@np.errstate(all="ignore")
def scale_min_search(
    x: Float,
    weight: Float,
    nmax: int,
    start: float,
    delta: float,
    steps: int,
    absolute: bool = False,
) -> tuple[Codes, Float, Float]:
    """Return (codes in 0..nmax, scale, minimum <= 0) of least weighted error.

    x, weight: [n, blocks]. Tries steps + 1 scales; each trial starts from the best minimum so far.
    """
    lowest, high = lowest_and_highest(x)
    low = np.where(lowest > 0, np.float32(0), lowest)
    flat = high <= low
    least = low
    fit = _Fit(x, weight)
    iscale = np.float32(nmax) / (high - low)
    scale = np.float32(1) / iscale
    codes = np.clip(nearest_int(iscale * (x - low)), 0, nmax)
    best = _error(x, weight, codes, scale, low, absolute)
    for step in range(steps + 1):
        wanted = np.float32(start) + np.float32(delta) * np.float32(step) + np.float32(nmax)
        trial = np.clip(nearest_int(wanted / (high - low) * (x - low)), 0, nmax)
        solvable, trial_scale, trial_low = fit.solve(trial)
        error = _error(x, weight, trial, trial_scale, trial_low, absolute)
        better = solvable & (error < best)
        codes = np.where(better, trial, codes)
        best = np.where(better, error, best)
        scale = np.where(better, trial_scale, scale)
        low = np.where(better, trial_low, low)
    zero = np.float32(0)
    return np.where(flat, 0, codes), np.where(flat, zero, scale), np.where(flat, least, low)
