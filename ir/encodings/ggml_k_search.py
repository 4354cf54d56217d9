"""Scale searches that only ggml's 256-value blocks use, vectorized over blocks.

Arrays are [values of a group, groups] float32, as in ggml_search.py: sums run value after value.

Source: the routines that ggml-quants.c calls for Q2_K to Q6_K.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.ggml_search import (
    ZERO_BLOCK,
    Codes,
    Float,
    nearest_int,
    ordered_sum,
    signed_extreme,
)

SWEEPS = 5
BLOCK = 256


class Descent:
    """Codes and their two weighted sums, improved one value at a time."""

    def __init__(self, x: Float, weight: Float, codes: Codes) -> None:
        """Start from `codes` [n, groups]."""
        self.x, self.weight, self.codes = x, weight, codes
        steps = codes.astype(np.float32)
        self.sum_lx = ordered_sum((weight * x) * steps)
        self.sum_l2 = ordered_sum((weight * steps) * steps)
        self.active = np.ones(x.shape[1], np.bool_)

    def sweep(self, low: int | None, high: int, early: bool) -> None:
        """Move each code in turn to where the scale of all others wants it, if that helps.

        early: the sum without the code must be above 0 before the move, not only after it.
        """
        moved = np.zeros_like(self.active)
        for i in range(len(self.x)):
            moved |= self._move(i, low, high, early)
        self.active &= moved

    def _move(self, i: int, low: int | None, high: int, early: bool) -> NDArray[np.bool_]:
        x, weight, old = self.x[i], self.weight[i], self.codes[i].astype(np.float32)
        lx = self.sum_lx - (weight * x) * old
        l2 = self.sum_l2 - (weight * old) * old
        possible = self.active & (lx > 0)
        if early:
            possible &= l2 > 0
        new = np.minimum(nearest_int(x * l2 / lx), high)
        if low is not None:
            new = np.maximum(new, low)
        steps = new.astype(np.float32)
        lx = lx + (weight * x) * steps
        l2 = l2 + (weight * steps) * steps
        better = possible & (new != self.codes[i])
        better &= lx * lx * self.sum_l2 > self.sum_lx * self.sum_lx * l2
        if not early:
            better &= l2 > 0
        self.codes[i] = np.where(better, new & 0xFF if early else new, self.codes[i])
        self.sum_lx = np.where(better, lx, self.sum_lx)
        self.sum_l2 = np.where(better, l2, self.sum_l2)
        moved: NDArray[np.bool_] = better
        return moved

    @property
    def scale(self) -> Float:
        """Return the scale of least weighted error."""
        return np.where(self.sum_l2 != 0, self.sum_lx / self.sum_l2, np.float32(0))


@np.errstate(all="ignore")
def signed_descent(x: Float, nmax: int) -> tuple[Codes, Float]:
    """Return (codes in 0..2 nmax - 1, scale) for weights x^2. x: [n, groups]."""
    extreme = signed_extreme(x)
    iscale = np.float32(-nmax) / extreme
    first = np.clip(nearest_int(iscale * x), -nmax, nmax - 1)
    descent = Descent(x, x * x, first)
    for _ in range(SWEEPS):
        descent.sweep(-nmax, nmax - 1, early=False)
    zero = np.abs(extreme) < ZERO_BLOCK
    return np.where(zero, 0, descent.codes + nmax), np.where(zero, np.float32(0), descent.scale)


@np.errstate(all="ignore")
def positive_search(x: Float, weight: Float, nmax: int) -> tuple[Codes, Float]:
    """Return (codes in 0..nmax, scale) for values that are not negative. x, weight: [n, groups].

    Some callers do pass negative values: their codes are kept as bytes, so -1 counts as 255.
    """
    largest = x.max(axis=0)

    def error(scale: Float, codes: Codes) -> Float:
        difference = x - scale * codes.astype(np.float32)
        return ordered_sum((weight * difference) * difference)

    iscale = np.float32(nmax) / largest
    best = error(np.float32(1) / iscale, nearest_int(iscale * x) & 0xFF)
    for step in (*range(-4, 0), *range(1, 5)):
        trial = (np.float32(0.1) * np.float32(step) + np.float32(nmax)) / largest
        codes = np.minimum(nearest_int(trial * x), nmax)
        found = error(np.float32(1) / trial, codes)
        better = found < best
        best = np.where(better, found, best)
        iscale = np.where(better, trial, iscale)
    descent = Descent(x, weight, np.minimum(nearest_int(iscale * x), nmax))
    descent.codes &= 0xFF
    for _ in range(SWEEPS):
        descent.sweep(None, nmax, early=True)
    zero = largest < ZERO_BLOCK
    return np.where(zero, 0, descent.codes), np.where(zero, np.float32(0), descent.scale)


def grouped(x: Float, group: int) -> Float:
    """Return [blocks, 256] as [group, blocks * groups per block], one column for each group."""
    return np.ascontiguousarray(x.reshape(-1, group).T)


def ungrouped(codes: Codes) -> Codes:
    """Undo `grouped`."""
    return np.ascontiguousarray(codes.T).reshape(-1, BLOCK)


def spread_energy(x: Float, importance: Float, factor: float) -> Float:
    """Return importance * sqrt(factor * mean square of the block + x^2), [blocks, 256]."""
    energy = np.float32(factor) * ordered_sum((x * x).T) / np.float32(BLOCK)
    weights: Float = importance * np.sqrt(energy[:, None] + x * x)
    return weights


def stored_half(values: Float) -> Float:
    """Return values after float16."""
    return values.astype(np.float16).astype(np.float32)


def rounded_again(x: Float, codes: Codes, step: Float, lift: Float, low: int, high: int) -> Codes:
    """Return the codes on the stored scales; groups of scale 0 keep theirs.

    x, codes: [group, groups]; step, lift: [groups].
    """
    again = np.clip(nearest_int((x + lift) / step), low, high) - low
    return np.where(step != 0, again, codes)


def largest_first(values: Float, most: int) -> tuple[Float, Codes]:
    """Return (d, integers) with the largest of each block on `most`: values [blocks, groups]."""
    largest = values.max(axis=1)
    inverse = np.where(largest > 0, np.float32(most) / largest, np.float32(0))
    # Subnormal scales overflow the inverse; the low byte is then what ggml stores.
    integers = nearest_int(inverse[:, None] * values) & 0xFF
    return np.where(largest > 0, largest / np.float32(most), np.float32(0)), integers
