"""Typed face of the C++ kernels for calibrated quantization: sums, factors, rounding with feedback.

As `cpu.py`: C-contiguous arrays, results independent of the thread count. What each computes is
said in `quant/solver.py`, what a grid is in `quant/column_grid.py`.

Raises (all functions): ValueError for a wrong dtype, shape or layout; BackendError without the
extension.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.kernels.cpu import Float32, native
from halfbyte.kernels.cpu_nets import Batch, Product

Float64 = NDArray[np.float64]
Codes = NDArray[np.int16]
ONE_PRODUCT = Batch((0,), (0,))


def add_products(total: Float64, a: Float32, b: Float32 | None = None) -> None:
    """Add a^T b (without b: a^T a, to a symmetric `total`) of [n, K] and [n, L] to [K, L]."""
    native().add_products(total, a, b)


def factor(hessian: Float64) -> Float64 | None:
    """Return U with U^T U = H^-1, or None where H [K, K] is not positive definite."""
    out = np.empty_like(hessian)
    return out if native().factor(hessian, out) else None


def cross_factor(cross: Float64, upper: Float64, strict: bool) -> Float64:
    """Return (C U^T) U, of the bracket only what lies above the diagonal if `strict`."""
    out = np.empty_like(cross)
    native().cross_factor(cross, upper, strict, out)
    return out


class CodeGrid:
    """The codes that values may take; the arrays of a ColumnGrid, which are kept."""

    __slots__ = ("native",)

    def __init__(
        self,
        scale: Float32,
        group_of_column: NDArray[np.int32],
        zero: Float32 | None,
        offset: Float32 | None,
        levels: Float32 | None,
        bounds: Float32 | None,
        low: int,
        high: int,
        fractional: bool,
    ) -> None:
        """Bind arrays."""
        arrays = scale, group_of_column, zero, offset, levels, bounds
        self.native: Any = native().CodeGrid(*arrays, low, high, fractional)


def sweep(
    weights_t: Float32,
    upper: Float32,
    cross: Float32 | None,
    columns: tuple[int, int],
    grid: CodeGrid,
    codes_t: Codes,
) -> Float64:
    """Round columns [start, stop) of weights [K, rows]; return the errors [rows]."""
    errors = np.zeros(weights_t.shape[1])
    native().sweep(weights_t, upper, cross, *columns, grid.native, codes_t, errors)
    return errors


def feed_back(
    weights_t: Float32,
    upper: Float32,
    cross: Float32 | None,
    start: int,
    chosen_t: Float32,
) -> Float64:
    """As `sweep`, with the values [columns of the range, rows] that the columns become."""
    errors = np.zeros(weights_t.shape[1])
    stop = start + len(chosen_t)
    native().feed_back(weights_t, upper, cross, start, stop, chosen_t, errors)
    return errors


def descend(
    hessian: Float32,
    values: Float32,
    gradient: Float32,
    codes: Codes,
    grid: CodeGrid,
    passes: int,
) -> int:
    """Improve codes [rows, K], their values and gradient = (w - values) H; return the changes."""
    return int(native().descend(hessian, values, gradient, codes, grid.native, passes))


def product(a: Float32, b: Float32, out: Float32 | None = None) -> Float32:
    """Return a b^T [m, n] of a [m, k] and b [n, k]."""
    (m, k), n = a.shape, len(b)
    if b.shape[1] != k:
        raise ValueError(f"product: b has {b.shape[1]} columns, a has {k}; they must agree")
    out = np.empty((m, n), np.float32) if out is None else out
    if m and n and k:
        return Product(m, n, k, transposed=True, batch=ONE_PRODUCT)(a, b, out)
    out[:] = 0
    return out
