"""The codes that each value of a matrix may take, columns first, for solvers that go by column.

A matrix [rows, columns] is held transposed, [columns, rows], so that one column of all rows is
contiguous. Rounding is that of the encodings' own `assign`, bit for bit:

    even steps   code = clip(rint((w - offset) / scale) + zero)      value = (code - zero) * scale
                 `fractional`: clip(rint((w - offset) / scale + zero))        + offset
    levels       code = how many bounds are < w / scale + zero       value = (levels[code] - zero)
                                                                             * scale
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Encoding, Scales
from halfbyte.ir.encodings.float8 import Float8
from halfbyte.ir.encodings.fp4 import Float4
from halfbyte.ir.encodings.ggml_blocks import SmallBlock
from halfbyte.ir.encodings.nf4 import Quantile4

Float32 = NDArray[np.float32]
Codes = NDArray[np.int16]


@dataclass(frozen=True)
class ColumnGrid:
    """The grid of every group of every row; all arrays C-contiguous.

    scale, zero, offset: [groups, rows] float32 (zero and offset None for 0).
    group_of_column: [columns] int32. low, high: the codes that exist, for even steps.
    fractional: zero is added before rounding to whole codes, not after.
    levels: [count] float32 ascending, in units of the scale; codes are then indices 0..count-1.
    bounds: [count - 1] float32, between the levels; on a bound the lower level is taken, so a tie
    that goes up has its bound at `np.nextafter(middle, -inf)`. None: the middles.
    stored: [count] int32, the encoding's own code of each level; None: the index.
    """

    scale: Float32
    group_of_column: NDArray[np.int32]
    low: int = 0
    high: int = 0
    zero: Float32 | None = None
    offset: Float32 | None = None
    fractional: bool = False
    levels: Float32 | None = None
    bounds: Float32 | None = None
    stored: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        """Fill in bounds and the range of the codes where levels are given."""
        if self.levels is None:
            return
        if self.bounds is None:
            middles = (self.levels[1:] + self.levels[:-1]) / np.float32(2)
            object.__setattr__(self, "bounds", middles.astype(np.float32))
        object.__setattr__(self, "low", 0)
        object.__setattr__(self, "high", len(self.levels) - 1)

    @property
    def columns(self) -> int:
        """Return the columns of the matrix."""
        return len(self.group_of_column)

    @property
    def rows(self) -> int:
        """Return the rows of the matrix."""
        return int(self.scale.shape[1])

    def assign(self, values: Float32, columns: slice | int = slice(None)) -> Codes:
        """Return the nearest codes of values [columns, rows] (or [rows] of one column)."""
        scale, zero, offset = self._of(columns)
        if offset is not None:
            values = values - offset
        steps = np.zeros(values.shape, np.float32)
        with np.errstate(over="ignore"):
            np.divide(values, scale, out=steps, where=scale != 0)
        if self.bounds is not None:
            if zero is not None:
                steps += zero
            return np.searchsorted(self.bounds, steps).astype(np.int16)
        if zero is not None and self.fractional:
            steps += zero
        np.rint(steps, out=steps)
        if zero is not None and not self.fractional:
            steps += zero
        return np.clip(steps, np.float32(self.low), np.float32(self.high)).astype(np.int16)

    def decode(self, codes: Codes, columns: slice | int = slice(None)) -> Float32:
        """Return the float32 values of codes [columns, rows] (or [rows] of one column)."""
        scale, zero, offset = self._of(columns)
        steps = codes.astype(np.float32) if self.levels is None else self.levels[codes]
        if zero is not None:
            steps = steps - zero
        values: Float32 = steps * scale
        return values if offset is None else values + offset

    def stored_codes(self, codes_t: Codes) -> NDArray[np.int32]:
        """Return the encoding's codes [rows, columns] for codes [columns, rows] of this grid."""
        codes = np.ascontiguousarray(codes_t.T)
        return codes.astype(np.int32) if self.stored is None else self.stored[codes]

    def row_range(self, start: int, stop: int) -> ColumnGrid:
        """Return the grid of rows start..stop."""

        def part(array: Float32 | None) -> Float32 | None:
            return None if array is None else np.ascontiguousarray(array[:, start:stop])

        return ColumnGrid(
            np.ascontiguousarray(self.scale[:, start:stop]),
            self.group_of_column,
            self.low,
            self.high,
            part(self.zero),
            part(self.offset),
            self.fractional,
            self.levels,
            self.bounds,
            self.stored,
        )

    def _of(self, columns: slice | int) -> tuple[Float32, Float32 | None, Float32 | None]:
        groups = self.group_of_column[columns]
        zero = None if self.zero is None else self.zero[groups]
        offset = None if self.offset is None else self.offset[groups]
        return self.scale[groups], zero, offset


def column_grid(encoding: Encoding, scales: Scales, columns: int) -> ColumnGrid | None:
    """Return the grid on which `encoding.assign(_, scales)` puts rows of `columns` values.

    None for encodings whose values are not chosen one by one (IQ1, IQ2, IQ3) or have no codes.
    """
    given = scales.group_of_column
    order = np.arange(columns) // max(scales.group_size, 1) if given is None else given
    group = np.ascontiguousarray(order, np.int32)
    scale, offset = _columns_first(scales.scale), _columns_first(scales.offset)
    zero = _columns_first(scales.zero_point)
    assert scale is not None
    if isinstance(encoding, SmallBlock):
        stored = np.array(encoding.LEVELS, np.int32)
        return ColumnGrid(scale, group, zero=zero, levels=stored.astype(np.float32), stored=stored)
    if isinstance(encoding, (Float8, Float4)):
        assert encoding.codebook is not None
        levels = np.array(encoding.codebook.levels, np.float32)
        stored, bounds = levels.astype(np.int32), _even_bounds(levels)
        return ColumnGrid(scale, group, levels=levels, bounds=bounds, stored=stored)
    if isinstance(encoding, Quantile4):
        levels = np.ascontiguousarray(encoding.levels, np.float32)
        bounds = np.nextafter((levels[1:] + levels[:-1]) / 2, np.float32(-np.inf))
        return ColumnGrid(scale, group, levels=levels, bounds=bounds)
    grid = encoding.grid
    if grid is None:
        return None
    fractional = scales.zero_point is not None and scales.zero_point.dtype.kind == "f"
    return ColumnGrid(scale, group, grid.low, grid.high, zero, offset, fractional)


def _even_bounds(levels: Float32) -> Float32:
    """Return the bounds of small floats, whose ties go to the level an even way from 0."""
    middles = (levels[1:] + levels[:-1]) / np.float32(2)
    from_zero = np.arange(len(middles)) - int(np.searchsorted(levels, 0))
    below = np.nextafter(middles, np.float32(-np.inf))
    bounds: Float32 = np.where(from_zero % 2, below, middles)
    return bounds


def _columns_first(
    array: NDArray[np.float32] | NDArray[np.int32] | None,
) -> Float32 | None:
    return None if array is None else np.ascontiguousarray(array.T, np.float32)
