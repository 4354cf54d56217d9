"""Encoder speed beside llama.cpp's own quantizer, per core, at equal bytes.

    python bench/bench_encoders.py [--kinds Q4_K Q6_K ...] [--seconds S] [--json FILE]

For each type, with and without importance: million weights/s of ours and of `ggml_quantize_chunk`
of llama-cpp-python's library, and the ratio. Both run on one thread; times are processor time of
that thread, and the best of the repetitions counts. Weights are normal with a few outliers, rows
are 4,096 wide. The bytes must be equal.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from halfbyte.kernels import cpu
from halfbyte.kernels.layouts import LAYOUTS

COLUMNS = 4096
KINDS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
KINDS += ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"]
NEED_IMPORTANCE = {"IQ2_XXS", "IQ2_XS", "IQ1_S"}


def ggml_library() -> ctypes.CDLL:
    """Return libggml-base of llama-cpp-python."""
    try:
        package = importlib.metadata.distribution("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        sys.exit("llama-cpp-python is not installed")
    ending = {"win32": "ggml-base.dll", "darwin": "libggml-base.dylib"}.get(
        sys.platform, "libggml-base.so"
    )
    library = ctypes.CDLL(str(package.locate_file(f"llama_cpp/lib/{ending}")))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return library


def ggml_encode(
    library: ctypes.CDLL, kind: str, rows: np.ndarray, importance: np.ndarray | None
) -> np.ndarray:
    """Return llama.cpp's bytes [rows, row_bytes]."""
    layout = LAYOUTS[kind]
    out = np.empty((len(rows), rows.shape[1] // layout.values * layout.bytes), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    library.ggml_quantize_chunk(
        layout.ggml_id, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, weights
    )
    return out


def weight_rows(count: int) -> np.ndarray:
    """Return normal weights with outliers, [count, COLUMNS]."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((count, COLUMNS)).astype(np.float32) * np.float32(0.02)
    rows[rng.random(rows.shape) < 1e-3] *= 8
    return rows


def best_seconds(call: Callable[[], object], seconds: float) -> float:
    """Return the least processor time of one call."""
    best, spent = float("inf"), 0.0
    while spent < seconds:
        start = time.process_time()
        call()
        taken = time.process_time() - start
        best, spent = min(best, taken), spent + taken
    return best


def measure(library: ctypes.CDLL, kind: str, weighted: bool, seconds: float) -> dict[str, object]:
    """Return the rates of one type."""
    importance = None
    if weighted:
        importance = np.random.default_rng(1).random(COLUMNS).astype(np.float32) ** 2
    rows = weight_rows(256)
    few = rows[:32]  # the scalar encoder needs a tenth of a second for these
    mine = cpu.encode(kind, rows, importance)
    np.testing.assert_array_equal(mine[:32], ggml_encode(library, kind, few, importance))
    ours = rows.size / best_seconds(lambda: cpu.encode(kind, rows, importance), seconds)
    theirs = few.size / best_seconds(lambda: ggml_encode(library, kind, few, importance), seconds)
    return {
        "kind": kind,
        "importance": weighted,
        "ours_per_s": ours,
        "llama_cpp_per_s": theirs,
        "ratio": ours / theirs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--seconds", type=float, default=0.5, help="per measurement")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cpu.set_threads(1)
    library = ggml_library()
    print(f"{cpu.isa()}, 1 thread, million weights/s, equal bytes")
    print(f"{'type':7} {'importance':10} {'ours':>8} {'llama.cpp':>10} {'ratio':>7}")
    results = []
    for kind in options.kinds:
        for weighted in (False, True):
            if weighted and kind == "Q8_0":
                continue  # takes no notice of importance
            if not weighted and kind in NEED_IMPORTANCE:
                continue
            found = measure(library, kind, weighted, options.seconds)
            results.append(found)
            print(
                f"{kind:7} {'yes' if weighted else 'no':10} {found['ours_per_s'] / 1e6:8.1f} "
                f"{found['llama_cpp_per_s'] / 1e6:10.1f} {found['ratio']:7.1f}",
                flush=True,
            )
    if options.json:
        machine = platform.processor() or platform.machine()
        document = {"machine": machine, "isa": cpu.isa(), "results": results}
        options.json.write_text(json.dumps(document, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
