"""The linear algebra of calibrated quantization beside the machine's roofline and numpy.

    python bench/bench_solver.py [--threads N] [--sizes 576 1024 2048] [--json FILE]

Operations per second are counted as the algorithm needs them: n K^2 for x^T x (half of the full
product), 2/3 K^3 for the factor of the inverse, rows K^2 for a sweep of all columns, 2 rows K^2 for
a product; a pass of the descent counts the changes it makes, 2 K each. The roofline is
multiply-adds on registers in float32, half of it in float64. With one thread, times are processor
time of that thread, else wall time; the best of the repetitions counts. numpy's time is wall time
of its own BLAS threads (of the sweep: of the reference, which is numpy too).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from halfbyte.kernels import cpu
from halfbyte.quant.solver import ColumnGrid, get_solver
from halfbyte.quant.solver_reference import ReferenceSolver

TOKENS = 2048
ROWS = 1024
GROUP = 128
SECONDS = 0.5


@dataclass
class Result:
    """One step for matrices of K columns."""

    step: str
    columns: int
    seconds: float
    gigaflops_per_s: float
    share_of_roofline: float
    numpy_seconds: float


def best_seconds(function: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the shortest time of repeated calls."""
    function()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end or best == float("inf"):
        start = clock()
        function()
        best = min(best, clock() - start)
    return best


@dataclass
class Step:
    """What is timed: operations, whether in float64, and the two ways to do it."""

    name: str
    operations: float
    double: bool
    kernel: Callable[[], object]
    plain: Callable[[], object]


def steps(columns: int) -> Iterator[Step]:
    """Yield the steps for a weight [ROWS, columns] and TOKENS inputs."""
    rng = np.random.default_rng(0)
    solver, plain = get_solver("cpu"), ReferenceSolver()
    x = rng.standard_normal((TOKENS, columns)).astype(np.float32)
    total, square = np.zeros((columns, columns)), columns * columns
    yield Step(
        "add_gram",
        TOKENS * square,
        False,
        lambda: solver.add_gram(total, x),
        lambda: plain.add_gram(total, x),
    )
    hessian = np.zeros((columns, columns))
    solver.add_gram(hessian, x)
    hessian += np.eye(columns) * 0.01 * np.trace(hessian) / columns
    factor = solver.factor(hessian)
    assert factor is not None
    yield Step(
        "factor",
        2 / 3 * columns * square,
        True,
        lambda: solver.factor(hessian),
        lambda: np.linalg.inv(np.linalg.cholesky(hessian[::-1, ::-1])),
    )
    upper, h32 = factor.astype(np.float32), hessian.astype(np.float32)
    weights_t = rng.standard_normal((columns, ROWS)).astype(np.float32)
    group = (np.arange(columns) // GROUP).astype(np.int32)
    grid = ColumnGrid(np.full((group[-1] + 1, ROWS), 0.3, np.float32), group, -8, 7)
    codes_t = np.zeros(weights_t.shape, np.int16)
    yield Step(
        "sweep",
        ROWS * square,
        False,
        lambda: solver.sweep(weights_t.copy(), upper, 0, columns, grid, codes_t),
        lambda: plain.sweep(weights_t.copy(), upper, 0, columns, grid, codes_t),
    )
    weights = np.ascontiguousarray(weights_t.T)
    yield Step(
        "product",
        2 * ROWS * square,
        False,
        lambda: solver.product(weights, h32),
        lambda: weights @ h32.T,
    )
    solver.sweep(weights_t.copy(), upper, 0, columns, grid, codes_t)
    start = np.ascontiguousarray(codes_t.T)
    changes = solver.descend(weights, h32, start.copy(), grid, 1)
    yield Step(
        "descend, a pass",
        2 * ROWS * square + 2 * changes * columns,
        False,
        lambda: solver.descend(weights, h32, start.copy(), grid, 1),
        lambda: plain.descend(weights, h32, start.copy(), grid, 1),
    )


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=cpu.threads())
    parser.add_argument("--sizes", type=int, nargs="+", default=[576, 1024, 2048])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cpu.set_threads(arguments.threads)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    peak = max(cpu.fma_peak() for _ in range(10)) * arguments.threads
    print(f"{platform.processor() or platform.machine()}, {cpu.isa()}, {arguments.threads} threads")
    print(f"roofline {peak / 1e9:.0f} GFLOP/s in float32\n")
    print(f"{'step':16} {'K':>5} {'ms':>9} {'GFLOP/s':>8} {'share':>6} {'numpy ms':>9}")
    results = []
    for columns in arguments.sizes:
        for step in steps(columns):
            seconds = best_seconds(step.kernel, clock)
            rate = step.operations / seconds
            share = rate / (peak / 2 if step.double else peak)
            plain = best_seconds(step.plain, time.perf_counter)
            results.append(Result(step.name, columns, seconds, rate / 1e9, share, plain))
            print(
                f"{step.name:16} {columns:5} {seconds * 1e3:9.2f} {rate / 1e9:8.1f} "
                f"{share:6.1%} {plain * 1e3:9.2f}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
