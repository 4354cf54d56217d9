"""ONNX models beside onnxruntime on the CPU: time of one run, and the largest difference.

    python bench/bench_onnx_models.py MODEL.onnx ... [--threads 1 2] [--rounds N] [--length N]

Runs of both alternate, so that other work on the machine meets both; with one thread the processor
time of that thread counts, else wall time. Printed are the best times, their ratio (below 1:
halfbyte is faster), and the ratio of medians, which a busy machine moves more. Symbolic dimensions
become 1, those after the first `--length`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.runtime.session import Session

SECONDS = 2.0
# Threads of the other runtime spin for a while after a run; they must not meet the next one. After
# the rest one run wakes the own threads, then a few are measured.
REST = 0.1
BURST = 5
# Relative to the largest value of an output; int8 models round differently in every runtime.
TOLERANCE = 1e-4


def example(entry: Any, length: int, generator: np.random.Generator) -> np.ndarray:
    """Return an input for a description of onnxruntime: shape with names, type `tensor(float)`."""
    dims = [
        d if isinstance(d, int) else (1 if i == 0 else length) for i, d in enumerate(entry.shape)
    ]
    kind = entry.type.removeprefix("tensor(").removesuffix(")")
    if kind == "float":
        return generator.standard_normal(dims, dtype=np.float32)
    dtype = {"int64": np.int64, "int32": np.int32, "bool": np.bool_, "uint8": np.uint8}[kind]
    high = 2 if "mask" in entry.name or "type" in entry.name or kind == "bool" else 100
    if "mask" in entry.name:
        return np.ones(dims, dtype)
    return generator.integers(0, high, dims).astype(dtype)


def reference(path: Path, threads: int) -> Any:
    """Return onnxruntime's session with its default optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def alternating(
    functions: dict[str, Callable[[], object]], threads: int, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of each call of each function."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    end = time.perf_counter() + SECONDS
    while len(times[next(iter(times))]) < rounds or time.perf_counter() < end:
        for name, function in functions.items():
            if threads > 1:
                time.sleep(REST)
                function()
            for _ in range(BURST):
                started = clock()
                function()
                times[name].append(clock() - started)
    return times


def difference(ours: dict[str, np.ndarray], theirs: list[np.ndarray]) -> float:
    """Return the largest difference relative to the largest value of an output."""
    worst = 0.0
    for mine, wanted in zip(ours.values(), theirs, strict=True):
        assert mine.shape == wanted.shape, (mine.shape, wanted.shape)
        if wanted.size and wanted.dtype.kind == "f":
            scale = float(np.abs(wanted).max()) or 1.0
            worst = max(worst, float(np.abs(mine - wanted).max()) / scale)
    return worst


def main() -> None:
    """Print one line per model and thread count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=64)
    options = parser.parse_args()
    heads = ("halfbyte ms", 13), ("onnxruntime ms", 16), ("ratio", 8), ("medians", 9)
    columns = "".join(f"{name:>{width}}" for name, width in heads)
    print(f"{'model':<26}{'threads':>8}{columns}  error")
    for path in options.models:
        for threads in options.threads:
            theirs = reference(path, threads)
            generator = np.random.default_rng(7)
            feeds = {e.name: example(e, options.length, generator) for e in theirs.get_inputs()}
            ours = Session(path, threads=threads)
            error = difference(ours.run(feeds), theirs.run(None, feeds))
            runs = {
                "ours": lambda s=ours, f=feeds: s.run(f),
                "theirs": lambda s=theirs, f=feeds: s.run(None, f),
            }
            found = alternating(runs, threads, options.rounds)
            best = {name: 1e3 * min(values) for name, values in found.items()}
            middle = {name: statistics.median(values) for name, values in found.items()}
            note = "" if error < TOLERANCE else "  (int8?)"
            print(
                f"{path.stem:<26}{threads:>8}{best['ours']:>13.3f}{best['theirs']:>16.3f}"
                f"{best['ours'] / best['theirs']:>8.2f}"
                f"{middle['ours'] / middle['theirs']:>9.2f}  {error:.1e}{note}",
                flush=True,
            )


if __name__ == "__main__":
    main()
