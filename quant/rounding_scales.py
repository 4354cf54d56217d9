"""Scales that a group of columns may get: the best one by weighted error, and others to try.

A search looks at one group of columns after the other, on values that rounding of earlier columns
has already moved. Every scale, zero point and offset that it gives is one the encoding can store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.affine import WIDEST_SIGNED_EXTREME, Affine
from halfbyte.ir.encodings.dense import FLOATS
from halfbyte.ir.encodings.encoding import Array, Encoding
from halfbyte.ir.encodings.ggml_blocks import SmallBlock
from halfbyte.ir.encodings.ggml_fp4 import MXFP4, NVFP4, ue4m3_values
from halfbyte.ir.encodings.ggml_legacy import LegacyBlock
from halfbyte.kernels.cpu_search import least_error

Float = NDArray[np.float32]

# Multiples of (largest value / largest level) that are looked at, by the number of levels.
_REACH = {2: (0.2, 1.1), 3: (0.3, 1.1), 4: (0.4, 1.15), 8: (0.5, 1.15), 16: (0.6, 1.15)}
RASTER = 32
NARROW = (0.8, 0.96, 5)  # of 7 and 8 bits, where no range is worth leaving
# Steps around the best scale that are tried by rounding the group for good.
AROUND = (0.97, 1.03, 0.94, 1.06, 0.9, 1.1)
OTHER_SIGN = (1.0, 0.95, 1.05, 0.9, 1.1)


@dataclass(frozen=True)
class Candidates:
    """Grids for one group, the best by weighted error first: arrays [rows, candidates].

    fields: stored numbers that scale and offset are made of.
    """

    scale: Float
    zero: Float | None = None
    offset: Float | None = None
    fields: Mapping[str, Array] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Return how many there are."""
        return int(self.scale.shape[1])

    def picked(self, index: NDArray[Any]) -> Candidates:
        """Return the one candidate `index` [rows] of each row."""

        def pick(array: Array | None) -> Any:
            return None if array is None else np.take_along_axis(array, index[:, None], axis=1)

        made = {name: pick(array) for name, array in self.fields.items()}
        return Candidates(pick(self.scale), pick(self.zero), pick(self.offset), made)


class Search(Protocol):
    """Where the grids of an encoding come from."""

    @property
    def block(self) -> int:
        """Return the columns whose scales depend on each other; 0 for the whole row."""

    def begin(self, x: Float, weight: Float) -> None:
        """Look at a block x [rows, columns] before its first group; weight: [columns]."""

    def candidates(self, group: int, x: Float, weight: Float, more: bool) -> Candidates:
        """Return grids for values x [rows, columns] of a group; weight: [columns].

        group: its place in the block. more: give some to try, else only the best.
        """

    def nearest(self, scale: Float, minimum: Float, present: Candidates) -> Candidates:
        """Return grids next to a scale and a value of code 0 [rows, 1], a group's `present` one."""


def group_weight(weight: Float, x: Float) -> Float:
    """Return weights [columns] as [rows, columns], largest 1."""
    top = np.float32(weight.max(initial=0))
    scaled = weight / top if top > 0 else np.ones_like(weight)
    return np.ascontiguousarray(np.broadcast_to(scaled, x.shape), np.float32)


def _raster(levels: tuple[int, ...], x: Float) -> tuple[Float, Float]:
    """Return the scale that puts the largest magnitude on the outer level, and its multiples."""
    outer = max(-levels[0], levels[-1])
    known = [count for count in _REACH if count <= len(levels)] or [2]
    low, high = _REACH[max(known)]
    factors = np.linspace(low, high, RASTER)
    if len(levels) > 64:
        factors = np.linspace(0.9, 1.02, RASTER)
    unit = np.abs(x).max(axis=1, initial=0) / np.float32(outer)
    return unit, np.concatenate([[1.0], factors]).astype(np.float32)


@dataclass(frozen=True)
class OneScale:
    """A float scale for each group, of either sign where the levels are not symmetric.

    levels: code - zero, ascending. rounded: what the file holds of a scale.
    """

    block: int
    levels: tuple[int, ...]
    rounded: Callable[[Float], Float]
    both_signs: bool = True

    def begin(self, x: Float, weight: Float) -> None:
        """Do nothing: groups are independent."""

    def candidates(self, group: int, x: Float, weight: Float, more: bool) -> Candidates:
        """Return the scale of least weighted error; more: scales around it, of both signs."""
        unit, factors = _raster(self.levels, x)
        if self.both_signs:
            factors = np.concatenate([factors, -factors])
        tried = self.rounded(unit[:, None] * factors)
        chosen, _ = least_error(x, group_weight(weight, x), self.levels, scale=tried)
        best = np.take_along_axis(tried, chosen[:, None], axis=1)
        if not more:
            return Candidates(best)
        steps = [1.0, *AROUND] + ([-step for step in OTHER_SIGN] if self.both_signs else [])
        return Candidates(self.rounded(best * np.array(steps, np.float32)))

    def nearest(self, scale: Float, minimum: Float, present: Candidates) -> Candidates:
        """Return the scale as the file holds it."""
        return Candidates(self.rounded(scale))


@dataclass(frozen=True)
class ListedScales:
    """One of a few scales: powers of two, or small floats; `stored` ascending."""

    block: int
    levels: tuple[int, ...]
    stored: Float
    below: int
    above: int

    def begin(self, x: Float, weight: Float) -> None:
        """Do nothing: groups are independent."""

    def candidates(self, group: int, x: Float, weight: Float, more: bool) -> Candidates:
        """Return the scales next to the one that holds the largest magnitude, the best first."""
        largest = np.abs(x).max(axis=1, initial=0) / np.float32(self.levels[-1])
        first = np.searchsorted(self.stored, largest)[:, None]
        places = np.clip(first + np.arange(-self.below, self.above + 1), 0, len(self.stored) - 1)
        tried = np.ascontiguousarray(self.stored[places])
        chosen, _ = least_error(x, group_weight(weight, x), self.levels, scale=tried)
        best = np.take_along_axis(tried, chosen[:, None], axis=1)
        return Candidates(np.concatenate([best, tried], axis=1) if more else best)

    def nearest(self, scale: Float, minimum: Float, present: Candidates) -> Candidates:
        """Return the stored scales on both sides."""
        place = np.searchsorted(self.stored, scale) + np.array([-1, 0])
        return Candidates(self.stored[np.clip(place, 0, len(self.stored) - 1)])


@dataclass(frozen=True)
class Ranges:
    """A scale and where the range begins: an offset, or a zero point.

    made: (low, high) [rows, candidates] to a grid that the file can hold. has_zero: ranges
    include 0.
    """

    block: int
    top: int
    made: Callable[[Float, Float], Candidates]
    has_zero: bool

    def begin(self, x: Float, weight: Float) -> None:
        """Do nothing: groups are independent."""

    def candidates(self, group: int, x: Float, weight: Float, more: bool) -> Candidates:
        """Return the range of least weighted error; more: ranges around it."""
        if self.has_zero:
            low, high = x.min(axis=1, initial=0), x.max(axis=1, initial=0)
        else:
            low, high = x.min(axis=1), x.max(axis=1)
        span = (high - low)[:, None]
        cuts = np.linspace(0, 0.28 if self.top > 3 else 0.5, 8) if self.top <= 31 else _FEW
        below, above = (np.array(c, np.float32) for c in np.meshgrid(cuts, cuts))
        tried = self.made(
            low[:, None] + below.reshape(-1) * span, high[:, None] - above.reshape(-1) * span
        )
        minimum = minimum_of(tried)
        levels = tuple(range(self.top + 1))
        chosen, _ = least_error(x, group_weight(weight, x), levels, tried.scale, minimum)
        best = tried.picked(chosen)
        if not more:
            return best
        start = minimum_of(best)
        width = best.scale * np.float32(self.top)
        widths, shifts = np.array(_AROUND_RANGE, np.float32).T
        middle = start + width / 2 + shifts * best.scale
        half = width * widths / 2
        return self.made(middle - half, middle + half)

    def nearest(self, scale: Float, minimum: Float, present: Candidates) -> Candidates:
        """Return the range as the file holds it."""
        return self.made(minimum, minimum + scale * np.float32(self.top))


_FEW = (0.0, 0.01, 0.02, 0.04)
# (width, shift in steps) of ranges around the best one.
_AROUND_RANGE = (
    (1.0, 0.0),
    (1.0, 0.25),
    (1.0, -0.25),
    (1.0, 0.5),
    (1.0, -0.5),
    (0.96, 0.0),
    (1.04, 0.0),
    (0.92, 0.0),
    (1.08, 0.0),
    (0.96, 0.33),
    (0.96, -0.33),
    (1.04, 0.33),
    (1.04, -0.33),
)


def minimum_of(grid: Candidates) -> Float:
    """Return the value of code 0."""
    if grid.offset is not None:
        return grid.offset
    if grid.zero is None:
        return np.zeros_like(grid.scale)
    lifted: Float = -(grid.zero * grid.scale)
    return lifted


def _to_dtype(name: str) -> Callable[[Float], Float]:
    dtype = FLOATS[name]

    def rounded(values: Float) -> Float:
        with np.errstate(over="ignore"):
            held: Float = values.astype(dtype).astype(np.float32)
        return np.where(np.isfinite(held), held, np.float32(0))

    return rounded


def _affine(encoding: Affine) -> Search:
    rounded = _to_dtype(encoding.scale_dtype)
    top, half = encoding.levels, 1 << (encoding.bits - 1)
    if encoding.symmetric:
        signed = encoding.bits <= WIDEST_SIGNED_EXTREME
        levels = tuple(range(-half if signed else 1 - half, half))
        return OneScale(encoding.group_size, levels, rounded, signed)

    def made(low: Float, high: Float) -> Candidates:
        # Beyond 0 only by the rounding of the zero point.
        low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
        scale = rounded((high - low) / np.float32(top))
        zero = np.zeros_like(scale)
        with np.errstate(over="ignore"):
            np.divide(-low, scale, out=zero, where=scale != 0)
        if encoding.zero_point == "uint8":
            return Candidates(scale, np.clip(np.rint(zero), 0, top).astype(np.float32))
        return Candidates(scale, rounded(np.clip(zero, 0, top)))

    return Ranges(encoding.group_size, top, made, has_zero=True)


def _pairs(low: Float, high: Float, top: int) -> Candidates:
    half = _to_dtype("float16")
    return Candidates(half((high - low) / np.float32(top)), offset=half(low))


@dataclass(frozen=True)
class PlainRange:
    """The range from smallest to largest value; `nearest` as in the search that it stands for."""

    row: Affine  # the same encoding with one group for a row
    search: Search

    @property
    def block(self) -> int:
        """Return the columns whose scales depend on each other."""
        return self.search.block

    def begin(self, x: Float, weight: Float) -> None:
        """Do nothing: groups are independent."""

    def candidates(self, group: int, x: Float, weight: Float, more: bool) -> Candidates:
        """Return the only grid."""
        scales = self.row.fit(x)
        zero = scales.zero_point
        return Candidates(scales.scale, None if zero is None else zero.astype(np.float32))

    def nearest(self, scale: Float, minimum: Float, present: Candidates) -> Candidates:
        """Return grids next to a scale and a value of code 0."""
        return self.search.nearest(scale, minimum, present)


def search_of(encoding: Encoding, plain: bool = False) -> Search | None:
    """Return how scales of an encoding are found; None where only its own `fit` knows.

    plain: affine groups take their whole range.
    """
    from halfbyte.quant.rounding_superblocks import SUPERBLOCKS, SuperBlocks

    if isinstance(encoding, Affine):
        row = replace(encoding, group_size=0, act_order=False)
        return PlainRange(row, _affine(encoding)) if plain else _affine(encoding)
    if isinstance(encoding, LegacyBlock):
        grid = encoding.grid
        if encoding.HAS_OFFSET:
            return Ranges(32, grid.high, lambda low, high: _pairs(low, high, grid.high), False)
        lowest = -127 if encoding.BITS == 8 else grid.low - grid.zero_point
        levels = tuple(range(lowest, grid.high - grid.zero_point + 1))
        return OneScale(32, levels, _to_dtype("float16"), encoding.BITS < 8)
    if encoding.name in SUPERBLOCKS:
        return SuperBlocks(encoding)
    if isinstance(encoding, MXFP4):
        powers = np.ldexp(np.float32(1), np.arange(-127, 127)).astype(np.float32)
        return ListedScales(32, encoding.LEVELS, powers, 2, 1)
    if isinstance(encoding, NVFP4):
        return ListedScales(16, encoding.LEVELS, ue4m3_values()[:127], 7, 4)
    if isinstance(encoding, SmallBlock):
        levels = tuple(level - encoding.ZERO for level in encoding.LEVELS)
        both = levels[0] != -levels[-1]
        return OneScale(encoding.GROUP, levels, _to_dtype("float16"), both)
    return None
