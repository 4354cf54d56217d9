"""Grids of 256 columns whose groups' scales are codes times one number: K types and IQ4_XS.

The numbers of the block are chosen from all its values when its first column is reached; the code
of each group again when the group is reached, from what its values have become.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from halfbyte.ir.encodings.encoding import Array, Encoding
from halfbyte.ir.encodings.exhaustive_fields import SCALE_CODES
from halfbyte.kernels.cpu_search import least_error
from halfbyte.quant.rounding_scales import Candidates, Float, group_weight

BLOCK = 256
SUPERBLOCKS = tuple(SCALE_CODES)
# Steps of the codes (of scale, of minimum) that are looked at around those of the block's encoder.
WIDE = 4
_PAIRS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1), (1, 2))
_PAIRS_MORE = (*_PAIRS, (-1, -2), (2, 2), (-2, -2), (0, 2), (0, -2))
_ONES = (0, 1, -1, 2, -2, 3, -3)


class SuperBlocks:
    """The search of one encoding; holds the numbers of the block that was begun last."""

    def __init__(self, encoding: Encoding) -> None:
        """Take the encoding."""
        self._encoding = encoding
        kind: Any = encoding
        self.group = int(kind.GROUP)
        listed = getattr(encoding, "LEVELS", None)
        grid = encoding.grid
        if listed is None:
            assert grid is not None
            listed = range(grid.low - grid.zero_point, grid.high - grid.zero_point + 1)
        self.levels = tuple(listed)
        self.low, self.high = SCALE_CODES[encoding.name]
        self._fields: dict[str, Array] = {}

    @property
    def block(self) -> int:
        """Return the columns whose scales depend on each other."""
        return BLOCK

    def begin(self, x: Float, weight: Float) -> None:
        """Choose the numbers of the block x [rows, 256]."""
        importance = group_weight(weight, x[:1])[0]
        parts = self._encoding.encode(np.ascontiguousarray(x), importance)
        scales = self._encoding.unpack(parts, BLOCK).scales
        assert scales.fields is not None
        self._fields = dict(scales.fields)

    def candidates(self, group: int, x: Float, weight: Float, more: bool) -> Candidates:
        """Return the codes of least weighted error near the block's; more: codes around them."""
        d = self._fields["d"].astype(np.float32).reshape(-1, 1)
        sc = self._fields["sc"][:, group : group + 1].astype(np.int32)
        w = group_weight(weight, x)
        if "mn" not in self._fields:
            tried = np.clip(sc + _steps(WIDE), self.low, self.high)
            best = self._best(x, w, self._made(d, tried))
            if not more:
                return best
            near = np.clip(best.fields["sc"] + np.array(_ONES), self.low, self.high)
            return self._made(d, near)
        dmin = self._fields["dmin"].astype(np.float32).reshape(-1, 1)
        mn = self._fields["mn"][:, group : group + 1].astype(np.int32)
        one, other = np.repeat(_steps(WIDE), 2 * WIDE + 1), np.tile(_steps(WIDE), 2 * WIDE + 1)
        best = self._best(x, w, self._pairs(d, dmin, sc + one, mn + other))
        if not more:
            return best
        up, lift = np.array(_PAIRS_MORE).T
        return self._pairs(d, dmin, best.fields["sc"] + up, best.fields["mn"] + lift)

    def nearest(self, scale: Float, minimum: Float, present: Candidates) -> Candidates:
        """Return the codes on both sides, with the block's numbers as they are."""
        d = present.fields["d"].astype(np.float32)
        near = _floor_of(scale, d) + np.array([0, 1, -1, 2])
        if "mn" not in present.fields:
            return self._made(d, np.clip(near, self.low, self.high))
        dmin = present.fields["dmin"].astype(np.float32)
        lifts = _floor_of(-minimum, dmin) + np.array([0, 1, -1, 2])
        return self._pairs(d, dmin, np.repeat(near, 4, axis=1), np.tile(lifts, (1, 4)))

    def _best(self, x: Float, weight: Float, tried: Candidates) -> Candidates:
        chosen, _ = least_error(x, weight, self.levels, tried.scale, tried.offset)
        return tried.picked(chosen)

    def _made(self, d: Float, sc: Array) -> Candidates:
        fields = {"sc": sc, "d": np.broadcast_to(d, sc.shape)}
        return Candidates(np.ascontiguousarray(d * sc.astype(np.float32)), fields=fields)

    def _pairs(self, d: Float, dmin: Float, sc: Array, mn: Array) -> Candidates:
        sc, mn = np.clip(sc, self.low, self.high), np.clip(mn, self.low, self.high)
        scale = d * sc.astype(np.float32)
        offset = -(dmin * mn.astype(np.float32))
        fields = {"sc": sc, "mn": mn, "d": np.broadcast_to(d, sc.shape)}
        fields["dmin"] = np.broadcast_to(dmin, sc.shape)
        return Candidates(scale, offset=offset, fields=fields)


def _steps(reach: int) -> Array:
    return np.array(sorted(range(-reach, reach + 1), key=abs))


def _floor_of(value: Float, unit: Float) -> Array:
    steps = np.divide(value, unit, out=np.zeros_like(value), where=unit != 0)
    whole: Array = np.floor(np.clip(steps, -256, 256)).astype(np.int32)
    return whole
