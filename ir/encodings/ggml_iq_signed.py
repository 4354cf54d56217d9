"""ggml's 2- and 3-bit codebook types: points of positive odd levels, signs beside them.

Some types store 7 signs for 8 values; the eighth makes the number of negatives even. The encoder
then turns the value that matters least.

Source: quantize_row_iq2_xxs_impl, _iq2_xs_impl, _iq2_s_impl, _iq3_xxs_impl, _iq3_s_impl of
ggml-quants.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.encodings.ggml_iq import (
    BLOCK,
    Fields,
    IQBlock,
    grouped,
    no_point,
    two_step_scales,
    weights_of,
)
from halfbyte.ir.encodings.ggml_iq_points import Points
from halfbyte.ir.encodings.ggml_search import Codes, Float, nearest_int, ordered_sum

Bools = NDArray[np.bool_]


class Refit(Enum):
    """Which points of a group are chosen again on the best scale."""

    ALL = "all"
    OFF_GRID = "those whose codes were no point"
    ALL_IF_OFF_GRID = "all if the codes of one were no point"


@dataclass(frozen=True)
class SignedPoints(IQBlock):
    """Base of the types with signs."""

    EVEN_SIGNS: ClassVar[bool]
    ENERGY: ClassVar[float]  # times the block's mean square, in the weights
    TRIALS: ClassVar[int]  # scales tried on each side of the first
    DELTA: ClassVar[float]  # from one trial to the next, in levels
    REFIT: ClassVar[Refit]
    NOTHING: ClassVar[float]  # a group of smaller values is stored as zeros
    FUDGE: ClassVar[float]  # times the block's scale
    KEEPS_CODES: ClassVar[bool]  # also in a block of scale 0

    def _codes(self, index: Codes, negative: Array) -> Codes:
        magnitude = self.points.values[index].reshape(len(index), BLOCK)
        return np.where(negative, -magnitude, magnitude)

    def _points_and_signs(self, codes: Codes) -> Fields:
        points = self.points
        digit_of = np.full(128, -1, np.int32)
        digit_of[points.book.levels] = np.arange(points.base)
        digits = digit_of[np.minimum(np.abs(codes), 127)]
        if (digits < 0).any():
            raise no_point(self.name)
        index = points.index_of(points.keys(digits.T)).T
        negative = codes < 0
        odd = negative.reshape(-1, 8).sum(axis=1) % 2
        if (index < 0).any() or (self.EVEN_SIGNS and odd.any()):
            raise no_point(self.name)
        return {"index": index, "negative": negative}

    def _nearest(self, wanted: Array) -> tuple[Codes, Array]:
        points = self.points
        negative, magnitude = wanted < 0, np.abs(wanted)
        if self.EVEN_SIGNS:
            turned = least_of_odd(negative.T, magnitude.T).T
            negative = negative ^ turned
            magnitude = np.where(turned, -magnitude, magnitude)
        index, _ = points.nearest(magnitude.reshape(-1, points.group))
        return index.reshape(len(wanted), -1), negative

    def _plain_weight(self, x: Float) -> Float:
        """Return the weights of x [blocks, 256] without importance."""
        return x * x

    def _first_scale(self, x: Float, weight: Float) -> tuple[Float, Float]:
        """Return (scale, range of the trials) of groups x, weight [group, n]."""
        largest = x.max(axis=0)
        return largest / np.float32(2 * self.points.base - 1), largest

    def _search(self, x: Float, importance: Float | None) -> Fields:
        count = len(x)
        if importance is None:
            weight = grouped(self._plain_weight(x), self.GROUP)
        else:
            weight = grouped(weights_of(x, importance, self.ENERGY), self.GROUP)
        values = grouped(x, self.GROUP)
        negative = values < 0
        magnitude = np.where(negative, -values, values)
        if self.EVEN_SIGNS:
            turned = least_of_odd(negative, (weight * values) * values)
            negative ^= turned
            magnitude = np.where(turned, -magnitude, magnitude)
        live = np.flatnonzero(magnitude.max(axis=0) >= np.float32(self.NOTHING))
        scale, reach = self._first_scale(magnitude[:, live], weight[:, live])
        tried = ~(reach <= 0)
        live, scale, reach = live[tried], scale[tried], reach[tried]
        groups = Groups(self.points, magnitude[:, live], weight[:, live])
        found, best, inverted = self._best_points(groups, scale, reach)
        index = np.zeros((len(found), values.shape[1]), np.int32)
        index[:, live] = found
        scales = np.zeros(values.shape[1], np.float32)
        scales[live] = best
        signs = np.zeros_like(negative)
        signs[:, live] = negative[:, live] ^ inverted
        return self._finished(index.T.reshape(count, -1), signs.T.reshape(count, -1), scales)

    def _finished(self, index: Codes, negative: Array, scales: Float) -> Fields:
        per_block = scales.reshape(len(index), -1)
        d, sc = two_step_scales(per_block, 31, self.HIGHEST_SCALE)
        if not self.KEEPS_CODES:
            nothing = (per_block.max(axis=1) == 0)[:, None]
            index, negative = np.where(nothing, 0, index), negative & ~nothing
        return {"index": index, "negative": negative, "d": d * np.float32(self.FUDGE), "sc": sc}

    def _best_points(
        self, groups: Groups, scale: Float, reach: Float
    ) -> tuple[Codes, Float, Bools]:
        """Return (index [points, n], scale, whether all signs must turn)."""
        top = np.float32(2 * groups.points.base - 1)
        index = np.zeros((groups.count, len(scale)), np.int32)
        on_grid = np.full(index.shape, self.REFIT is Refit.OFF_GRID)
        best = np.zeros_like(scale)
        for step in range(-self.TRIALS, self.TRIALS + 1):
            inverse = (top + np.float32(step) * np.float32(self.DELTA)) / reach
            trial, known = groups.points_at(inverse, np.float32(1) / inverse)
            sum_qx, sum_q2 = groups.sums(trial)
            better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
            scale = np.where(better, sum_qx / sum_q2, scale)
            best = np.where(better, scale * sum_qx, best)
            index = np.where(better, trial, index)
            on_grid = np.where(better, known, on_grid)
        again = np.ones_like(on_grid)
        if self.REFIT is Refit.OFF_GRID:
            again = ~on_grid
        elif self.REFIT is Refit.ALL_IF_OFF_GRID:
            again = np.broadcast_to(~on_grid.all(axis=0), on_grid.shape)
        again = again & (scale > 0)
        renewed, _ = groups.points_at(np.float32(1) / scale, scale)
        index = np.where(again, renewed, index)
        sum_qx, sum_q2 = groups.sums(index)
        fitted = again.any(axis=0) & (sum_q2 > 0)
        scale = np.where(fitted, sum_qx / sum_q2, scale)
        return index, np.abs(scale), scale < 0


class Groups:
    """Groups that are searched together: x, weight [group, n], points of the codebook."""

    def __init__(self, points: Points, x: Float, weight: Float) -> None:
        """Prepare what all trials share."""
        self.points, self.count = points, len(x) // points.group
        self._x = x.reshape(self.count, points.group, x.shape[1])
        root = np.sqrt(weight).reshape(self._x.shape)
        # [group, points of a group * n] for the neighbour search.
        self._flat_x = _flat(self._x)
        self._flat_root = _flat(root)
        self._weight = weight.reshape(self._x.shape)
        self._weighted = self._weight * self._x

    def points_at(self, inverse: Float, scale: Float) -> tuple[Codes, Bools]:
        """Return (index, whether the codes were a point) [points, n] at scales [n]."""
        points = self.points
        levels = nearest_int(np.float32(0.5) * (inverse * self._x - np.float32(1)))
        digits = np.clip(levels, 0, points.base - 1)
        keys = points.keys(digits.reshape(self.count * points.group, len(scale)))
        index = points.index_of(keys).reshape(-1)
        off = np.flatnonzero(index < 0)
        if len(off):
            index[off] = points.best_neighbour(
                keys.reshape(-1)[off],
                self._flat_x[:, off],
                self._flat_root[:, off],
                scale[off % len(scale)],
            )
        known = np.ones(len(index), np.bool_)
        known[off] = False
        return index.reshape(keys.shape), known.reshape(keys.shape)

    def sums(self, index: Codes) -> tuple[Float, Float]:
        """Return the weighted sums of value * level and level^2 [n] of points [points, n]."""
        levels = np.moveaxis(self.points.levels[:, index], 0, 1)
        shape = (len(index) * self.points.group, index.shape[1])
        sum_qx = ordered_sum((self._weighted * levels).reshape(shape))
        return sum_qx, ordered_sum(((self._weight * levels) * levels).reshape(shape))


def _flat(values: Float) -> Float:
    octets, group, count = values.shape
    return np.ascontiguousarray(np.moveaxis(values, 0, 1)).reshape(group, octets * count)


def least_of_odd(negative: Array, worth: Array) -> Bools:
    """Return where signs turn to make each eight's negatives even: its first least `worth`.

    negative, worth: [values, n]; eights follow each other along the first axis.
    """
    eights = negative.reshape(len(negative) // 8, 8, negative.shape[1])
    odd = eights.sum(axis=1) % 2 == 1
    least = worth.reshape(eights.shape).argmin(axis=1)
    turned: Bools = (np.arange(8)[:, None] == least[:, None, :]) & odd[:, None, :]
    return turned.reshape(negative.shape)
