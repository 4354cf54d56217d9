"""ggml's 1-bit codebook types IQ1_S and IQ1_M.

A point is 8 values of -1, 0 and 1; all values of a group are shifted by an eighth up or down. In
eighths, a code is 8 level + 1 or 8 level - 1. Fields, in byte order:

    IQ1_S  d f16 | qs[32] | qh[8] u16: 4 x 3 bits index, 3 bits sc, 1 bit shift down    per 32
    IQ1_M  qs[32] | qh[16]: a nibble per 8 values, 3 bits index, 1 bit shift down
           | scales[4] u16: 4 x 3 bits sc (per 16), 4 bits of d

Source: quantize_row_iq1_s_impl and quantize_row_iq1_m_impl of ggml-quants.c.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.encodings.ggml_iq import (
    BLOCK,
    Fields,
    IQBlock,
    bit_fields,
    grouped,
    joined_fields,
    no_point,
    put_words,
    two_step_scales,
    weights_of,
    words,
)
from halfbyte.ir.encodings.ggml_k_fields import half, put_half
from halfbyte.ir.encodings.ggml_search import Codes, Float, ordered_sum
from halfbyte.kernels.layouts import LAYOUTS

EIGHTH = np.float32(0.125)
UP = np.array([-1, 0, 1], np.float32) + EIGHTH
DOWN = np.array([-1, 0, 1], np.float32) - EIGHTH
Split = tuple[int, int, int, Float, Float]  # cuts, shifts, weighted sums of x q and q^2


@dataclass(frozen=True)
class _OneBit(IQBlock):
    """Both types: a group is sorted, cut in three at the best two places, then put on points."""

    STEP: ClassVar[float] = 1 / 8
    HIGHEST_SCALE: ClassVar[int] = 7
    SHIFTED: ClassVar[int]  # points that share a shift
    NOTHING: ClassVar[float]
    FUDGE: ClassVar[float]

    def _codes(self, index: Codes, negative: Array) -> Codes:
        levels = self.points.values[index]
        shift = np.where(negative, np.int32(-1), np.int32(1))[:, :, None]
        codes: Codes = (8 * levels + shift).reshape(len(index), BLOCK)
        return codes

    def _points_and_signs(self, codes: Codes) -> Fields:
        down = codes % 8 == 7
        levels = (codes + np.where(down, 1, -1)) // 8
        known = (np.abs(levels) <= 1).all() and (down | (codes % 8 == 1)).all()
        shared = down.reshape(len(codes), -1, 8 * self.SHIFTED)
        if not known or (shared != shared[:, :, :1]).any():
            raise no_point(self.name)
        points = self.points
        index = points.index_of(points.keys(levels.T + 1)).T
        if (index < 0).any():
            raise no_point(self.name)
        return {"index": index, "negative": np.repeat(shared[:, :, 0], self.SHIFTED, axis=1)}

    def _nearest(self, wanted: Array) -> tuple[Codes, Array]:
        levels = wanted.reshape(-1, 8) / 8
        up, up_error = self.points.nearest(levels - float(EIGHTH))
        down, down_error = self.points.nearest(levels + float(EIGHTH))
        shape = (len(wanted), -1, self.SHIFTED)
        better = down_error.reshape(shape).sum(axis=2) < up_error.reshape(shape).sum(axis=2)
        negative = np.repeat(better, self.SHIFTED, axis=1)
        return np.where(
            negative, down.reshape(negative.shape), up.reshape(negative.shape)
        ), negative

    def _search(self, x: Float, importance: Float | None) -> Fields:
        count = len(x)
        weight = x * x if importance is None else weights_of(x, importance, 2)
        values, weights = grouped(x, self.GROUP), grouped(weight, self.GROUP)
        live = np.flatnonzero(np.abs(values).max(axis=0) >= np.float32(self.NOTHING))
        levels, scale, down, found = _best_levels(self, values[:, live], weights[:, live])
        live = live[found]
        octets = self.GROUP // 8
        shift = np.where(down, -EIGHTH, EIGHTH)
        index, scale = self._on_points(
            levels[:, found], values[:, live], weights[:, live], scale[found], shift[:, found]
        )
        indices = np.zeros((octets, values.shape[1]), np.int32)
        indices[:, live] = index
        negative = np.zeros((octets, values.shape[1]), np.bool_)
        negative[:, live] = down[:, found]
        scales = np.zeros(values.shape[1], np.float32)
        scales[live] = scale
        per_block = scales.reshape(count, -1)
        d, sc = two_step_scales(per_block, 15, self.HIGHEST_SCALE)
        empty = (per_block.max(axis=1) == 0)[:, None]
        fields = {"index": indices.T.reshape(count, -1), "d": d, "sc": sc}
        # Shifts are written with the scales: a block without scale has none.
        fields["negative"] = negative.T.reshape(count, -1) & ~empty
        fields["d"] = self._block_scale(x, weight, fields) * np.float32(self.FUDGE)
        return fields

    def _on_points(
        self, levels: Codes, x: Float, weight: Float, scale: Float, shift: Float
    ) -> tuple[Codes, Float]:
        """Return (index [octets, n], scale) of levels 0..2 [group, n]; shift: [octets, n]."""
        points = self.points
        keys = points.keys(levels)
        index = points.index_of(keys)
        off = index < 0
        where, n = np.nonzero(off)
        octets = (len(index), 8, x.shape[1])
        parts, weights = x.reshape(octets), weight.reshape(octets)
        if len(n):
            index[off] = points.best_neighbour(
                keys[off], parts[where, :, n].T, weights[where, :, n].T, scale[n], shift[off]
            )
        q = np.moveaxis(points.levels[:, index], 0, 1) + shift[:, None, :]
        sum_qx, sum_q2 = _sums(q, parts, weights, x.shape)
        better = off.any(axis=0) & (sum_qx > 0) & (sum_q2 > 0)
        return index, np.where(better, sum_qx / sum_q2, scale)

    def _block_scale(self, x: Float, weight: Float, fields: Fields) -> Float:
        """Return d before its last factor, [blocks]."""
        return fields["d"]

    @abstractmethod
    def _splits(self, x: Float, weight: Float, order: Array) -> Iterator[Split]:
        """Yield all splits of sorted groups x, weight [group, n] in the encoder's order.

        order: [group, n], the place of each sorted value in its group. The shifts of a split are
        a number: bit i means that octet group octets - 1 - i is shifted down.
        """

    @abstractmethod
    def _shifts(self, number: Codes) -> Array:
        """Return whether each octet is shifted down, [octets, n]."""


def _sums(q: Float, x: Float, weight: Float, shape: tuple[int, ...]) -> tuple[Float, Float]:
    weighted = weight * q
    return ordered_sum((weighted * x).reshape(shape)), ordered_sum((weighted * q).reshape(shape))


def _best_levels(kind: _OneBit, x: Float, weight: Float) -> tuple[Codes, Float, Array, Array]:
    """Return (levels 0..2 [group, n], scale, shifted down [octets, n], whether one was found)."""
    order = np.argsort(x, axis=0, kind="stable")
    ranked = np.take_along_axis(x, order, 0), np.take_along_axis(weight, order, 0)
    count = x.shape[1]
    scale, best = np.zeros(count, np.float32), np.full(count, np.finfo(np.float32).min)
    cuts, shifts = np.full((2, count), -1), np.zeros(count, np.int32)
    for first, second, shift, sum_qx, sum_q2 in kind._splits(*ranked, order):
        better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
        if better.any():
            scale[better] = sum_qx[better] / sum_q2[better]
            best[better] = scale[better] * sum_qx[better]
            cuts[:, better] = [[first], [second]]
            shifts[better] = shift
    rank = np.argsort(order, axis=0)
    levels = (rank >= cuts[0]).astype(np.int32) + (rank >= cuts[1])
    mirrored = scale < 0
    down = kind._shifts(shifts) ^ mirrored
    return np.where(mirrored, 2 - levels, levels), np.abs(scale), down, cuts[0] >= 0


def _running(values: Float) -> Float:
    """Return the sums of the first 0, 1, ... values, [group + 1, n]."""
    total = np.zeros((len(values) + 1, values.shape[1]), np.float32)
    for i, value in enumerate(values):
        total[i + 1] = total[i] + value
    return total


@dataclass(frozen=True)
class IQ1_S(_OneBit):  # noqa: N801
    """2048 points, scale and shift per 32."""

    NAME = "IQ1_S"
    GROUP = 32
    SHIFTED = 4
    NEEDS_IMPORTANCE = True
    ERROR_BOUND = 1.5
    NOTHING = 1e-12
    FUDGE = 1.125

    def _splits(self, x: Float, weight: Float, order: Array) -> Iterator[Split]:
        sum_x, sum_w = _running(weight * x), _running(weight)
        for i in range(len(x) + 1):
            low_x, mid_x, high_x = sum_x[i], sum_x[i:] - sum_x[i], sum_x[-1] - sum_x[i:]
            low_w, mid_w, high_w = sum_w[i], sum_w[i:] - sum_w[i], sum_w[-1] - sum_w[i:]
            both = []
            for a, b, c in (UP, DOWN):
                qx = low_x * a + mid_x * b + high_x * c
                both.append((qx, low_w * a * a + mid_w * b * b + high_w * c * c))
            for j in range(len(mid_x)):
                for shift, (qx, q2) in enumerate(both):
                    yield i, i + j, shift, qx[j], q2[j]

    def _shifts(self, number: Codes) -> Array:
        return np.broadcast_to(number == 1, (4, len(number)))

    def _stored_scale(self, blocks: Array) -> Float:
        return half(blocks, LAYOUTS[self.NAME].offsets["d"])

    def _read(self, blocks: Array) -> Fields:
        at = LAYOUTS[self.NAME].offsets
        high = words(blocks, at["qh"], self.block_bytes, "<u2")
        fields = bit_fields(high, 3, 4)
        return {
            "index": blocks[:, at["qs"] : at["qh"]].astype(np.int32) | (fields << 8),
            "negative": np.repeat(high >> np.uint32(15), 4, axis=1) == 1,
            "sc": ((high >> np.uint32(12)) & np.uint32(7)).astype(np.int32),
            "d": half(blocks, at["d"]),
        }

    def _write(self, blocks: Array, found: Mapping[str, Array]) -> None:
        at = LAYOUTS[self.NAME].offsets
        upper = joined_fields(found["index"] >> 8, 3, 4)
        upper |= found["sc"].astype(np.uint32) << np.uint32(12)
        upper |= found["negative"][:, ::4].astype(np.uint32) << np.uint32(15)
        put_words(blocks, at["qs"], found["index"] & 255, "u1")
        put_words(blocks, at["qh"], upper, "<u2")
        put_half(blocks, at["d"], found["d"])


@dataclass(frozen=True)
class IQ1_M(_OneBit):  # noqa: N801
    """2048 points, scale per 16, shift per 8."""

    NAME = "IQ1_M"
    GROUP = 16
    SHIFTED = 1
    ERROR_BOUND = float("inf")  # zeros weigh nothing without importance
    NOTHING = 1e-7
    FUDGE = 1.1125

    def _splits(self, x: Float, weight: Float, order: Array) -> Iterator[Split]:
        halves = [np.where(order // 8 == h, weight, np.float32(0)) for h in range(2)]
        sum_x = [_running(np.where(order // 8 == h, weight * x, np.float32(0))) for h in range(2)]
        sum_w = [_running(w) for w in halves]
        for i in range(len(x) + 1):
            qx, q2 = [], []
            for h in range(2):
                both = sum_x[h][i] + sum_x[h][i:]
                for a, b, c in (UP, DOWN):
                    qx.append(sum_x[h][-1] * c - both)
                    low = sum_w[h][i] * (a * a - b * b)
                    q2.append(sum_w[h][-1] * c * c + low + sum_w[h][i:] * (b * b - c * c))
            sums = [(qx[k // 2] + qx[2 + k % 2], q2[k // 2] + q2[2 + k % 2]) for k in range(4)]
            for j in range(len(x) + 1 - i):
                for k, (sum_qx, sum_q2) in enumerate(sums):
                    yield i, i + j, k, sum_qx[j], sum_q2[j]

    def _shifts(self, number: Codes) -> Array:
        return np.stack([number >= 2, number % 2 == 1])

    def _block_scale(self, x: Float, weight: Float, fields: Fields) -> Float:
        shift = np.where(fields["negative"], -EIGHTH, EIGHTH)
        q = np.moveaxis(self.points.levels[:, fields["index"]], 0, -1) + shift[:, :, None]
        steps = np.repeat(2 * fields["sc"] + 1, self.GROUP, axis=1).astype(np.float32)
        levels = q.reshape(x.shape) * steps
        sum_qx, sum_q2 = _sums(levels.T, x.T, weight.T, (BLOCK, len(x)))
        fitted = np.where(sum_q2 > 0, sum_qx / sum_q2, fields["d"])
        return np.where(fields["d"] == 0, np.float32(0), fitted)

    def _stored_scale(self, blocks: Array) -> Float:
        top = words(blocks, LAYOUTS[self.NAME].offsets["scales"], self.block_bytes, "<u2")
        bits = joined_fields(top >> np.uint32(12), 4, 4).astype(np.uint16)
        return bits.view(np.float16)[:, 0].astype(np.float32)

    def _read(self, blocks: Array) -> Fields:
        at = LAYOUTS[self.NAME].offsets
        nibbles = bit_fields(blocks[:, at["qh"] : at["scales"]], 4, 2)
        return {
            "index": blocks[:, at["qs"] : at["qh"]].astype(np.int32) | ((nibbles & 7) << 8),
            "negative": nibbles >= 8,
            "sc": bit_fields(words(blocks, at["scales"], self.block_bytes, "<u2"), 3, 4),
            "d": self._stored_scale(blocks),
        }

    def _write(self, blocks: Array, found: Mapping[str, Array]) -> None:
        at = LAYOUTS[self.NAME].offsets
        nibbles = (found["index"] >> 8) | (found["negative"].astype(np.int32) << 3)
        d = found["d"].astype(np.float16).view(np.uint16)[:, None]
        top = bit_fields(d, 4, 4).astype(np.uint32) << np.uint32(12)
        put_words(blocks, at["qs"], found["index"] & 255, "u1")
        put_words(blocks, at["qh"], joined_fields(nibbles, 4, 2), "u1")
        put_words(blocks, at["scales"], joined_fields(found["sc"], 3, 4) | top, "<u2")
