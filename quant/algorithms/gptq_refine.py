"""After GPTQ: scales fitted again to the codes, then codes to the scales, while the error falls.

The error of a row is (w - q)^T H (w - q) with the damped hessian. With all else fixed it is a
quadratic in one group's scale and offset, whose least is known; the file's own numbers around it
are compared by the same quadratic. Numbers that a block of groups shares are fitted in turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.quant.algorithms.gptq_problem import Float, Problem
from halfbyte.quant.rounding_grid import Codes, GridState
from halfbyte.quant.rounding_scales import Search, minimum_of
from halfbyte.quant.solver import Solver

PASSES = 2  # of descent on codes in a round
Float64 = NDArray[np.float64]


def refine(
    target: Float,
    problem: Problem,
    state: GridState,
    search: Search | None,
    codes_t: Codes,
    rounds: int,
    solver: Solver,
) -> None:
    """Improve grid and codes [columns, rows] in place; target: [rows, columns]."""
    refit = _Refit(target, problem.hessian, state, np.ascontiguousarray(codes_t.T), solver)
    before, held = refit.errors(), (state.copied(), refit.codes.copy())
    for _ in range(rounds):
        if search is not None:
            refit.groups(search)
            refit.shared(search)
        if not solver.descend(target, problem.hessian, refit.codes, state.grid, PASSES):
            break
    worse = refit.errors() > before
    state.restore(held[0], worse)
    refit.codes[worse] = held[1][worse]
    codes_t[:] = refit.codes.T


@dataclass
class _Quadratic:
    """The change of a row's error when scale and offset change by s and o.

    -2 (s slope + o lift) + s^2 curve + 2 s o mixed + o^2 level; all [rows] float64.
    """

    slope: Float64
    curve: Float64
    lift: Float64
    mixed: Float64
    level: Float64

    def at(self, s: Float64, o: Float64) -> Float64:
        """Return the change for steps [rows, candidates]."""
        slope, curve, lift, mixed, level = (
            a[:, None] for a in (self.slope, self.curve, self.lift, self.mixed, self.level)
        )
        change: Float64 = s * (s * curve - 2 * slope) + o * (o * level - 2 * lift + 2 * s * mixed)
        return change

    def least(self, free_offset: bool) -> tuple[Float64, Float64]:
        """Return the best steps of scale and offset; offset 0 where it is not free."""
        alone = np.divide(
            self.slope, self.curve, out=np.zeros_like(self.slope), where=self.curve > 0
        )
        if not free_offset:
            return alone, np.zeros_like(alone)
        determinant = self.curve * self.level - self.mixed * self.mixed
        sound = determinant > 1e-9 * self.curve * self.level
        safe = np.where(sound, determinant, 1)
        s = np.where(sound, (self.slope * self.level - self.lift * self.mixed) / safe, alone)
        o = np.where(sound, (self.lift * self.curve - self.slope * self.mixed) / safe, 0)
        return s, o


class _Refit:
    """The values of some rows, and how their error answers to a change."""

    def __init__(
        self, target: Float, hessian: Float, state: GridState, codes: Codes, solver: Solver
    ) -> None:
        self.target, self.hessian, self.state = target, hessian, state
        self.codes, self.solver = codes, solver

    def errors(self) -> Float64:
        """Return the error of each row."""
        return self.solver.row_errors(self.target - self._values(), self.hessian)

    def groups(self, search: Search) -> None:
        """Fit scale and offset of one group after the other."""
        state, grid = self.state, self.state.grid
        units = self._units()
        gradient = self._gradient()
        free = grid.offset is not None or state.moves_zero
        for group in range(state.groups):
            columns = state.columns_of(group)
            u = np.ascontiguousarray(units[:, columns])
            quadratic = self._quadratic(u, np.ones_like(u), gradient, columns)
            old = state.at(group)
            start = minimum_of(old)[:, 0].astype(np.float64)
            s, o = quadratic.least(free)
            wanted = (old.scale[:, 0] + s).astype(np.float32), (start + o).astype(np.float32)
            if not free:
                wanted = wanted[0], np.zeros_like(wanted[0])
            tried = search.nearest(wanted[0][:, None], wanted[1][:, None], old)
            moved = minimum_of(tried) - start[:, None] if free else np.zeros_like(tried.scale)
            steps = tried.scale.astype(np.float64) - old.scale, moved.astype(np.float64)
            change = quadratic.at(*steps)
            best = change.argmin(axis=1)
            better = np.take_along_axis(change, best[:, None], 1)[:, 0] < 0
            s, o = (
                np.where(better, np.take_along_axis(step, best[:, None], 1)[:, 0], 0)
                for step in steps
            )
            state.put(group, tried.picked(best), better)
            delta = u * s[:, None].astype(np.float32) + o[:, None].astype(np.float32)
            gradient -= self._pushed(delta, columns)

    def shared(self, search: Search) -> None:
        """Fit the numbers d and dmin of one block after the other."""
        state = self.state
        if "d" not in state.fields or "sc" not in state.fields:
            return
        units, gradient = self._units(), self._gradient()
        per_block = state.fields["sc"].shape[1] // state.fields["d"].shape[1]
        for block in range(state.fields["d"].shape[1]):
            within = range(block * per_block, (block + 1) * per_block)
            places = [state.columns_of(group) for group in within]
            columns = np.concatenate(places)
            owner = np.repeat(np.array(within), [len(place) for place in places])
            sc = state.fields["sc"][:, owner].astype(np.float32)
            u = np.ascontiguousarray(units[:, columns] * sc)
            free = "mn" in state.fields
            lift = np.zeros_like(u)
            if free:
                lift = np.ascontiguousarray(-state.fields["mn"][:, owner].astype(np.float32))
            quadratic = self._quadratic(u, lift, gradient, columns)
            d = state.fields["d"][:, block].astype(np.float64)
            dmin = state.fields["dmin"][:, block].astype(np.float64) if free else np.zeros_like(d)
            pairs = [quadratic.least(False)] + ([quadratic.least(True)] if free else [])
            tried_d = np.stack([_half(d + s) for s, _ in pairs], axis=1)
            tried_m = np.stack([_half(dmin + o) for _, o in pairs], axis=1)
            change = quadratic.at(tried_d - d[:, None], tried_m - dmin[:, None])
            if free:
                change[(tried_m < 0) | (tried_d < 0)] = np.inf
            best = change.argmin(axis=1)[:, None]
            better = np.take_along_axis(change, best, 1)[:, 0] < 0
            new = [
                np.where(better, np.take_along_axis(tried, best, 1)[:, 0], old)
                for tried, old in ((tried_d, d), (tried_m, dmin))
            ]
            state.put_shared(block, within, new[0].astype(np.float32), new[1].astype(np.float32))
            steps = [
                (n - o).astype(np.float32)[:, None] for n, o in zip(new, (d, dmin), strict=True)
            ]
            moved = np.asarray(u * steps[0] + lift * steps[1], np.float32)
            gradient -= self._pushed(moved, columns)

    def _values(self) -> Float:
        grid = self.state.grid
        return np.ascontiguousarray(grid.decode(np.ascontiguousarray(self.codes.T)).T)

    def _gradient(self) -> Float:
        """Return (w - q) H, [rows, columns]."""
        return self.solver.product(self.target - self._values(), self.hessian)

    def _units(self) -> Float:
        """Return what values are in units of their scale, [rows, columns]; offsets left out.

        Where zero points move, codes themselves, as a zero point is then an offset.
        """
        grid = self.state.grid
        units = self.codes.astype(np.float32) if grid.levels is None else grid.levels[self.codes]
        if grid.zero is None or self.state.moves_zero:
            return units
        shifted: Float = units - grid.zero.T[:, grid.group_of_column]
        return shifted

    def _quadratic(
        self, u: Float, lift: Float, gradient: Float, columns: NDArray[np.intp]
    ) -> _Quadratic:
        """Return the error's change with u times one step and `lift` times another."""
        within = np.ascontiguousarray(self.hessian[np.ix_(columns, columns)])
        slope = np.ascontiguousarray(gradient[:, columns])
        pushed, pushed_lift = self.solver.product(u, within), self.solver.product(lift, within)

        def dot(a: Float, b: Float) -> Float64:
            sums: Float64 = np.einsum("rk,rk->r", a, b, dtype=np.float64)
            return sums

        return _Quadratic(
            dot(u, slope),
            dot(u, pushed),
            dot(lift, slope),
            dot(u, pushed_lift),
            dot(lift, pushed_lift),
        )

    def _pushed(self, delta: Float, columns: NDArray[np.intp]) -> Float:
        return self.solver.product(
            np.ascontiguousarray(delta), np.ascontiguousarray(self.hessian[:, columns])
        )


def _half(values: Float64) -> Float64:
    with np.errstate(over="ignore"):
        held: Float64 = values.astype(np.float16).astype(np.float64)
    return np.where(np.isfinite(held), held, 0)
