"""What rounding to an encoding does to a weight, and what its error does to the output."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.encoding import Encoding, Unpacked
from halfbyte.ir.encodings.grid import values_of
from halfbyte.quant.calibration.statistics import InputStatistics
from halfbyte.quant.solver import Solver

Float = NDArray[np.float32]


def rounded(encoding: Encoding, rows: Float, importance: Float | None = None) -> Float:
    """Return the values [rows, columns] that the encoding's own rounding gives.

    importance: [columns]; affine encodings leave it, their ranges are searched elsewhere.

    Raises:
        QuantizationError: as `Encoding.encode`.
    """
    if isinstance(encoding, Affine):
        scales = encoding.fit(rows)
        return values_of(Unpacked(encoding.assign(rows, scales), scales))
    parts = encoding.encode(rows, importance)
    return np.asarray(encoding.decode(parts, rows.shape[1]))


class OutputError:
    """The output error of weights whose inputs have these moments.

    With the hessian it is trace(D H D^T) of the weights' change D; without, that of H's diagonal.
    """

    def __init__(self, moments: InputStatistics, solver: Solver) -> None:
        """Take H, or the squares where it was not gathered."""
        self.squares = moments.squares.astype(np.float32)
        hessian = moments.hessian
        self.hessian = None if hessian is None else hessian.astype(np.float32)
        self._solver = solver

    def of_rows(self, difference: Float) -> NDArray[np.float64]:
        """Return the error of each row of `difference` [rows, K]: [rows]."""
        if self.hessian is None:
            squared = np.square(difference, dtype=np.float64)
            errors: NDArray[np.float64] = np.einsum("rk,k->r", squared, self.squares)
            return errors
        return self._solver.row_errors(np.ascontiguousarray(difference), self.hessian)

    def of_columns(self, start: int, stop: int) -> OutputError:
        """Return the error that columns start..stop alone make."""
        part = object.__new__(OutputError)
        part.squares = self.squares[start:stop]
        part._solver = self._solver
        part.hessian = None
        if self.hessian is not None:
            part.hessian = np.ascontiguousarray(self.hessian[start:stop, start:stop])
        return part

    def divided(self, divisor: Float) -> OutputError:
        """Return the error for inputs divided by `divisor` [K]."""
        part = object.__new__(OutputError)
        inverse = (1.0 / divisor.astype(np.float64)).astype(np.float64)
        part.squares = (self.squares * inverse**2).astype(np.float32)
        part._solver = self._solver
        part.hessian = None
        if self.hessian is not None:
            scaled = self.hessian * inverse[:, None] * inverse[None, :]
            part.hessian = np.ascontiguousarray(scaled.astype(np.float32))
        return part


def try_rounded(encoding: Encoding, rows: Float, importance: Float | None = None) -> Float | None:
    """Return what `rounded` does, or None where the encoding cannot hold the rows."""
    try:
        return rounded(encoding, rows, importance)
    except QuantizationError:
        return None


def group_width(encoding: Encoding, columns: int) -> int:
    """Return how many columns share a scale."""
    grid = encoding.grid
    width = grid.group_size if grid is not None else encoding.block_shape[1]
    return width if 1 < width < columns else columns
