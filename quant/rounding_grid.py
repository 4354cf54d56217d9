"""The grids of all groups of some rows, as they are chosen one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.encoding import Array, Encoding, Scales, Unpacked
from halfbyte.quant.column_grid import ColumnGrid, column_grid
from halfbyte.quant.rounding_scales import Candidates, Float, Search

Codes = NDArray[np.int16]


class GridState:
    """A grid [groups, rows] that starts as the encoding's own and is overwritten group by group.

    Columns stand in the order in which they are rounded: `order` [columns] names the weight's.
    by_group: groups are made of columns in that order, and the encoding stores which.
    """

    def __init__(
        self,
        encoding: Encoding,
        start: Scales,
        order: NDArray[np.int64],
        by_group: bool,
    ) -> None:
        """Take the scales that the encoding chose for these rows."""
        self.encoding, self.order, self.by_group = encoding, order, by_group
        self._start = replace(start, group_of_column=None)
        columns = len(order)
        found = column_grid(encoding, self._start, columns)
        assert found is not None
        place = np.arange(columns) if by_group else order
        group = found.group_of_column[place]
        self.grid: ColumnGrid = replace(found, group_of_column=np.ascontiguousarray(group))
        self.fields = {name: np.array(array) for name, array in (start.fields or {}).items()}

    @property
    def groups(self) -> int:
        """Return how many groups a row has."""
        return len(self.grid.scale)

    def columns_of(self, group: int) -> NDArray[np.intp]:
        """Return the places of a group's columns."""
        return np.flatnonzero(self.grid.group_of_column == group)

    @property
    def moves_zero(self) -> bool:
        """Whether groups have zero points of their own choice."""
        return isinstance(self.encoding, Affine) and not self.encoding.symmetric

    def put(
        self, group: int, chosen: Candidates, where: NDArray[np.bool_] | slice = slice(None)
    ) -> None:
        """Set the grid of a group to the only candidate of each row, in the rows `where`."""
        self.grid.scale[group, where] = chosen.scale[where, 0]
        if self.grid.zero is not None and chosen.zero is not None:
            self.grid.zero[group, where] = chosen.zero[where, 0]
        if self.grid.offset is not None and chosen.offset is not None:
            self.grid.offset[group, where] = chosen.offset[where, 0]
        for name, values in chosen.fields.items():
            held = self.fields[name]
            held[where, self._place(name, group)] = values[where, 0]

    def _place(self, name: str, group: int) -> int:
        return group * int(self.fields[name].shape[1]) // self.groups

    def at(self, group: int) -> Candidates:
        """Return the present grid of a group, one candidate."""
        grid = self.grid
        fields = {name: held[:, [self._place(name, group)]] for name, held in self.fields.items()}
        return Candidates(
            grid.scale[group][:, None],
            grid.zero[group][:, None] if grid.zero is not None and self.moves_zero else None,
            None if grid.offset is None else grid.offset[group][:, None],
            fields,
        )

    def put_shared(self, block: int, groups: range, d: Float, dmin: Float) -> None:
        """Set the numbers [rows] that the groups of a block share."""
        self.fields["d"][:, block] = d
        for group in groups:
            self.grid.scale[group] = d * self.fields["sc"][:, group].astype(np.float32)
        if self.grid.offset is not None:
            self.fields["dmin"][:, block] = dmin
            for group in groups:
                self.grid.offset[group] = -(dmin * self.fields["mn"][:, group].astype(np.float32))

    def copied(self) -> dict[str, Array]:
        """Return copies of all that may change, rows first."""
        grid = self.grid
        made = {name: held.copy() for name, held in self.fields.items()}
        arrays = {" scale": grid.scale, " zero": grid.zero, " offset": grid.offset}
        return made | {name: a.T.copy() for name, a in arrays.items() if a is not None}

    def restore(self, held: dict[str, Array], rows: NDArray[np.bool_]) -> None:
        """Put back what `copied` gave, in the rows given."""
        grid = self.grid
        arrays = {" scale": grid.scale, " zero": grid.zero, " offset": grid.offset}
        for name, values in held.items():
            array = arrays.get(name)
            target = self.fields[name] if array is None else array.T
            target[rows] = values[rows]

    def pack(self, codes_t: Codes) -> dict[str, Array]:
        """Return the parts for codes [columns, rows] in the order of rounding."""
        grid, start = self.grid, self._start
        codes = np.empty((grid.rows, grid.columns), np.int32)
        codes[:, self.order] = grid.stored_codes(codes_t)
        zero: Any = start.zero_point
        if zero is not None:
            assert grid.zero is not None
            zero = np.ascontiguousarray(grid.zero.T).astype(zero.dtype)
        group = None
        if self.by_group:
            group = np.empty(grid.columns, np.int32)
            group[self.order] = grid.group_of_column
        offset = None if grid.offset is None else np.ascontiguousarray(grid.offset.T)
        scales = replace(
            start,
            scale=np.ascontiguousarray(grid.scale.T),
            zero_point=zero,
            offset=offset,
            group_of_column=group,
            fields=self.fields or None,
        )
        return self.encoding.pack(Unpacked(codes, scales))


def blocks_of(state: GridState, search: Search) -> Iterator[tuple[int, int]]:
    """Yield the (first, last + 1) groups whose scales depend on each other."""
    width = int(np.count_nonzero(state.grid.group_of_column == 0))
    step = max(1, search.block // max(width, 1)) if search.block else state.groups
    for first in range(0, state.groups, step):
        yield first, min(first + step, state.groups)
