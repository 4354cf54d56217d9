"""Decode and prefill speed of a GGUF model beside llama-bench, in alternating runs.

    python bench/bench_generation.py MODEL.gguf [--types F32 F16 Q8_0 Q4_0] [--threads 2]

Each type is written from MODEL with `--requantize`, then both tools run the same file with the same
threads, float32 against float16 caches as each tool defaults. Prints medians and ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from llama_cpp import tools_folder

PAIRS = 3


class GenerationSpeed:
    """One model file measured with both tools."""

    def __init__(self, path: Path, threads: int, prefill: int, decode: int) -> None:
        self.path = path
        self.threads = threads
        self.sizes = (prefill, decode)

    def track_halfbyte(self) -> dict[str, float]:
        """Return tokens/s by test."""
        command = [sys.executable, "-m", "halfbyte", "bench", str(self.path), "--json"]
        command += ["--threads", str(self.threads), "--repetitions", "3"]
        command += ["--prefill", str(self.sizes[0]), "--decode", str(self.sizes[1])]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return {entry["test"]: entry["tokens_per_s"] for entry in json.loads(out)["results"]}

    def track_llama_bench(self) -> dict[str, float]:
        """Return tokens/s by test."""
        command = [str(tools_folder() / "llama-bench"), "-m", str(self.path), "-o", "json"]
        command += ["-t", str(self.threads), "-r", "3"]
        command += ["-p", str(self.sizes[0]), "-n", str(self.sizes[1])]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = {}
        for entry in json.loads(out):
            name = f"pp{entry['n_prompt']}" if entry["n_prompt"] else f"tg{entry['n_gen']}"
            found[name] = entry["avg_ts"]
        return found


def write_type(source: Path, folder: Path, type_name: str) -> Path:
    """Return SOURCE written in one type."""
    import halfbyte

    path = folder / f"{type_name}.gguf"
    halfbyte.quantize(source, path, type=type_name, requantize=True)
    assert path.stat().st_size > 0
    return path


def measure(name: str, bench: GenerationSpeed) -> None:
    """Print the medians of both tools and of the ratios."""
    runs = [(bench.track_halfbyte(), bench.track_llama_bench()) for _ in range(PAIRS)]
    for test in runs[0][0]:
        ours = statistics.median(first[test] for first, _ in runs)
        peer = statistics.median(second[test] for _, second in runs)
        ratio = statistics.median(first[test] / second[test] for first, second in runs)
        print(f"{name:<6} {test:<6} {ours:10.1f} {peer:10.1f} {ratio:6.2f}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--types", nargs="+", default=["F32", "F16", "Q8_0", "Q4_0"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=256)
    parser.add_argument("--decode", type=int, default=64)
    options = parser.parse_args()
    print(f"{'type':<6} {'test':<6} {'halfbyte':>10} {'llama.cpp':>10} {'ratio':>6}  tokens/s")
    with tempfile.TemporaryDirectory() as folder:
        for type_name in options.types:
            path = write_type(options.model, Path(folder), type_name)
            bench = GenerationSpeed(path, options.threads, options.prefill, options.decode)
            measure(type_name, bench)


if __name__ == "__main__":
    main()
