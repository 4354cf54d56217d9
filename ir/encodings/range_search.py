"""Scales of a range per group: rounded to the stored dtype, narrowed where importance says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.encoding import Array, Scales
from halfbyte.ir.encodings.grid import UNNAMED

Float = NDArray[np.float32]

SHRUNK_PERCENT = range(98, 58, -2)


def as_stored(values: Float, dtype: np.dtype[Any], what: str, wider: str) -> Float:
    """Return the float32 values that `dtype` keeps of `values`; wider: a type that holds more.

    Raises:
        QuantizationError: one leaves the range of `dtype`.
    """
    with np.errstate(over="ignore"):
        rounded: Float = values.astype(dtype).astype(np.float32)
    if not np.isfinite(rounded).all():
        raise QuantizationError(UNNAMED, f"{what} leaves {dtype.name}'s range; choose {wider}")
    return rounded


def best_range(
    scales_of: Callable[[np.float32], Scales],
    gap_of: Callable[[Scales], Float],
    importance: Float | None,
) -> Scales:
    """Return the scales of the plain range, or with importance the best of 21 for each group.

    The 21 are 1.0 to 0.6 times the plain range; the best has the least weighted squared error.
    scales_of: the scales of ranges times a factor; gap_of: decoded - wanted [rows, columns].
    """
    best = scales_of(np.float32(1))
    if importance is None:
        return best
    least = _group_errors(gap_of(best), importance, best.group_size)
    for percent in SHRUNK_PERCENT:
        trial = scales_of(np.float32(percent / 100))
        error = _group_errors(gap_of(trial), importance, best.group_size)
        better = error < least
        least = np.where(better, error, least)
        best = replace(
            best,
            scale=np.where(better, trial.scale, best.scale),
            zero_point=_chosen(better, trial.zero_point, best.zero_point),
            offset=_chosen(better, trial.offset, best.offset),
        )
    return best


def _group_errors(gap: Float, importance: Float, group_size: int) -> Float:
    starts = np.arange(0, gap.shape[1], group_size)
    errors: Float = np.add.reduceat(gap * gap * importance, starts, axis=1)
    return errors


def _chosen(better: Array, trial: Array | None, best: Array | None) -> Any:
    return None if trial is None or best is None else np.where(better, trial, best)
