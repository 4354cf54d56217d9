"""Figures and time of `halfbyte verify` beside llama-perplexity, on a pair of F32 files.

    python bench/bench_verification.py MODEL TEXT [--type Q4_0] [--context 512] [--chunks 20]

The second file holds MODEL's weights in TYPE, decoded to F32 again. llama-perplexity stores the
reference's log-probabilities in 16 bits, at most 16 nats below the best token, and compares with
those: the column `as stored` is `halfbyte verify --reference-storage 16-bit`, which must agree
within 1 %. The column `halfbyte` holds the default, which rounds nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from llama_cpp import tools_folder

NUMBER = r"(-?[\d.]+)"
PATTERNS = {
    "mean_kl": rf"Mean    KLD: +{NUMBER}",
    "median_kl": rf"Median  KLD: +{NUMBER}",
    "p99_kl": rf"99\.0%   KLD: +{NUMBER}",
    "max_kl": rf"Maximum KLD: +{NUMBER}",
    "top1_agreement": rf"Same top p: +{NUMBER}",
    "ppl_reference": rf"Mean PPL\(base\) +: +{NUMBER}",
    "ppl_reference_error": rf"Mean PPL\(base\) +: +\S+ ± +{NUMBER}",
    "ppl_candidate": rf"Mean PPL\(Q\) +: +{NUMBER}",
    "ppl_candidate_error": rf"Mean PPL\(Q\) +: +\S+ ± +{NUMBER}",
    "ppl_ratio": rf"Mean PPL\(Q\)/PPL\(base\) +: +{NUMBER}",
    "ppl_ratio_error": rf"Mean PPL\(Q\)/PPL\(base\) +: +\S+ ± +{NUMBER}",
    "rms_probability_change": rf"RMS Δp +: +{NUMBER}",
}
PERCENT = {"top1_agreement", "rms_probability_change"}
# What the storage changes: the reference's own figures and the error of the ratio.
STORAGE = {"ppl_reference", "ppl_reference_error", "ppl_ratio", "ppl_ratio_error"}
LIMIT = 0.01
# The tool prints from a thread of its own and now and then exits before the last lines are out.
ATTEMPTS = 5


def write_pair(model: Path, folder: Path, type_name: str) -> tuple[Path, Path]:
    """Return F32 files of MODEL and of its weights decoded from TYPE."""
    import halfbyte

    reference, small, decoded = (folder / f"{name}.gguf" for name in ("f32", "small", "decoded"))
    halfbyte.convert(model, reference, type="F32", requantize=True)
    halfbyte.quantize(model, small, type=type_name, requantize=True)
    halfbyte.convert(small, decoded, type="F32", requantize=True)
    return reference, decoded


class Verification:
    """One pair of files over one text."""

    def __init__(self, pair: tuple[Path, Path], text: Path, options: argparse.Namespace) -> None:
        self.pair = pair
        self.text = text
        self.context, self.chunks, self.threads = options.context, options.chunks, options.threads

    def track_halfbyte(self, storage: str = "exact") -> dict[str, float]:
        """Return the command's figures."""
        command = [sys.executable, "-m", "halfbyte", "verify", *map(str, self.pair)]
        command += ["--data", str(self.text), "--context", str(self.context), "--json"]
        command += ["--chunks", str(self.chunks), "--threads", str(self.threads)]
        command += ["--reference-storage", storage]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return dict(json.loads(out))

    def track_llama_perplexity(self) -> dict[str, float]:
        """Return the tool's figures: one run writes the reference's logits, one compares."""
        base = self.pair[0].with_name("base.bin")
        shared = [str(tools_folder() / "llama-perplexity"), "-f", str(self.text)]
        shared += ["-c", str(self.context), "-b", str(self.context), "--chunks", str(self.chunks)]
        shared += ["-t", str(self.threads), "-ctk", "f32", "-ctv", "f32", "-fa", "off"]
        shared += ["--kl-divergence-base", str(base)]
        subprocess.run([*shared, "-m", str(self.pair[0])], check=True, capture_output=True)
        compare = [*shared, "-m", str(self.pair[1]), "--kl-divergence"]
        for _ in range(ATTEMPTS):
            out = subprocess.run(compare, check=True, capture_output=True, text=True).stdout
            matches = {name: re.search(pattern, out) for name, pattern in PATTERNS.items()}
            found = {name: float(match[1]) for name, match in matches.items() if match}
            if found.keys() == PATTERNS.keys():
                base.unlink()
                return {n: value / 100 if n in PERCENT else value for n, value in found.items()}
        raise RuntimeError("llama-perplexity printed no statistics")


def timed(action: Callable[[], dict[str, float]]) -> tuple[dict[str, float], float]:
    """Return the result and the seconds it took."""
    started = time.perf_counter()
    return action(), time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--type", default="Q4_0")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pair = write_pair(options.model, Path(folder), options.type)
        bench = Verification(pair, options.text, options)
        ours, our_seconds = timed(bench.track_halfbyte)
        theirs, their_seconds = timed(bench.track_llama_perplexity)
        stored = bench.track_halfbyte("16-bit")
    print(f"{'figure':<24} {'llama-perplexity':>16} {'as stored':>14} {'differs':>8} ", end="")
    print(f"{'halfbyte':>14} {'differs':>8}")
    for name, expected in theirs.items():
        own, same = ours[name] / expected - 1, stored[name] / expected - 1
        print(f"{name:<24} {expected:16.6f} {stored[name]:14.6f} {same:8.2%} ", end="")
        print(f"{ours[name]:14.6f} {own:8.2%}")
        assert abs(same) < LIMIT, name
        assert abs(own) < LIMIT or name in STORAGE, name
    print(f"seconds: llama-perplexity {their_seconds:.1f} (two runs), halfbyte {our_seconds:.1f}")


if __name__ == "__main__":
    main()
