"""GPTQ and GPTAQ into any encoding: rounding whose error the columns still to come make up for.

Columns are rounded in turn on the encoding's own grid; e = (w_k - q_k) / U_kk, and the columns
after it move by -e U[k, k+1:], with U^T U the inverse of the damped hessian. The grid of a group is
chosen when its first column is reached, by 1 / U_kk^2, the exact cost of an error in a column that
later ones make up for; with `trials` the group is rounded on each of several grids and the best by
GPTQ's own error is kept. GPTAQ adds w_k P[k, k+1:], which aims at the float model's output.

Source: arXiv 2210.17323 (GPTQ), 2504.02692 (GPTAQ).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Array, Encoding, Scales
from halfbyte.ir.encodings.ggml_iq import IQBlock
from halfbyte.ir.encodings.grid import require_finite
from halfbyte.quant.algorithms import Solved
from halfbyte.quant.algorithms.gptq_points import solve_points
from halfbyte.quant.algorithms.gptq_problem import Problem, prepare
from halfbyte.quant.algorithms.gptq_refine import refine
from halfbyte.quant.algorithms.shared_rows import row_encoder
from halfbyte.quant.calibration.statistics import InputStatistics
from halfbyte.quant.column_grid import ColumnGrid, column_grid
from halfbyte.quant.method import MethodOptions
from halfbyte.quant.rounding_grid import GridState, blocks_of
from halfbyte.quant.rounding_scales import Candidates, Search, search_of
from halfbyte.quant.solver import Solver

Float = NDArray[np.float32]
Codes = NDArray[np.int16]

CHUNK_VALUES = 1 << 23  # weights that are worked on at once
TRIAL_VALUES = 1 << 22  # and those of all grids that are tried at once
WIDEST_TRIAL = 512  # columns of a group, beyond which rounding it on many grids takes too long


def solve(
    weight: Float,
    encoding: Encoding,
    statistics: InputStatistics,
    options: MethodOptions,
    solver: Solver,
) -> Solved:
    """Return the weight [rows, columns] in `encoding`, by GPTQ.

    Raises:
        QuantizationError: weights or statistics are not finite, or rows of this length cannot be
            encoded.
    """
    return _solved(weight, encoding, statistics, options, solver, asymmetric=False)


def solve_asymmetric(
    weight: Float,
    encoding: Encoding,
    statistics: InputStatistics,
    options: MethodOptions,
    solver: Solver,
) -> Solved:
    """Return the weight [rows, columns] in `encoding`, by GPTAQ.

    Raises:
        QuantizationError: as `solve`.
    """
    return _solved(weight, encoding, statistics, options, solver, asymmetric=True)


def _solved(
    weight: Float,
    encoding: Encoding,
    statistics: InputStatistics,
    options: MethodOptions,
    solver: Solver,
    asymmetric: bool,
) -> Solved:
    weight = np.ascontiguousarray(weight, np.float32)
    require_finite(weight)
    problem = prepare(encoding, statistics, options, solver, asymmetric)
    rows, columns = weight.shape
    importance = statistics.importance if problem is not None else np.ones(columns, np.float32)
    needed = importance if encoding.needs_importance else None
    if problem is None or not rows:
        note = "no input was other than zero: rounded to nearest" if rows else ""
        return Solved(encoding.encode(weight, needed), 0.0, 0.0, note)
    note, pieces, error, plain_error = problem.note, [], 0.0, 0.0
    step, encode = max(1, CHUNK_VALUES // columns), row_encoder(weight, encoding)
    for start in range(0, rows, step):
        chunk = weight[start : start + step]
        plain = encode(chunk, start, needed)
        found, told = _chunk(chunk, encoding, plain, problem, options, solver)
        errors, plain_errors = (
            _output_errors(chunk, encoding, parts, problem, solver) for parts in (found, plain)
        )
        if not problem.by_group:
            worse = errors > plain_errors
            found = _rows_of(encoding, worse, plain, found, columns)
            errors = np.minimum(errors, plain_errors)
        pieces.append(found)
        error += float(errors.sum())
        plain_error += float(plain_errors.sum())
        if told and told not in note:
            note = f"{note}; {told}" if note else told
    return Solved(_joined(encoding, pieces, weight.shape), error, plain_error, note)


def _joined(
    encoding: Encoding, pieces: list[dict[str, Array]], shape: tuple[int, int]
) -> dict[str, Array]:
    if len(pieces) == 1:
        return pieces[0]
    specs = encoding.part_specs(*shape)
    return {
        name: np.concatenate([piece[name] for piece in pieces]) if specs[name].per_row else first
        for name, first in pieces[0].items()
    }


def target_of(weight: Float, problem: Problem, solver: Solver) -> Float:
    """Return the values aimed at, [rows, columns] in the order of rounding.

    For GPTAQ they are the least-squares answer to the float model's output on the inputs at hand.
    """
    ordered = np.ascontiguousarray(weight[:, problem.order])
    if problem.shift is None:
        return ordered
    return ordered + solver.product(ordered, np.ascontiguousarray(problem.shift.T))


def _rows_of(
    encoding: Encoding,
    first: NDArray[np.bool_],
    one: dict[str, Array],
    other: dict[str, Array],
    columns: int,
) -> dict[str, Array]:
    """Return `one` in the rows `first`, `other` elsewhere."""
    if not first.any():
        return other
    specs = encoding.part_specs(len(first), columns)
    mixed = {}
    for name, array in other.items():
        chosen = first.reshape(-1, *[1] * (array.ndim - 1))
        mixed[name] = np.where(chosen, one[name], array) if specs[name].per_row else array
    return mixed


def _output_errors(
    weight: Float, encoding: Encoding, parts: dict[str, Array], problem: Problem, solver: Solver
) -> NDArray[np.float64]:
    """Return the mean squared error of each row's output."""
    decoded = encoding.decode(parts, weight.shape[1]).astype(np.float32)
    gap = target_of(weight, problem, solver) - decoded[:, problem.order]
    return np.maximum(solver.row_errors(gap, problem.plain), 0)


def _chunk(
    weight: Float,
    encoding: Encoding,
    plain: dict[str, Array],
    problem: Problem,
    options: MethodOptions,
    solver: Solver,
) -> tuple[dict[str, Array], str]:
    """Return the parts for some rows, and what was done otherwise than asked."""
    if isinstance(encoding, IQBlock):
        return solve_points(weight, encoding, problem, solver), ""
    if not encoding.is_quantized:
        return plain, f"{encoding.name} has no grid: rounded to nearest"
    start = encoding.unpack(plain, weight.shape[1]).scales
    if column_grid(encoding, start, weight.shape[1]) is None:
        return plain, f"{encoding.name} has no grid: rounded to nearest"
    return Rounding(weight, encoding, start, problem, options, solver).parts(), ""


@dataclass
class Rounding:
    """One pass of GPTQ over the columns of some rows."""

    weight: Float
    encoding: Encoding
    start: Scales
    problem: Problem
    options: MethodOptions
    solver: Solver

    def parts(self) -> dict[str, Array]:
        """Return the rows in the encoding."""
        problem = self.problem
        state = GridState(self.encoding, self.start, problem.order, problem.by_group)
        values = np.ascontiguousarray(self.weight.T[problem.order])
        codes = np.zeros(values.shape, np.int16)
        search = search_of(self.encoding, plain=not self.options.group_search)
        sorts = not problem.by_group and self.options.act_order == "static"
        if search is None or self.options.static_groups or sorts:
            if search is not None:
                self._choose_all(state, search, values)
            self._sweep(values, 0, len(values), state.grid, codes)
        else:
            self._choose_and_sweep(state, search, values, codes)
        if self.options.refine:
            rounds = self.options.refine
            target = target_of(self.weight, problem, self.solver)
            refine(target, problem, state, search, codes, rounds, self.solver)
        return state.pack(codes)

    def _sweep(self, values: Float, first: int, last: int, grid: ColumnGrid, codes: Codes) -> None:
        problem = self.problem
        self.solver.sweep(values, problem.factor, first, last, grid, codes, problem.cross)

    def _choose_all(self, state: GridState, search: Search, values: Float) -> None:
        """Choose the grids of all groups from the values given."""
        weight = self.problem.weight
        for first, last in blocks_of(state, search):
            within = [state.columns_of(group) for group in range(first, last)]
            # Blocks are made of the weight's own neighbours, whatever the order of rounding.
            within = [c[np.argsort(state.order[c], kind="stable")] for c in within]
            whole = np.concatenate(within)
            search.begin(np.ascontiguousarray(values[whole].T), weight[whole])
            for group, columns in zip(range(first, last), within, strict=True):
                x = np.ascontiguousarray(values[columns].T)
                state.put(group, search.candidates(group - first, x, weight[columns], more=False))

    def _choose_and_sweep(
        self, state: GridState, search: Search, values: Float, codes: Codes
    ) -> None:
        """Choose each group's grid when it is reached, from what its values have become."""
        weight = self.problem.weight
        for first, last in blocks_of(state, search):
            low, high = state.columns_of(first)[0], state.columns_of(last - 1)[-1] + 1
            search.begin(np.ascontiguousarray(values[low:high].T), weight[low:high])
            for group in range(first, last):
                columns = state.columns_of(group)
                low, high = int(columns[0]), int(columns[-1]) + 1
                more = self.options.trials and high - low <= WIDEST_TRIAL
                x = np.ascontiguousarray(values[low:high].T)
                tried = search.candidates(group - first, x, weight[low:high], bool(more))
                if tried.count > 1:
                    tried = tried.picked(self._best(state.grid, tried, values, low, high))
                state.put(group, tried)
                self._sweep(values, low, high, state.grid, codes)

    def _best(
        self, grid: ColumnGrid, tried: Candidates, values: Float, low: int, high: int
    ) -> NDArray[np.intp]:
        """Return the candidate [rows] on which rounding the group costs least."""
        problem, count = self.problem, tried.count
        factor = np.ascontiguousarray(problem.factor[low:high, low:high])
        cross = None
        if problem.cross is not None:
            cross = np.ascontiguousarray(problem.cross[low:high, low:high])
        best = []
        step = max(1, TRIAL_VALUES // ((high - low) * count))
        for start in range(0, len(tried.scale), step):
            rows = slice(start, start + step)
            copies = np.repeat(values[low:high, rows], count, axis=1)
            one = _single_group(grid, tried, rows, high - low)
            codes = np.empty(copies.shape, np.int16)
            error = self.solver.sweep(copies, factor, 0, high - low, one, codes, cross)
            best.append(error.reshape(-1, count).argmin(axis=1))
        return np.concatenate(best)


def _single_group(grid: ColumnGrid, tried: Candidates, rows: slice, columns: int) -> ColumnGrid:
    """Return the grid on which every row of `rows` stands once for each candidate."""

    def flat(array: Float | None, held: Float | None) -> Float | None:
        if array is not None:
            return np.ascontiguousarray(array[rows], np.float32).reshape(1, -1)
        if held is None:
            return None
        return np.repeat(held[:1, rows], tried.count, axis=1)

    scale = flat(tried.scale, None)
    assert scale is not None
    return ColumnGrid(
        scale,
        np.zeros(columns, np.int32),
        grid.low,
        grid.high,
        flat(tried.zero, grid.zero),
        flat(tried.offset, grid.offset),
        grid.fractional,
        grid.levels,
        grid.bounds,
        grid.stored,
    )
