"""The solver's kernels against plain numpy: equal where float32 is exact, near where it rounds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from halfbyte.errors import BackendError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.encoding import Unpacked
from halfbyte.kernels import cpu
from halfbyte.quant.solver import GRAM_ROWS, ColumnGrid, Solver, column_grid, get_solver
from halfbyte.quant.solver_reference import ReferenceSolver

LEVELS = ("scalar", "avx2", "avx512", "neon")
REFERENCE = ReferenceSolver()
ENCODINGS = (
    *("int4-g32", "int4-g32-asym", "int4-g32-fzp-f32", "int3-g64-actorder", "int8", "Q4_0"),
    *("Q4_1", "Q4_K", "Q3_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"),
    *("fp8", "fp8-block128", "mxfp8", "mxfp4", "nvfp4", "nf4", "nf4-g32-bf16", "bnb-fp4"),
    *("int4-g64-bias", "int5-g32-fzp-f32"),
)
SIZES = ((1, 1), (7, 5), (25, 24), (96, 97), (131, 200), (300, 50))


def grids(columns: int, rows: int, rng: np.random.Generator) -> Iterator[ColumnGrid]:
    """Yield grids of every kind whose arithmetic is exact: all scales are powers of two."""
    groups = -(-columns // 32)
    group = rng.permutation(np.arange(columns) // 32).astype(np.int32)
    scale = np.exp2(rng.integers(-2, 1, (groups, rows))).astype(np.float32)
    scale *= rng.choice(np.array([-1, 1, 0], np.float32), (groups, rows), p=[0.2, 0.7, 0.1])
    offset = (rng.integers(-64, 64, (groups, rows)) / 64).astype(np.float32)
    zero = rng.integers(0, 15, (groups, rows)).astype(np.float32)
    half = (rng.integers(0, 30, (groups, rows)) / 2).astype(np.float32)
    yield ColumnGrid(scale, group, -8, 7)
    yield ColumnGrid(scale, group, 0, 15, zero)
    yield ColumnGrid(scale, group, 0, 15, half, fractional=True)
    yield ColumnGrid(scale, group, 0, 15, offset=offset)
    levels = np.array([-12, -8, -5, -3, -1, 0, 2, 4, 7, 12], np.float32)
    yield ColumnGrid(scale, group, levels=levels)
    bounds = np.nextafter((levels[1:] + levels[:-1]) / 2, np.float32(-np.inf))
    yield ColumnGrid(scale, group, zero=zero, levels=levels, bounds=bounds)
    many = (np.cumsum(rng.integers(1, 4, 203)) / 4 - 50).astype(np.float32)
    yield ColumnGrid(scale, group, levels=many)


def whole(rng: np.random.Generator, shape: tuple[int, ...], limit: int = 8) -> np.ndarray:
    return rng.integers(-limit, limit + 1, shape).astype(np.float32)


def sparse_signs(rng: np.random.Generator, size: int, share: float) -> np.ndarray:
    return whole(rng, (size, size), 1) * (rng.random((size, size)) < share).astype(np.float32)


def check_products(solver: Solver) -> None:
    rng = np.random.default_rng(1)
    for rows, columns in SIZES:
        for depth in (1, 127, 1100) if rows < 200 else (GRAM_ROWS + 3,):
            x, y = whole(rng, (depth, rows)), whole(rng, (depth, columns))
            total = np.full((rows, rows), 0.5)
            solver.add_gram(total, x)
            assert np.array_equal(total, x.T.astype(np.float64) @ x + 0.5), (rows, depth)
            cross = np.full((rows, columns), 0.25)
            solver.add_cross(cross, x, y)
            assert np.array_equal(cross, x.T.astype(np.float64) @ y + 0.25), (rows, columns, depth)


def check_sweep(solver: Solver) -> None:
    rng = np.random.default_rng(2)
    for columns, rows in SIZES:
        upper = np.triu(sparse_signs(rng, columns, 0.05), 1) + np.eye(columns, dtype=np.float32)
        cross = np.triu(sparse_signs(rng, columns, 0.02), 1)
        start, stop = columns // 5, columns - columns // 4
        for grid in grids(columns, rows, rng):
            for added in (None, cross):
                made, wanted = (
                    run_sweep(one, grid, upper, added, start, stop) for one in (solver, REFERENCE)
                )
                for left, right in zip(made, wanted, strict=True):
                    assert np.array_equal(left, right), (columns, rows, grid, added is None)


def run_sweep(
    solver: Solver,
    grid: ColumnGrid,
    upper: np.ndarray,
    cross: np.ndarray | None,
    start: int,
    stop: int,
) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(3)
    weights = whole(rng, (grid.columns, grid.rows), 256) / np.float32(64)
    codes = np.full(weights.shape, 99, np.int16)
    errors = solver.sweep(weights, upper, start, stop, grid, codes, cross)
    return weights, codes, errors


def check_descend(solver: Solver) -> None:
    rng = np.random.default_rng(4)
    for columns, rows in SIZES:
        signs = np.triu(sparse_signs(rng, columns, 0.05), 1)
        hessian = signs + signs.T + np.diag(np.float32(2) ** whole(rng, (columns,), 2))
        hessian[:: columns // 3 + 1, :: columns // 3 + 1] *= 0
        weights = whole(rng, (rows, columns), 256) / np.float32(64)
        for grid in grids(columns, rows, rng):
            start = np.ascontiguousarray(grid.assign(np.ascontiguousarray(weights.T)).T)
            made, wanted = start.copy(), start.copy()
            changes = solver.descend(weights, hessian, made, grid, 3)
            assert changes == REFERENCE.descend(weights, hessian, wanted, grid, 3)
            assert np.array_equal(made, wanted), (columns, rows, grid)


def realistic(
    columns: int = 300, rows: int = 140, name: str = "int3-g32"
) -> tuple[np.ndarray, np.ndarray, ColumnGrid]:
    """Return weights [rows, columns], a damped H and the grid of an encoding."""
    rng = np.random.default_rng(5)
    mixed = rng.standard_normal((columns, columns)) * np.exp2(-np.arange(columns) / 60)
    x = (rng.standard_normal((600, columns)) @ mixed).astype(np.float32)
    hessian = np.zeros((columns, columns))
    REFERENCE.add_gram(hessian, x)
    hessian += np.eye(columns) * 0.01 * np.trace(hessian) / columns
    weights = rng.standard_normal((rows, columns)).astype(np.float32)
    encoding = encoding_from_name(name)
    grid = column_grid(encoding, encoding.fit(weights), columns)
    assert grid is not None
    return weights, hessian, grid


def solve(solver: Solver, name: str = "int3-g32") -> dict[str, np.ndarray]:
    weights, hessian, grid = realistic(name=name)
    gram = np.zeros(hessian.shape)
    solver.add_gram(gram, np.ascontiguousarray(weights))
    factor = solver.factor(hessian)
    assert factor is not None
    cross = np.ascontiguousarray(hessian[::-1]) / 50
    shift = solver.cross_factor(cross, factor)
    weights_t, codes_t = np.ascontiguousarray(weights.T), np.zeros(weights.T.shape, np.int16)
    small, p = factor.astype(np.float32), shift.astype(np.float32) / np.float32(100)
    errors = solver.sweep(weights_t, small, 0, 300, grid, codes_t)
    moved_t, other_t = np.ascontiguousarray(weights.T), np.zeros(weights.T.shape, np.int16)
    solver.sweep(moved_t, small, 0, 300, grid, other_t, p)
    codes, h32 = np.ascontiguousarray(codes_t.T), hessian.astype(np.float32)
    solver.descend(weights, h32, codes, grid, 5)
    found = {"gram": gram, "factor": factor, "shift": shift, "sweep": weights_t}
    found |= {"codes": codes_t, "errors": errors, "moved": moved_t, "other": other_t}
    found |= {"plain": solver.cross_factor(cross, factor, strict=False)}
    return found | {"descend": codes}


@pytest.fixture
def solver() -> Iterator[Solver]:
    """Give the kernels' solver on three threads."""
    if not cpu.available():
        pytest.skip("the extension is not built")
    before = cpu.threads()
    yield get_solver("cpu", 3)
    cpu.set_threads(before)


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_grid_rounds_as_its_encoding(name: str) -> None:
    encoding = encoding_from_name(name)
    rows = np.random.default_rng(0).standard_normal((6, 512)).astype(np.float32)
    rows[1] = np.round(rows[1] * 4) / 4
    rows[2, :256] = 0
    if encoding.codebook is not None:
        scales = encoding.fit(rows)
        levels = np.array(encoding.codebook.levels, np.float32)
        middles = (levels[1:] + levels[:-1]) / 2
        rows[3] = np.resize(middles, 512) * np.repeat(scales.scale[3], 512 // len(scales.scale[3]))
    scales = encoding.fit(rows)
    grid = column_grid(encoding, scales, 512)
    assert grid is not None
    codes = grid.assign(np.ascontiguousarray(rows.T))
    wanted = encoding.assign(rows, scales)
    assert np.array_equal(grid.stored_codes(codes), wanted)
    decoded = encoding.decode(encoding.pack(Unpacked(wanted, scales)), 512)
    assert np.array_equal(grid.decode(codes).T, decoded)
    part = grid.row_range(1, 3)
    assert np.array_equal(part.assign(np.ascontiguousarray(rows[1:3].T)), codes[:, 1:3])
    assert np.array_equal(grid.assign(np.ascontiguousarray(rows[:, 7]), 7), codes[7])


def test_encodings_of_vectors_have_no_column_grid() -> None:
    rows = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
    encoding = encoding_from_name("IQ3_S")
    assert column_grid(encoding, encoding.fit(rows), 256) is None


def test_sums_of_whole_numbers_are_exact(solver: Solver) -> None:
    check_products(solver)
    check_products(REFERENCE)


def test_exact_sweeps_equal_the_reference(solver: Solver) -> None:
    check_sweep(solver)


def test_exact_descents_equal_the_reference(solver: Solver) -> None:
    check_descend(solver)


@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set_is_exact(level: str) -> None:
    if not cpu.available():
        pytest.skip("the extension is not built")
    if cpu.isa() == level:
        return  # the tests above
    folder = str(Path(__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {folder!r}); import runpy; "
    code += f"runpy.run_path({__file__!r}, run_name='__main__')"
    environment = {**os.environ, "HALFBYTE_ISA": level}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240
    )
    if done.returncode:
        assert f"HALFBYTE_ISA: {level} is not available" in done.stderr, done.stderr


@pytest.mark.parametrize("size", [1, 5, 95, 96, 97, 200, 500])
def test_factors_invert_the_hessian(solver: Solver, size: int) -> None:
    rng = np.random.default_rng(size)
    half = rng.standard_normal((size + 3, size))
    hessian = half.T @ half + np.eye(size)
    kept = hessian.copy()
    factor = solver.factor(hessian)
    wanted = REFERENCE.factor(hessian)
    assert factor is not None and wanted is not None
    assert np.array_equal(hessian, kept)
    assert np.array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor, wanted, rtol=0, atol=1e-10 * abs(wanted).max())
    np.testing.assert_allclose(factor.T @ factor @ hessian, np.eye(size), atol=1e-8)
    cross = rng.standard_normal((size, size))
    for strict in (True, False):
        made = solver.cross_factor(cross, factor, strict)
        plain = REFERENCE.cross_factor(cross, factor, strict)
        np.testing.assert_allclose(made, plain, rtol=0, atol=1e-11 * abs(plain).max() + 1e-300)
    np.testing.assert_allclose(made @ hessian, cross, atol=1e-8)


def test_the_cross_factor_solves_for_the_columns_that_follow() -> None:
    _, hessian, _ = realistic(40)
    cross = np.random.default_rng(6).standard_normal((40, 40))
    factor = REFERENCE.factor(hessian)
    assert factor is not None
    made = REFERENCE.cross_factor(cross, factor)
    for k in (0, 13, 38):
        wanted = np.linalg.solve(hessian[k + 1 :, k + 1 :], cross[k, k + 1 :])
        np.testing.assert_allclose(made[k, k + 1 :], wanted, rtol=1e-8, atol=1e-14)
        assert not made[k, : k + 1].any()


@pytest.mark.parametrize("bad", ["negative", "zero", "nan", "inf"])
def test_other_matrices_have_no_factor(solver: Solver, bad: str) -> None:
    hessian = np.eye(130)
    hessian[70, 70] = {"negative": -1.0, "zero": 0.0, "nan": np.nan, "inf": np.inf}[bad]
    assert solver.factor(hessian) is None
    assert REFERENCE.factor(hessian) is None


@pytest.mark.parametrize("name", ["int3-g32", "int4-g32-asym", "int2-g32"])
def test_kernels_agree_with_the_reference_on_real_numbers(solver: Solver, name: str) -> None:
    made, wanted = solve(solver, name), solve(REFERENCE, name)
    np.testing.assert_allclose(made["gram"], wanted["gram"], rtol=0, atol=1e-4)
    for key in ("factor", "shift", "plain"):
        scale = abs(wanted[key]).max()
        np.testing.assert_allclose(made[key], wanted[key], rtol=0, atol=1e-11 * scale)
    # A value near a tie may round the other way, and with it the rest of its row.
    for key in ("codes", "other"):
        rows = (made[key] != wanted[key]).any(axis=0)
        assert rows.mean() < 0.03, key
    same = ~(made["codes"] != wanted["codes"]).any(axis=0)
    np.testing.assert_allclose(made["errors"][same], wanted["errors"][same], rtol=1e-4)
    np.testing.assert_allclose(made["sweep"][:, same], wanted["sweep"][:, same], rtol=1e-5)
    assert (made["descend"] != wanted["descend"]).any(axis=1).mean() < 0.1


def test_thread_counts_give_the_same_bits(solver: Solver) -> None:
    found = []
    for threads in (1, 2, 3):
        found.append(solve(get_solver("cpu", threads)))
    for other in found[1:]:
        for key, value in found[0].items():
            assert value.tobytes() == other[key].tobytes(), key


def test_batches_of_whole_chunks_give_the_same_sums(solver: Solver) -> None:
    x = np.random.default_rng(7).standard_normal((6 * GRAM_ROWS + 10, 70)).astype(np.float32)
    once, parts = np.zeros((70, 70)), np.zeros((70, 70))
    solver.add_gram(once, x)
    for start in range(0, len(x), 2 * GRAM_ROWS):
        solver.add_gram(parts, x[start : start + 2 * GRAM_ROWS])
    assert np.array_equal(once, parts)
    assert np.array_equal(once, once.T)


@pytest.mark.parametrize("which", ["kernels", "reference"])
def test_each_step_lowers_the_error(solver: Solver, which: str) -> None:
    one = solver if which == "kernels" else REFERENCE
    weights, hessian, grid = realistic()
    h32 = hessian.astype(np.float32)
    factor = one.factor(hessian)
    assert factor is not None

    def error(codes: np.ndarray) -> float:
        difference = weights - grid.decode(np.ascontiguousarray(codes.T)).T
        return float(one.row_errors(np.ascontiguousarray(difference), h32).sum())

    weights_t = np.ascontiguousarray(weights.T)
    nearest = grid.assign(weights_t)
    codes_t = np.zeros_like(nearest)
    estimates = one.sweep(weights_t, factor.astype(np.float32), 0, 300, grid, codes_t)
    assert np.array_equal(grid.decode(codes_t), weights_t)
    codes = np.ascontiguousarray(codes_t.T)
    steps = [error(nearest.T), error(codes)]
    assert estimates.sum() == pytest.approx(steps[1], rel=1e-4)
    assert one.descend(weights, h32, codes, grid, 10) > 0
    steps.append(error(codes))
    assert steps == sorted(steps, reverse=True)
    assert steps[1] < 0.8 * steps[0]


def test_sweeps_of_parts_equal_one_sweep(solver: Solver) -> None:
    weights, hessian, grid = realistic()
    factor = solver.factor(hessian)
    assert factor is not None
    upper = factor.astype(np.float32)
    found = []
    for cuts in ((0, 300), (0, 128, 256, 300)):
        weights_t = np.ascontiguousarray(weights.T)
        codes_t = np.zeros(weights_t.shape, np.int16)
        for start, stop in pairwise(cuts):
            solver.sweep(weights_t, upper, start, stop, grid, codes_t)
        found.append(codes_t)
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize("which", ["kernels", "reference"])
def test_chosen_values_are_fed_back_as_a_sweep_does(solver: Solver, which: str) -> None:
    one = solver if which == "kernels" else REFERENCE
    weights, hessian, grid = realistic()
    factor = one.factor(hessian)
    assert factor is not None
    upper, cross = factor.astype(np.float32), np.triu(hessian.astype(np.float32), 1) / 1e6
    swept, fed = np.ascontiguousarray(weights.T), np.ascontiguousarray(weights.T)
    codes_t = np.zeros(swept.shape, np.int16)
    for start, stop in ((0, 90), (90, 300)):
        wanted = one.sweep(swept, upper, start, stop, grid, codes_t, cross)
        errors = one.feed_back(fed, upper, start, swept[start:stop], cross)
        assert np.array_equal(errors, wanted)
        assert np.array_equal(fed, swept)


def test_products_are_those_of_rows(solver: Solver) -> None:
    rng = np.random.default_rng(8)
    a, b = whole(rng, (37, 90)), whole(rng, (53, 90))
    assert np.array_equal(solver.product(a, b), a @ b.T)
    assert solver.product(a[:0], b).shape == (0, 53)


def test_wrong_arrays_are_refused(solver: Solver) -> None:
    weights, hessian, grid = realistic()
    weights_t, codes_t = np.ascontiguousarray(weights.T), np.zeros(weights.T.shape, np.int16)
    upper = np.eye(300, dtype=np.float32)
    with pytest.raises(ValueError, match="weights has shape"):
        solver.sweep(weights_t[:, :5].copy(), upper, 0, 300, grid, codes_t)
    with pytest.raises(ValueError, match="columns do not exist"):
        solver.sweep(weights_t, upper, 0, 301, grid, codes_t)
    with pytest.raises(ValueError, match="total has shape"):
        solver.add_gram(hessian, np.zeros((4, 299), np.float32))
    with pytest.raises(ValueError, match="hessian"):
        solver.factor(hessian.astype(np.float32))
    with pytest.raises(ValueError, match="b has 2 columns"):
        solver.product(upper, upper[:, :2])


def test_devices_without_a_solver_are_refused() -> None:
    with pytest.raises(BackendError, match="device 'cuda' has no kernels for calibrated"):
        get_solver("cuda")


if __name__ == "__main__":
    check_products(get_solver("cpu", 2))
    check_sweep(get_solver("cpu", 2))
    check_descend(get_solver("cpu", 2))
