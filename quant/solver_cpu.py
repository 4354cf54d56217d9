"""The solver over the C++ kernels."""

from __future__ import annotations

import numpy as np

from halfbyte.kernels import cpu_solve
from halfbyte.quant.column_grid import ColumnGrid
from halfbyte.quant.solver import Codes, Float32, Float64
from halfbyte.quant.solver_reference import ROWS, ReferenceSolver


class CpuSolver(ReferenceSolver):
    """`Solver` by the kernels: the same bits for any number of threads."""

    def add_gram(self, total: Float64, x: Float32) -> None:
        """Add x^T x."""
        cpu_solve.add_products(total, x)

    def add_cross(self, total: Float64, a: Float32, b: Float32) -> None:
        """Add a^T b."""
        cpu_solve.add_products(total, a, b)

    def factor(self, hessian: Float64) -> Float64 | None:
        """Return U with U^T U = H^-1."""
        return cpu_solve.factor(hessian)

    def cross_factor(self, cross: Float64, factor: Float64, strict: bool = True) -> Float64:
        """Return strict_upper(C U^T) U, or C U^T U."""
        return cpu_solve.cross_factor(cross, factor, strict)

    def sweep(
        self,
        weights_t: Float32,
        factor: Float32,
        start: int,
        stop: int,
        grid: ColumnGrid,
        codes_t: Codes,
        cross: Float32 | None = None,
    ) -> Float64:
        """Round columns start..stop."""
        columns = start, stop
        return cpu_solve.sweep(weights_t, factor, cross, columns, _native(grid), codes_t)

    def feed_back(
        self,
        weights_t: Float32,
        factor: Float32,
        start: int,
        chosen_t: Float32,
        cross: Float32 | None = None,
    ) -> Float64:
        """Put chosen values in the place of weights."""
        return cpu_solve.feed_back(weights_t, factor, cross, start, chosen_t)

    def descend(
        self, weights: Float32, hessian: Float32, codes: Codes, grid: ColumnGrid, passes: int
    ) -> int:
        """Improve codes, in blocks of rows."""
        changes = 0
        for start in range(0, len(weights), ROWS):
            rows = slice(start, start + ROWS)
            part = grid.row_range(start, start + ROWS)
            values = np.ascontiguousarray(part.decode(np.ascontiguousarray(codes[rows].T)).T)
            gradient = self.product(weights[rows] - values, hessian)
            changes += cpu_solve.descend(
                hessian, values, gradient, codes[rows], _native(part), passes
            )
        return changes

    def product(self, a: Float32, b: Float32) -> Float32:
        """Return a b^T."""
        return cpu_solve.product(a, b)


def _native(grid: ColumnGrid) -> cpu_solve.CodeGrid:
    return cpu_solve.CodeGrid(
        grid.scale,
        grid.group_of_column,
        grid.zero,
        grid.offset,
        grid.levels,
        grid.bounds,
        grid.low,
        grid.high,
        grid.fractional,
    )
