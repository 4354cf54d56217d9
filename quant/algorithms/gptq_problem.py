"""What GPTQ works on: the damped hessian, its factor, and the order of the columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.encodings.ggml_iq import IQBlock
from halfbyte.ir.encodings.grid import UNNAMED
from halfbyte.quant.calibration.statistics import InputStatistics
from halfbyte.quant.method import MethodOptions
from halfbyte.quant.solver import Solver

Float = NDArray[np.float32]
Float64 = NDArray[np.float64]

LARGEST_DAMPING = 1e3
LEAST_DAMPING = 1e-4
NORMAL_TAIL = float(np.pi / 2)  # E[x^2] / E[|x|]^2 of a normal distribution
HEAVIEST_TAIL = 10.0


@dataclass(frozen=True)
class Problem:
    """All in the order in which columns are rounded: `order` [K] names the weight's columns.

    plain, hessian: [K, K] float32, means over inputs without and with damping. factor: U with
    U^T U = hessian^-1. weight: [K], 1 / U_kk^2, what a change of column k costs once later columns
    have made up for it. cross: GPTAQ's P, shift: C H^-1; else None. note: what was done otherwise.
    """

    order: NDArray[np.int64]
    by_group: bool
    plain: Float
    hessian: Float
    factor: Float
    weight: Float
    cross: Float | None
    shift: Float | None
    note: str


def prepare(
    encoding: Encoding,
    statistics: InputStatistics,
    options: MethodOptions,
    solver: Solver,
    asymmetric: bool,
) -> Problem | None:
    """Return the problem; None where no input was ever other than zero.

    Raises:
        QuantizationError: statistics are missing or not finite.
    """
    hessian = statistics.hessian
    if hessian is None or (asymmetric and statistics.cross is None):
        what = "products with the float model's inputs" if asymmetric else "products of its inputs"
        raise QuantizationError(UNNAMED, f"statistics hold no {what}; collect them anew")
    mean = hessian / max(1, statistics.count)
    if not np.isfinite(mean).all():
        raise QuantizationError(
            UNNAMED,
            "its inputs are NaN or infinite somewhere, finite ones are required; run the model "
            "in float32 and look for the layer that overflows",
        )
    diagonal = np.diag(mean).copy()
    unit = float(diagonal.mean())
    if not unit > 0:
        return None
    by_group = bool(getattr(encoding, "act_order", False)) and options.act_order != "static"
    whole_points = isinstance(encoding, IQBlock)
    sorts = by_group or (options.act_order == "static" and not whole_points)
    note = ""
    if options.act_order == "static" and whole_points:
        note = f"{encoding.name} has points of several columns, they stay as they stand"
    if options.act_order == "group" and not by_group:
        note = f"{encoding.name} stores no group of columns, they stay as they stand"
    # A common factor changes no code; without it tiny and huge inputs leave float32's range.
    mean /= unit
    order = np.argsort(-diagonal, kind="stable") if sorts else np.arange(len(diagonal))
    if sorts:
        mean = mean[np.ix_(order, order)]
    wanted = options.damping * (_tail(statistics) ** 2 if options.tail_damping else 1.0)
    damped, upper, damping = _factored(mean, wanted, solver)
    if damping != wanted:
        told = f"damping raised from {wanted:.3g} to {damping:.3g} to make it positive definite"
        note = f"{note}; {told}" if note else told
    cross = shift = None
    if asymmetric:
        assert statistics.cross is not None
        products = statistics.cross[np.ix_(order, order)] * (
            options.alpha / unit / max(1, statistics.count)
        )
        if not np.isfinite(products).all():
            raise QuantizationError(
                UNNAMED, "the float model's inputs are NaN or infinite somewhere"
            )
        cross = solver.cross_factor(products, upper).astype(np.float32)
        shift = solver.cross_factor(products, upper, strict=False).astype(np.float32)
    return Problem(
        order,
        by_group,
        (mean * unit).astype(np.float32),
        damped.astype(np.float32),
        np.ascontiguousarray(upper, np.float32),
        (1 / np.square(np.diag(upper))).astype(np.float32),
        cross,
        shift,
        note,
    )


def _tail(statistics: InputStatistics) -> float:
    """Return how much heavier the tails of the inputs are than a normal distribution's, from 1.

    The second moments of inputs with heavy tails, as those of a gated product, differ much from
    text to text, so that what the hessian says of them holds less.
    """
    mean = float(statistics.absolute.mean()) / max(1, statistics.count)
    square = float(statistics.squares.mean()) / max(1, statistics.count)
    heaviness = square / (mean * mean) if mean > 0 else 1.0
    return min(max(1.0, heaviness / NORMAL_TAIL), HEAVIEST_TAIL)


def _factored(mean: Float64, damping: float, solver: Solver) -> tuple[Float64, Float64, float]:
    """Return the damped matrix (mean of the diagonal 1), its factor and the damping it took."""
    tried = damping
    while True:
        damped = mean.copy()
        damped[np.diag_indices(len(mean))] += tried
        upper = solver.factor(damped)
        if upper is not None and np.isfinite(upper).all():
            return damped, upper, tried
        tried = max(10 * tried, LEAST_DAMPING)
        if tried > LARGEST_DAMPING:
            raise QuantizationError(
                UNNAMED, "the products of its inputs are no positive matrix; collect them anew"
            )
