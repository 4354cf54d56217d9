"""AWQ: input channels that matter more are scaled up before rounding (arXiv 2306.00978).

For each group the divisors are, of all tried, those with the least output error of the group's
linear layers, rounded as they will be. Tried are x^r and x^r / (w^(1-r) + 1e-4) for r = 0, 1/grid,
... (grid - 1)/grid, each over sqrt(max * min), where x is the mean |x| of the channel and w the
mean over rows of |w| / max |w| of the group of columns. x^0 changes nothing, so the error is never
above plain rounding's. The error is taken from the hessian: no activations are needed. All are
ranked by SCREEN_ROWS rows of the weights, and the first FINALISTS of them by `search_rows`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.graph import Graph
from halfbyte.quant.calibration.statistics import InputStatistics
from halfbyte.quant.solver import Solver
from halfbyte.quant.transforms import Folded, LinearInput, TransformOptions
from halfbyte.quant.transforms.clip import clipped
from halfbyte.quant.transforms.groups import Group
from halfbyte.quant.transforms.inputs import GroupInput, Matrix, by_source
from halfbyte.quant.transforms.layer import Keep, fold_layer
from halfbyte.quant.transforms.rounding import OutputError, group_width, try_rounded

Float = NDArray[np.float32]
Float64 = NDArray[np.float64]
SMALLEST = 1e-4
SCREEN_ROWS = 128
FINALISTS = 6


class Awq:
    """The transform `awq`."""

    scope: Literal["layer"] = "layer"

    def fold(
        self,
        graph: Graph,
        inputs: Sequence[LinearInput],
        encodings: Mapping[str, Encoding],
        options: TransformOptions,
        solver: Solver,
    ) -> Folded:
        """Return the layer's weights with the best divisors folded, and clipped where asked."""

        def choose(known: GroupInput, group: Group, keep: Keep) -> Float | None:
            return best_divisors(known, group, keep, options, solver)

        folded = fold_layer(graph, inputs, encodings, choose)
        if not options.clip:
            return folded
        return clipped(graph, folded, inputs, encodings, solver)


def best_divisors(
    known: GroupInput, group: Group, keep: Keep, options: TransformOptions, solver: Solver
) -> Float | None:
    """Return the divisors [size] with the least output error, or None to change nothing.

    keep: bends divisors to what can be stored.
    """
    mean = known.moments.absolute / max(known.moments.count, 1)
    if not np.isfinite(mean).all() or not mean.any():
        return None
    errors = _Errors(solver)
    trials = [_Trial(matrix, known, options.search_rows, errors) for matrix in known.matrices]
    share = _weight_shares(trials)
    tried = candidates(by_source(mean, group), by_source(share, group), options.grid)
    listed = [keep(divisors) for divisors in tried]
    if sum(len(trial.rows) for trial in trials) > 2 * SCREEN_ROWS and options.search_rows:
        few = [_Trial(matrix, known, SCREEN_ROWS, errors) for matrix in known.matrices]
        ranks = [_total(few, divisors[group.source.channels]) for divisors in listed]
        listed = [listed[place] for place in np.argsort(ranks, kind="stable")[:FINALISTS]]
    best, least = None, _total(trials, None)
    for divisors in listed:
        error = _total(trials, divisors[group.source.channels])
        if error < least:
            best, least = divisors, error
    return best


def candidates(mean: Float64, share: Float64, grid: int) -> Iterator[Float]:
    """Yield divisors [size] from the channels' mean |x| and relative size of weights."""
    live = mean > 0
    for step in range(grid):
        power = np.where(live, np.maximum(mean, 0.0) ** (step / grid), 1.0)
        weights = share ** (1 - step / grid) + SMALLEST
        for found in (power, power / weights) if step else (power / weights,):
            found = np.maximum(found, SMALLEST)
            middle = np.sqrt(found[live].max() * found[live].min())
            yield np.where(live, found / middle, 1.0).astype(np.float32)


class _Errors:
    """Output errors, one for each statistics: matrices that meet the same inputs share theirs."""

    def __init__(self, solver: Solver) -> None:
        self._solver = solver
        self._made: dict[int, OutputError] = {}

    def of(self, moments: InputStatistics) -> OutputError:
        """Return the output error of inputs with these moments."""
        if id(moments) not in self._made:
            self._made[id(moments)] = OutputError(moments, self._solver)
        return self._made[id(moments)]


class _Trial:
    """Rows of one matrix, rounded with this or that divisor."""

    def __init__(self, matrix: Matrix, known: GroupInput, sampled: int, errors: _Errors) -> None:
        total = sum(other.rows for other in known.matrices)
        wanted = -(-sampled * matrix.rows // total) if sampled else total
        self.rows = matrix.sample(wanted)
        self.weight = matrix.rows / len(self.rows)
        self.encoding = matrix.encoding
        assert matrix.moments is not None
        self.error = errors.of(matrix.moments)

    def loss(self, divisor: Float | None) -> float:
        """Return the output error of the whole matrix with x divided by `divisor` [K]."""
        rows, squares = self.rows, self.error.squares
        if divisor is not None:
            rows = rows * divisor
            squares = squares / (divisor * divisor)
        found = try_rounded(self.encoding, rows, squares)
        if found is None or not np.isfinite(found).all():
            return float("inf")
        if divisor is not None:
            found = found / divisor
        return float(self.error.of_rows(found - self.rows).sum()) * self.weight

    def shares(self) -> Float64:
        """Return the sum over the matrix's rows of |w| / max |w| of its group: [K]."""
        columns = self.rows.shape[1]
        width = group_width(self.encoding, columns)
        starts = np.arange(0, columns, width)
        size = np.abs(self.rows)
        largest = np.maximum.reduceat(size, starts, axis=1)[:, np.arange(columns) // width]
        relative = np.divide(size, largest, out=np.zeros_like(size), where=largest > 0)
        return np.asarray(relative.sum(axis=0, dtype=np.float64)) * self.weight


def _weight_shares(trials: Sequence[_Trial]) -> Float64:
    rows = sum(len(trial.rows) * trial.weight for trial in trials)
    return np.asarray(sum(trial.shares() for trial in trials)) / rows


def _total(trials: Sequence[_Trial], divisor: Float | None) -> float:
    return sum(trial.loss(divisor) for trial in trials)
