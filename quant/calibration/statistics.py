"""What is known of the inputs of a linear layer: sums over all tokens that it met.

Sums do not depend on the batch nor on the number of threads: rows are gathered into chunks of
CHUNK_ROWS, products of a chunk are float32, and chunks are added up in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError

CHUNK_ROWS = 1024
FLOAT16_MARGIN = 2e4  # activations beyond it come near to float16's largest number

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class Grams(Protocol):
    """The part of a solver that sums of products need."""

    def add_gram(self, total: Doubles, x: Floats) -> None:
        """Add x^T x to `total` [K, K]; x: [rows, K]."""

    def add_cross(self, total: Doubles, a: Floats, b: Floats) -> None:
        """Add a^T b to `total` [K, K]; a, b: [rows, K]."""


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Sums over `count` rows x of K columns.

    hessian: [K, K], sum of x x^T; None where it was not asked for. cross: [K, K], sum of
    (f - x) x^T, where f is the row of the float model and x that of the model quantized so far.
    squares, absolute: [K], sums of x^2 and |x|. low, high: [K], the range of each column.
    """

    hessian: Doubles | None
    cross: Doubles | None
    squares: Doubles
    absolute: Doubles
    low: Floats
    high: Floats
    count: int

    @property
    def columns(self) -> int:
        """Return K."""
        return len(self.squares)

    @property
    def largest(self) -> float:
        """Return the largest absolute value."""
        if self.count == 0:
            return 0.0
        return float(max(np.abs(self.low).max(), np.abs(self.high).max()))

    @property
    def importance(self) -> Floats:
        """Return the mean of x^2 of each column: what an importance matrix holds."""
        return (self.squares / max(1, self.count)).astype(np.float32)

    def __add__(self, other: InputStatistics) -> InputStatistics:
        """Return the statistics of both sets of rows.

        Raises:
            ValueError: the widths differ.
        """
        if other.columns != self.columns:
            raise ValueError(f"{self.columns} and {other.columns} columns cannot be added")
        return InputStatistics(
            _sum(self.hessian, other.hessian),
            _sum(self.cross, other.cross),
            self.squares + other.squares,
            self.absolute + other.absolute,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.count + other.count,
        )

    def light(self) -> InputStatistics:
        """Return the same without the two matrices."""
        return replace(self, hessian=None, cross=None)

    def divided(self, divisor: Floats) -> InputStatistics:
        """Return the statistics of rows divided by `divisor` [K], column by column."""
        inverse = 1.0 / divisor.astype(np.float64)
        low, high = self.low * inverse, self.high * inverse
        outer = inverse[:, None] * inverse[None, :]
        return InputStatistics(
            None if self.hessian is None else self.hessian * outer,
            None if self.cross is None else self.cross * outer,
            self.squares * inverse**2,
            self.absolute * np.abs(inverse),
            np.minimum(low, high).astype(np.float32),
            np.maximum(low, high).astype(np.float32),
            self.count,
        )


def _sum(first: Doubles | None, second: Doubles | None) -> Doubles | None:
    return None if first is None or second is None else first + second


# Of a weight that is one matrix; of a stack of experts one each, None where no row came.
WeightStatistics = InputStatistics | list[InputStatistics | None]


class Gathering:
    """Adds up rows as they come; how they are split into calls changes nothing.

    where: names the weight in errors.
    """

    def __init__(
        self, columns: int, solver: Grams, *, hessian: bool, cross: bool = False, where: str = ""
    ) -> None:
        """Start with no rows."""
        self._solver = solver
        self._where = where
        square = (columns, columns)
        self._hessian = np.zeros(square, np.float64) if hessian else None
        self._cross = np.zeros(square, np.float64) if cross else None
        self._squares = np.zeros(columns, np.float64)
        self._absolute = np.zeros(columns, np.float64)
        self._low = np.full(columns, np.inf, np.float32)
        self._high = np.full(columns, -np.inf, np.float32)
        self._count = 0
        self._held = 0
        self._rows = np.empty((CHUNK_ROWS, columns), np.float32)
        self._others = np.empty_like(self._rows) if cross else None

    def add(self, rows: NDArray[Any], others: NDArray[Any] | None = None) -> None:
        """Add rows [n, K]; others: the same rows of the float model, where `cross` is asked for.

        Raises:
            HalfbyteError: a row holds infinities or NaN.
        """
        start = 0
        while start < len(rows):
            stop = min(len(rows), start + CHUNK_ROWS - self._held)
            place = slice(self._held, self._held + stop - start)
            self._rows[place] = rows[start:stop]
            if self._others is not None and others is not None:
                self._others[place] = others[start:stop]
            self._held += stop - start
            start = stop
            if self._held == CHUNK_ROWS:
                self._flush()

    def _flush(self) -> None:
        rows = self._rows[: self._held]
        low, high = rows.min(axis=0), rows.max(axis=0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise HalfbyteError(
                f"weight {self._where!r}: its inputs are infinite or NaN on the calibration data, "
                "finite ones are required; check the model and the data"
            )
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        wide = rows.astype(np.float64)
        self._absolute += np.abs(wide).sum(axis=0)
        self._squares += np.square(wide).sum(axis=0)
        if self._hessian is not None:
            self._solver.add_gram(self._hessian, rows)
        if self._cross is not None and self._others is not None:
            self._solver.add_cross(self._cross, self._others[: self._held] - rows, rows)
        self._count += self._held
        self._held = 0

    def finish(self) -> InputStatistics:
        """Return the sums of all rows.

        Raises:
            HalfbyteError: products of the rows are beyond float32's range.
        """
        if self._held:
            self._flush()
        for total in (self._hessian, self._cross):
            if total is not None and not np.isfinite(total).all():
                reached = max(float(np.abs(self._low).max()), float(np.abs(self._high).max()))
                raise HalfbyteError(
                    f"weight {self._where!r}: its inputs reach {reached:.3g} on the calibration "
                    "data, products of them within float32's range are required; check the model"
                )
        low = self._low if self._count else np.zeros_like(self._low)
        high = self._high if self._count else np.zeros_like(self._high)
        return InputStatistics(
            self._hessian, self._cross, self._squares, self._absolute, low, high, self._count
        )


def pooled(statistics: Sequence[InputStatistics | None]) -> InputStatistics | None:
    """Return the statistics of all experts' rows together, None where no row came at all."""
    present = [held for held in statistics if held is not None]
    total = present[0] if present else None
    for held in present[1:]:
        total = held if total is None else total + held
    return total
