"""Linear kernels on the shapes of SmolLM2-135M beside numpy and the machine's roofline.

    python bench/bench_kernels.py [--threads N] [--kinds float32 Q4_0 ...] [--json FILE]

Decode (one row) is bounded by bytes/s, prefill (256 rows) by float operations/s. The roofline is
measured in the same run: read bandwidth over a block larger than the caches, and fused
multiply-adds on registers. With one thread, times are processor time of that thread (so other work
on the machine disturbs less), else wall time; the best of the repetitions counts. numpy's time is
wall time of its own BLAS threads over weights decoded beforehand; every result is compared with it.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from halfbyte.kernels import cpu

KINDS = ("float32", "float16", "bfloat16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
SHAPES = {
    "attention": (576, 576),
    "feed-forward up": (1536, 576),
    "feed-forward down": (576, 1536),
    "output head": (49152, 576),
}
PREFILL_ROWS = 256
SECONDS = 0.25
STREAM_BYTES = 400 << 20
# Relative to the sum of magnitudes: float32 order, and int8 activations.
TOLERANCE = {"exact": 1e-6, "int8": 1e-2}


@dataclass
class Result:
    """One kernel on one shape; bandwidth counts encoded weight bytes."""

    shape: str
    kind: str
    compute: str
    rows: int
    seconds: float
    gigabytes_per_s: float
    gigaflops_per_s: float
    share_of_roofline: float
    numpy_seconds: float


def best_seconds(function: Callable[[], object], threads: int, budget: float = SECONDS) -> float:
    """Return the shortest time of repeated calls."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    function()
    best, end = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < end or best == float("inf"):
        start = clock()
        function()
        best = min(best, clock() - start)
    return best


class Roofline:
    """What the machine can do with the threads in use."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.flops = threads * max(cpu.fma_peak() for _ in range(10))
        self.bytes = self.track_stream()

    def track_stream(self) -> float:
        """Return bytes/s of reading one long float32 row range with the threads in use."""
        columns = 4096
        values = np.ones((STREAM_BYTES // (4 * columns), columns), np.float32)
        weight = cpu.LinearWeight("float32", values, *values.shape)
        x, out = np.ones((1, columns), np.float32), np.empty((1, len(values)), np.float32)
        seconds = best_seconds(lambda: cpu.linear(x, weight, None, "exact", out), self.threads, 1)
        assert np.all(out == columns)
        return values.nbytes / seconds


class LinearKernel:
    """One weight and one number of rows."""

    def __init__(self, kind: str, shape: tuple[int, int], rows: int) -> None:
        rng = np.random.default_rng(0)
        self.weight_bytes = cpu.encode(kind, rng.standard_normal(shape).astype(np.float32))
        self.weight = cpu.LinearWeight(kind, self.weight_bytes, *shape)
        self.values = self.weight.decode()
        self.x = rng.standard_normal((rows, shape[1])).astype(np.float32)
        self.out = np.empty((rows, shape[0]), np.float32)

    def check(self, compute: cpu.Compute) -> None:
        """Compare with numpy over the decoded weights."""
        cpu.linear(self.x, self.weight, None, compute, self.out)
        error = np.abs(self.out - self.x @ self.values.T)
        size = np.abs(self.x) @ np.abs(self.values).T
        assert np.all(error <= TOLERANCE[compute] * size), (self.weight.kind, compute)

    def time_linear(self, compute: cpu.Compute, threads: int) -> float:
        """Return seconds of one call."""
        call = lambda: cpu.linear(self.x, self.weight, None, compute, self.out)  # noqa: E731
        return best_seconds(call, threads)

    def time_numpy(self) -> float:
        """Return wall seconds of numpy's product with float32 weights decoded beforehand."""
        return best_seconds(lambda: self.x @ self.values.T, 0, 0.1)


def measure(kind: str, shape: str, rows: int, roofline: Roofline) -> list[Result]:
    """Return one result per compute mode."""
    kernel = LinearKernel(kind, SHAPES[shape], rows)
    numpy_seconds = kernel.time_numpy()
    results = []
    modes: list[cpu.Compute] = ["exact"]
    if kind in cpu.CLAIMS["linear_int8"]:
        modes.append("int8")
    for compute in modes:
        kernel.check(compute)
        seconds = kernel.time_linear(compute, roofline.threads)
        bandwidth = kernel.weight_bytes.nbytes / seconds
        flops = 2 * kernel.values.size * rows / seconds
        share = bandwidth / roofline.bytes if rows == 1 else flops / roofline.flops
        figures = (bandwidth / 1e9, flops / 1e9, share, numpy_seconds)
        results.append(Result(shape, kind, compute, rows, seconds, *figures))
    return results


def show(result: Result) -> None:
    rate = (
        f"{result.gigabytes_per_s:8.1f} GB/s   "
        if result.rows == 1
        else f"{result.gigaflops_per_s:8.1f} GFLOP/s"
    )
    share = 100 * result.share_of_roofline
    print(
        f"{result.shape:18} {result.kind:9} {result.compute:6} {result.rows:4} rows "
        f"{1e6 * result.seconds:9.1f} us {rate} {share:5.0f} % of roofline   "
        f"numpy {1e6 * result.numpy_seconds:9.1f} us",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cpu.set_threads(options.threads)
    roofline = Roofline(options.threads)
    print(
        f"{cpu.isa()}, {options.threads} threads: {roofline.bytes / 1e9:.1f} GB/s read, "
        f"{roofline.flops / 1e9:.0f} GFLOP/s fused multiply-add"
    )
    results: list[Result] = []
    for shape in SHAPES:
        for kind in options.kinds:
            for rows in (1, PREFILL_ROWS):
                if rows > 1 and shape == "output head":
                    continue
                found = measure(kind, shape, rows, roofline)
                for result in found:
                    show(result)
                results += found
    if options.json:
        document = {
            "machine": platform.processor() or platform.machine(),
            "isa": cpu.isa(),
            "threads": options.threads,
            "read_bytes_per_s": roofline.bytes,
            "fma_flops_per_s": roofline.flops,
            "results": [asdict(result) for result in results],
        }
        options.json.write_text(json.dumps(document, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
