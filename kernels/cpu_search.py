"""The search kernel that better encoders share: the best of many scales for each group."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.kernels import cpu

Float = NDArray[np.float32]


def levels_array(levels: tuple[int, ...]) -> tuple[Float, bool]:
    """Return ascending levels as float32, and whether they are consecutive integers."""
    plain = len(levels) == levels[-1] - levels[0] + 1
    return np.array(levels, np.float32), plain


def least_error(
    x: Float,
    weight: Float,
    levels: tuple[int, ...],
    scale: Float | None = None,
    minimum: Float | None = None,
    first_half: NDArray[np.uint16] | None = None,
    halves: int = 0,
    both_signs: bool = False,
) -> tuple[NDArray[np.int32], Float]:
    """Return the best candidate of each group and its weighted squared error, both [groups].

    x, weight: [groups, values]; scale, minimum: [groups, candidates]; values are scale * level +
    minimum. Instead of scale, first_half [groups]: bits of the first of `halves` consecutive
    float16 scales; with both_signs candidate halves + i is the negative of candidate i. The first
    of equal candidates wins. By numpy where the extension is missing, with the same bits.

    Raises:
        ValueError: a wrong dtype or shape.
    """
    candidates = halves if scale is None else scale.shape[1]
    if not cpu.available():
        if scale is None:
            assert first_half is not None
            scale = half_candidates(first_half, halves, both_signs)
        return least_error_reference(x, weight, levels, scale, minimum)
    values, plain = levels_array(levels)
    chosen, error = np.empty(len(x), np.int32), np.empty(len(x), np.float32)
    cpu.native().least_error(
        *(None if a is None else np.ascontiguousarray(a) for a in (x, weight, scale, minimum)),
        first_half,
        candidates,
        both_signs,
        values,
        plain,
        chosen,
        error,
    )
    return chosen, error


def half_candidates(first: NDArray[np.uint16], count: int, both_signs: bool) -> Float:
    """Return the float16 numbers that `first_half` names: [groups, candidates] float32."""
    bits = first[:, None] + np.arange(count, dtype=np.uint16)
    sizes: Float = bits.astype(np.uint16).view(np.float16).astype(np.float32)
    return np.concatenate([sizes, -sizes], axis=1) if both_signs else sizes


def nearest_level(steps: Float, levels: tuple[int, ...]) -> Float:
    """Return the nearest levels; halves to even among integers, else to the upper level."""
    values, plain = levels_array(levels)
    if plain:
        found: Float = np.rint(np.clip(steps, values[0], values[-1]))
        return found
    middles = (values[:-1] + values[1:]) * np.float32(0.5)
    return values[np.searchsorted(middles, steps, side="right")]


def reciprocal(scale: Float) -> Float:
    """Return 1 / scale, 0 for 0."""
    inverse: Any = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    return inverse  # type: ignore[no-any-return]


def ordered_sums(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of rows [n, values], added in order, so that they are the same anywhere."""
    sums: NDArray[np.float64] = np.add.accumulate(terms, axis=1)[:, -1]
    return sums


def least_error_reference(
    x: Float, weight: Float, levels: tuple[int, ...], scale: Float, minimum: Float | None
) -> tuple[NDArray[np.int32], Float]:
    """Return what `least_error` does, by numpy alone."""
    lift = np.zeros_like(scale) if minimum is None else minimum
    inverse = reciprocal(scale)
    error = np.zeros_like(scale)
    for value, w in zip(x.T[:, :, None], weight.T[:, :, None], strict=True):
        level = nearest_level((value - lift) * inverse, levels)
        gap = value - (scale * level + lift)
        error += w * (gap * gap)
    chosen = error.argmin(axis=1)[:, None]
    return chosen[:, 0].astype(np.int32), np.take_along_axis(error, chosen, 1)[:, 0]
