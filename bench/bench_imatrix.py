"""`halfbyte imatrix` beside llama-imatrix: difference of the sums, wall and CPU time.

    python bench/bench_imatrix.py MODEL TEXT [--chunks 8] [--context 512] [--threads 2]

Both run an F32 file of MODEL with F32 caches, one chunk per run. A difference is relative to the
tool's sum: the table shows, per kind of weight, the largest over all columns and layers, and the
median. The tool may use fused multiply-add, and adds in float32.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from llama_cpp import tools_folder

LIMIT = 1e-3


def timed(command: list[str]) -> tuple[float, float]:
    """Run a command; return wall and CPU seconds."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    cpu = after.children_user + after.children_system
    return time.perf_counter() - started, cpu - before.children_user - before.children_system


class Collection:
    """One F32 file over one text."""

    def __init__(self, model: Path, text: Path, options: argparse.Namespace) -> None:
        self.model, self.text = str(model), str(text)
        self.chunks, self.context = str(options.chunks), str(options.context)
        self.threads = str(options.threads)

    def track_halfbyte(self, output: Path) -> tuple[float, float]:
        """Return wall and CPU seconds of the command."""
        command = [sys.executable, "-m", "halfbyte", "imatrix", self.model, "--data", self.text]
        command += ["--chunks", self.chunks, "--context", self.context, "--threads", self.threads]
        return timed([*command, "-o", str(output), "-q"])

    def track_llama_cpp(self, output: Path) -> tuple[float, float]:
        """Return wall and CPU seconds of the tool."""
        command = [str(tools_folder() / "llama-imatrix"), "-m", self.model, "-f", self.text]
        command += ["--chunks", self.chunks, "-c", self.context, "-b", self.context]
        command += ["-t", self.threads, "-tb", self.threads, "--no-ppl", "-fa", "off"]
        return timed([*command, "-ctk", "f32", "-ctv", "f32", "-o", str(output)])


def differences(ours: Path, theirs: Path) -> dict[str, np.ndarray]:
    """Return relative differences of all sums by kind of weight, such as `ffn_down`."""
    from halfbyte.converters.gguf.imatrix import read_importance

    mine, other = read_importance(ours), read_importance(theirs)
    assert mine.names == other.names, set(mine.names) ^ set(other.names)
    found: dict[str, list[np.ndarray]] = {}
    for name, entry in other.entries.items():
        assert np.array_equal(mine.entries[name].counts, entry.counts), name
        exact = entry.sums.astype(np.float64)
        gap = np.abs(mine.entries[name].sums - exact) / np.maximum(exact, np.finfo("f4").tiny)
        kind = re.sub(r"^blk\.\d+\.|\.weight$", "", name)
        found.setdefault(kind, []).append(gap.ravel())
    return {kind: np.concatenate(gaps) for kind, gaps in found.items()}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    import halfbyte

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        halfbyte.convert(options.model, folder / "f32.gguf", type="F32", requantize=True)
        bench = Collection(folder / "f32.gguf", options.text, options)
        times = {"halfbyte": [], "llama-imatrix": []}
        for _ in range(options.rounds):
            times["halfbyte"].append(bench.track_halfbyte(folder / "ours.gguf"))
            times["llama-imatrix"].append(bench.track_llama_cpp(folder / "theirs.gguf"))
        gaps = differences(folder / "ours.gguf", folder / "theirs.gguf")
    print(f"{'weight':<16}{'max':>12}{'median':>12}")
    for kind, gap in sorted(gaps.items()):
        print(f"{kind:<16}{gap.max():>12.1e}{np.median(gap):>12.1e}")
    worst = max(gap.max() for gap in gaps.values())
    print(f"worst {worst:.1e}, limit {LIMIT:g}: {'ok' if worst <= LIMIT else 'MISSED'}")
    best = {
        tool: tuple(min(column) for column in zip(*runs, strict=True))
        for tool, runs in times.items()
    }
    for tool, (wall, cpu) in best.items():
        print(f"{tool:<16}{wall:>8.2f} s wall {cpu:>8.2f} s CPU")
    ratio = [b / a for a, b in zip(*best.values(), strict=True)]
    print(f"llama-imatrix / halfbyte: wall {ratio[0]:.2f}, CPU {ratio[1]:.2f}")
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()
