"""The output error at given codes, and how it answers to a group's scale and offset.

With d = w - q and q = u scale + offset in a group (u: the codes in units of the scale), the error
of a row is d^T H d. Moving the scale of one group by s and its offset by o lowers it by

    2 (s u.r + o 1.r) - (s^2 u^T H u + 2 s o u^T H 1 + o^2 1^T H 1)        r = H d

over the columns of the group. `GroupFit` holds these numbers for every row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.quant.column_grid import Codes, ColumnGrid, Float32
from halfbyte.quant.solver import Float64, Solver


@dataclass(frozen=True)
class GroupFit:
    """One group of every row: slopes along scale and offset, and curves, each [rows] float64."""

    scale_slope: Float64
    offset_slope: Float64
    scale_curve: Float64
    mixed_curve: Float64
    offset_curve: Float64

    def gain(self, scale_step: Float64, offset_step: Float64 | float = 0.0) -> Float64:
        """Return by how much each row's error falls when scale and offset move by these steps."""
        bent = scale_step * scale_step * self.scale_curve
        bent = bent + 2 * scale_step * offset_step * self.mixed_curve
        bent = bent + offset_step * offset_step * self.offset_curve
        return 2 * (scale_step * self.scale_slope + offset_step * self.offset_slope) - bent

    def scale_step(self) -> Float64:
        """Return the best steps of the scale while the offset stays; 0 where all units are 0."""
        return _divided(self.scale_slope, self.scale_curve)

    def offset_step(self) -> Float64:
        """Return the best steps of the offset while the scale stays."""
        return _divided(self.offset_slope, self.offset_curve)

    def both_steps(self) -> tuple[Float64, Float64]:
        """Return the best steps of scale and offset together."""
        area = self.scale_curve * self.offset_curve
        free = area - self.mixed_curve * self.mixed_curve
        sound = free > 1e-9 * area
        scale = self.scale_slope * self.offset_curve - self.offset_slope * self.mixed_curve
        offset = self.offset_slope * self.scale_curve - self.scale_slope * self.mixed_curve
        alone = np.where(sound, 0.0, self.scale_step())
        zero = np.zeros(len(free))
        return (
            np.divide(scale, free, out=alone, where=sound),
            np.divide(offset, free, out=zero, where=sound),
        )


class Residual:
    """Weights [rows, K], their codes [rows, K] on a grid, and the gradient (w - q) H between them.

    `move` changes the grid in place. After codes or grid were changed by others: `refresh`.
    """

    def __init__(
        self, solver: Solver, weights: Float32, hessian: Float32, codes: Codes, grid: ColumnGrid
    ) -> None:
        """Compute the gradient: one product."""
        self.solver = solver
        self.weights, self.hessian = weights, hessian
        self.codes, self.grid = codes, grid
        self.refresh()

    def refresh(self) -> None:
        """Compute values, units and gradient from weights, codes and grid."""
        codes_t = np.ascontiguousarray(self.codes.T)
        self._difference = self.weights - self.grid.decode(codes_t).T
        self._units = np.ascontiguousarray(_units_of(self.grid, codes_t).T)
        self.gradient = self.solver.product(
            np.ascontiguousarray(self._difference, np.float32), self.hessian
        )

    def errors(self) -> Float64:
        """Return (w - q)^T H (w - q) of each row: [rows]."""
        return _dots(self._difference, self.gradient)

    def descend(self, passes: int) -> int:
        """Improve the codes as `Solver.descend` does; return how many were changed."""
        weights, hessian = self.weights, self.hessian
        changes = self.solver.descend(weights, hessian, self.codes, self.grid, passes)
        if changes:
            self.refresh()
        return changes

    def fit(self, group: int, with_offset: bool = False) -> GroupFit:
        """Return the slopes and curves of a group; those of the offset are 0 unless asked for."""
        columns = self._columns(group)
        units = np.ascontiguousarray(self._units[:, columns])
        square = np.ascontiguousarray(self.hessian[columns][:, columns])
        pushed, gradient = self.solver.product(units, square), self.gradient[:, columns]
        none = np.zeros(len(units))
        scale_slope, scale_curve = _dots(units, gradient), _dots(units, pushed)
        if not with_offset:
            return GroupFit(scale_slope, none, scale_curve, none, none)
        mixed = pushed.sum(axis=1, dtype=np.float64)
        curve = np.full(len(units), square.sum(dtype=np.float64))
        slope = gradient.sum(axis=1, dtype=np.float64)
        return GroupFit(scale_slope, slope, scale_curve, mixed, curve)

    def move(self, group: int, scale: Float32, offset: Float32 | None = None) -> None:
        """Give a group other scales [rows] (and offsets [rows], where the grid has them)."""
        columns = self._columns(group)
        step = (scale - self.grid.scale[group])[:, None]
        change = self._units[:, columns] * step
        self.grid.scale[group] = scale
        if offset is not None:
            assert self.grid.offset is not None
            change += (offset - self.grid.offset[group])[:, None]
            self.grid.offset[group] = offset
        self._difference[:, columns] -= change
        change = np.ascontiguousarray(-change, np.float32)
        self.gradient = self.solver.added_product(self.gradient, change, self.hessian[columns])

    def _columns(self, group: int) -> slice | NDArray[np.intp]:
        """Return the columns of a group, as a slice where they are neighbours."""
        indices = np.flatnonzero(self.grid.group_of_column == group)
        if len(indices) and indices[-1] - indices[0] == len(indices) - 1:
            return slice(int(indices[0]), int(indices[-1]) + 1)
        return indices


def _units_of(grid: ColumnGrid, codes_t: Codes) -> Float32:
    """Return what each value [columns, rows] is in units of its scale, offsets left out."""
    steps = codes_t.astype(np.float32) if grid.levels is None else grid.levels[codes_t]
    return steps if grid.zero is None else steps - grid.zero[grid.group_of_column]


def _dots(a: Float32, b: Float32) -> Float64:
    dots: Float64 = np.einsum("rk,rk->r", a, b, dtype=np.float64)
    return dots


def _divided(slope: Float64, curve: Float64) -> Float64:
    return np.divide(slope, curve, out=np.zeros(len(slope)), where=curve > 0)
