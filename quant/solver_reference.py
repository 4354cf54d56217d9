"""The solver in plain numpy: what the kernels are tested against, and the way without them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from halfbyte.quant.column_grid import ColumnGrid
from halfbyte.quant.solver import GRAM_ROWS, Codes, Float32, Float64

BLOCK = 128
ROWS = 1024  # of a weight at a time, where temporary arrays are as large as it


class ReferenceSolver:
    """`Solver` by numpy; its bits depend on the BLAS that numpy was built with."""

    def add_gram(self, total: Float64, x: Float32) -> None:
        """Add x^T x."""
        self.add_cross(total, x, x)

    def add_cross(self, total: Float64, a: Float32, b: Float32) -> None:
        """Add a^T b."""
        for start in range(0, len(a), GRAM_ROWS):
            rows = slice(start, start + GRAM_ROWS)
            total += a[rows].T @ b[rows]

    def factor(self, hessian: Float64) -> Float64 | None:
        """Return U with U^T U = H^-1: H = R R^T with R upper triangular, U = R^-1."""
        if not np.isfinite(hessian).all():
            return None
        try:
            lower = np.linalg.cholesky(hessian[::-1, ::-1])
        except np.linalg.LinAlgError:
            return None
        inverse = np.linalg.solve(lower, np.eye(len(lower)))
        return np.ascontiguousarray(np.tril(inverse)[::-1, ::-1])

    def cross_factor(self, cross: Float64, factor: Float64, strict: bool = True) -> Float64:
        """Return strict_upper(C U^T) U, or C U^T U."""
        middle: Float64 = cross @ factor.T
        if strict:
            middle = np.triu(middle, 1)
        product: Float64 = middle @ factor
        return product

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
        """Round columns in blocks: one by one inside a block, all later columns after it."""

        def choose(k: int, w: Float32) -> Float32:
            codes_t[k] = grid.assign(w, k)
            return grid.decode(codes_t[k], k)

        return _push_errors(weights_t, factor, cross, start, stop, choose)

    def feed_back(
        self,
        weights_t: Float32,
        factor: Float32,
        start: int,
        chosen_t: Float32,
        cross: Float32 | None = None,
    ) -> Float64:
        """Put chosen values in the place of weights."""
        stop = start + len(chosen_t)
        return _push_errors(weights_t, factor, cross, start, stop, lambda k, _: chosen_t[k - start])

    def descend(
        self, weights: Float32, hessian: Float32, codes: Codes, grid: ColumnGrid, passes: int
    ) -> int:
        """Go over the columns, all rows at once."""
        values = np.ascontiguousarray(grid.decode(np.ascontiguousarray(codes.T)).T)
        gradient = self.product(weights - values, hessian)
        changes = 0
        for _ in range(passes):
            before = changes
            for k in np.flatnonzero(np.diag(hessian) > 0):
                wanted = values[:, k] + gradient[:, k] / hessian[k, k]
                new = grid.assign(wanted, int(k))
                step = grid.decode(new, int(k)) - values[:, k]
                gain = step * (2 * gradient[:, k] - step * hessian[k, k])
                rows = np.flatnonzero((new != codes[:, k]) & (gain > 0))
                codes[rows, k] = new[rows]
                values[rows, k] += step[rows]
                gradient[rows] -= step[rows, None] * hessian[k]
                changes += len(rows)
            if changes == before:
                break
        return changes

    def product(self, a: Float32, b: Float32) -> Float32:
        """Return a b^T."""
        result: Float32 = a @ b.T
        return result

    def row_errors(self, difference: Float32, hessian: Float32) -> Float64:
        """Return d^T H d of each row."""
        pushed = self.product(difference, hessian)
        errors: Float64 = np.einsum("rk,rk->r", difference, pushed, dtype=np.float64)
        return errors


def _push_errors(
    weights_t: Float32,
    factor: Float32,
    cross: Float32 | None,
    start: int,
    stop: int,
    choose: Callable[[int, Float32], Float32],
) -> Float64:
    total = np.zeros(weights_t.shape[1])
    for first in range(start, stop, BLOCK):
        last = min(first + BLOCK, stop)
        seen, error = np.empty((2, last - first, weights_t.shape[1]), np.float32)
        for k in range(first, last):
            w = weights_t[k].copy()
            weights_t[k] = choose(k, w)
            e = (w - weights_t[k]) / factor[k, k]
            weights_t[k + 1 : last] -= factor[k, k + 1 : last, None] * e
            if cross is not None:
                weights_t[k + 1 : last] += cross[k, k + 1 : last, None] * w
            seen[k - first], error[k - first] = w, e
            total += np.square(e, dtype=np.float64)
        weights_t[last:] -= factor[first:last, last:].T @ error
        if cross is not None:
            weights_t[last:] += cross[first:last, last:].T @ seen
    return total
