"""The linear algebra of calibrated quantization: what every device has to offer for it.

H is the sum of x x^T over the inputs x of a weight [rows, K]; the output error of a change D of the
weight is trace(D H D^T). Every result has the same bits for any number of threads. Arrays are
C-contiguous; `total`, `weights_t`, `codes_t` and `codes` are changed in place.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import BackendError
from halfbyte.quant.column_grid import ColumnGrid as ColumnGrid
from halfbyte.quant.column_grid import column_grid as column_grid

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Codes = NDArray[np.int16]

# Inputs are multiplied in float32 over so many rows, counted from the first of a call, and the
# products summed in float64. Calls with a multiple of it give the same sums as one call for all.
GRAM_ROWS = 256


class Solver(Protocol):
    """One device's kernels for calibrated quantization."""

    def add_gram(self, total: Float64, x: Float32) -> None:
        """Add x^T x of x [n, K] to a symmetric `total` [K, K]."""

    def add_cross(self, total: Float64, a: Float32, b: Float32) -> None:
        """Add a^T b of a [n, K] and b [n, L] to `total` [K, L]."""

    def factor(self, hessian: Float64) -> Float64 | None:
        """Return U [K, K], upper triangular with U^T U = H^-1; None if H is not positive definite.

        The caller has damped H. The upper triangle of `hessian` is read, none is changed.
        """

    def cross_factor(self, cross: Float64, factor: Float64, strict: bool = True) -> Float64:
        """Return GPTAQ's P [K, K] = strict_upper(C U^T) U of C = sum of (x_float - x) x^T.

        Row k is C[k, k+1:] times the inverse of H over the columns after k. Not strict: C H^-1
        itself, which added as W += W (C H^-1) makes W the exact least-squares target.
        """

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
        """Round columns start..stop with GPTQ's error feedback into all later columns.

        weights_t [K, rows]: rounded columns become the decoded values, later ones move.
        factor: U [K, K] float32. cross: P [K, K] float32, which adds w_k P[k, k+1:].
        codes_t [K, rows]: the codes of columns start..stop are written.

        Returns the errors [rows], the sums of ((w_k - q_k) / U_kk)^2 over these columns.
        """

    def feed_back(
        self,
        weights_t: Float32,
        factor: Float32,
        start: int,
        chosen_t: Float32,
        cross: Float32 | None = None,
    ) -> Float64:
        """As `sweep` for values that something else has chosen: [columns from start, rows].

        For encodings that choose the values of several columns together.
        """

    def descend(
        self, weights: Float32, hessian: Float32, codes: Codes, grid: ColumnGrid, passes: int
    ) -> int:
        """Improve codes [rows, K] one at a time while (w - q)^T H (w - q) falls.

        weights [rows, K]: the values aimed at. At most `passes` cycles over the columns; a row
        stops when a cycle changes none of its codes. Returns how many times a code was changed.
        """

    def product(self, a: Float32, b: Float32) -> Float32:
        """Return a b^T [m, n] of a [m, k] and b [n, k]."""

    def row_errors(self, difference: Float32, hessian: Float32) -> Float64:
        """Return d^T H d for each row d of `difference` [rows, K]: [rows] float64."""


def get_solver(device: str = "cpu", threads: int | None = None) -> Solver:
    """Return the solver of a device; `threads` sets how many threads the CPU kernels use.

    Raises:
        BackendError: the device has none.
    """
    from halfbyte.kernels import cpu
    from halfbyte.quant.solver_reference import ReferenceSolver

    if device not in ("cpu", "auto"):
        raise BackendError(
            f"quantize: device {device!r} has no kernels for calibrated quantization",
            "use --device cpu",
        )
    if not cpu.available():
        return ReferenceSolver()
    if threads is not None:
        cpu.set_threads(threads)
    from halfbyte.quant.solver_cpu import CpuSolver

    return CpuSolver()
