"""Scales that several rows share: the largest magnitudes that such rows must agree on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.grid import group_count

Float = NDArray[np.float32]


def largest_per_group(rows: Float, group_size: int) -> Float:
    """Return the largest magnitude of each group: [rows, columns] to [rows, groups]."""
    if not group_size or group_size >= rows.shape[1]:
        whole: Float = np.abs(rows).max(axis=1, initial=0, keepdims=True)
        return whole
    starts = np.arange(0, group_count(rows.shape[1], group_size) * group_size, group_size)
    largest: Float = np.maximum.reduceat(np.abs(rows), starts, axis=1)
    return largest


def spread_over_rows(rows: Float, shared_rows: int) -> Float:
    """Return [rows, n] in which each `shared_rows` rows (0: all) hold their maximum."""
    if shared_rows == 1 or not rows.size:
        return rows
    step = shared_rows or len(rows)
    largest = np.maximum.reduceat(rows, np.arange(0, len(rows), step), axis=0)
    return np.repeat(largest, step, axis=0)[: len(rows)]
