"""Methods of quantizing side by side: KL divergence to the unquantized model, time, peak memory.

    python bench/bench_calibration.py MODEL --calibration TEXT --data TEXT
        [--types Q4_0,int4-g128-asym] [--methods rtn,gptq,awq+gptq,best]
        [--llama-cpp] [--peers PYTHON]

MODEL is a Hugging Face folder. With --llama-cpp, GGUF types are made by llama-quantize too, without
and with an importance matrix of the same text, and every GGUF file is judged by llama-perplexity.
PYTHON is an interpreter with llmcompressor and auto-round: what they write is read and judged by
`halfbyte verify`. Judge on another text than the calibration's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench_verification import Verification
from llama_cpp import tools_folder

from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.affine import Affine

TYPES = (
    *("Q4_0", "Q4_K_M", "Q3_K_M", "IQ4_XS", "int8", "int4-g32-asym", "int4-g128-asym"),
    *("int4-g128", "int4-asym", "int4", "int3-g128-asym", "int3-asym", "int3"),
)
METHODS = ("rtn", "awq", "gptq", "awq+gptq", "gptaq", "best")


@dataclass(frozen=True)
class Row:
    """One file: who made it, how far it is, what making it took."""

    type_name: str
    method: str
    mean_kl: float
    ppl_ratio: float
    bytes: int
    seconds: float
    cpu_seconds: float
    peak_bytes: float

    def __str__(self) -> str:
        peak = f"{self.peak_bytes / 1e6:7.0f}" if self.peak_bytes else "      -"
        return (
            f"{self.type_name:<15} {self.method:<26} {self.mean_kl:9.6f} {self.ppl_ratio:8.4f} "
            f"{self.bytes / 1e6:8.2f} {self.seconds:8.1f} {self.cpu_seconds:8.1f} {peak}"
        )


def is_ggml(type_name: str) -> bool:
    """Whether llama.cpp knows the type."""
    return not type_name.startswith(("int", "fp8", "nf4", "mx", "nv"))


def children_cpu() -> float:
    """Return the processor seconds of all finished child processes."""
    import os

    times = os.times()
    return times.children_user + times.children_system


class Comparison:
    """A model, its calibration and the text it is judged on."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.reference = folder / "reference.gguf"
        self._run("convert", options.model, self.reference, "--type", "F32", "--requantize")
        self.imatrix = folder / "imatrix.gguf"

    def _run(self, command: str, *arguments: object) -> dict[str, object]:
        line = [sys.executable, "-m", "halfbyte", command, *map(str, arguments), "--json"]
        line += ["--threads", str(self.options.threads)]
        ran = subprocess.run(line, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise RuntimeError(f"{' '.join(line)}: {ran.stderr.strip()}")
        return dict(json.loads(ran.stdout))

    def judged(self, candidate: Path) -> tuple[float, float]:
        """Return mean KL divergence and ratio of perplexities."""
        if candidate.suffix == ".gguf" and self.options.llama_cpp:
            pair = Verification((self.reference, candidate), self.options.data, self.options)
            found = pair.track_llama_perplexity()
        else:
            found = self._run(
                "verify", self.options.model, candidate, "--data", self.options.data,
                "--chunks", self.options.chunks,
            )  # fmt: skip
        return float(found["mean_kl"]), float(found["ppl_ratio"])

    def halfbyte(self, type_name: str, method: str) -> Row:
        """Quantize with one of our methods."""
        target = self.folder / ("ours.gguf" if is_ggml(type_name) else "ours.hb")
        line = [self.options.model, target, "--type", type_name, "--method", method]
        if method not in ("rtn", "hqq", "exhaustive"):
            line += ["--calib", self.options.calibration]
            line += ["--calib-samples", self.options.samples]
        used, started = children_cpu(), time.perf_counter()
        report = self._run("quantize", *line)
        wall, cpu = time.perf_counter() - started, children_cpu() - used
        mean_kl, ratio = self.judged(target)
        size, peak = int(str(report["bytes"])), float(str(report["peak_memory_bytes"]))
        return Row(type_name, method, mean_kl, ratio, size, wall, cpu, peak)

    def llama_quantize(self, type_name: str, with_imatrix: bool) -> Row:
        """Quantize with llama.cpp's tools."""
        target = self.folder / "theirs.gguf"
        extra = []
        if with_imatrix:
            if not self.imatrix.exists():
                self._collect_imatrix()
            extra = ["--imatrix", str(self.imatrix)]
        line = [str(tools_folder() / "llama-quantize"), *extra, str(self.reference), str(target)]
        used, started = children_cpu(), time.perf_counter()
        subprocess.run([*line, type_name, "2"], check=True, capture_output=True)
        wall, cpu = time.perf_counter() - started, children_cpu() - used
        mean_kl, ratio = self.judged(target)
        name = f"llama-quantize{' + imatrix' if with_imatrix else ''}"
        return Row(type_name, name, mean_kl, ratio, target.stat().st_size, wall, cpu, 0)

    def _collect_imatrix(self) -> None:
        line = [str(tools_folder() / "llama-imatrix"), "-m", str(self.reference)]
        line += ["-f", str(self.options.calibration), "-o", str(self.imatrix), "-c", "512"]
        line += ["--chunks", str(self.options.samples), "--no-ppl"]
        subprocess.run(line, check=True, capture_output=True)

    def peer(self, type_name: str, tool: str, *extra: str) -> Row | None:
        """Quantize with another tool, where it has the type."""
        encoding = encoding_from_name(type_name)
        assert isinstance(encoding, Affine)
        script = Path(__file__).with_name("calibration_peers.py")
        target = self.folder / "peer"
        line = [self.options.peers, str(script), tool, str(self.options.model)]
        line += [str(self.options.calibration), str(target), "--bits", str(encoding.bits)]
        line += ["--group", str(encoding.group_size), "--samples", str(self.options.samples)]
        line += ["--asymmetric"] * (not encoding.symmetric)
        ran = subprocess.run([*line, *extra], capture_output=True, text=True, check=False)
        if ran.returncode:
            print(f"{type_name:<15} {tool}: {ran.stderr.strip().splitlines()[-1]}")
            return None
        took = json.loads(ran.stdout.strip().splitlines()[-1])
        written = next(target.rglob("config.json")).parent
        mean_kl, ratio = self.judged(written)
        size = sum(file.stat().st_size for file in written.glob("*.safetensors"))
        name = " ".join([tool, *extra])
        figures = took["seconds"], took["cpu_seconds"], took["peak_memory_bytes"]
        return Row(type_name, name, mean_kl, ratio, size, *figures)


def main() -> None:
    """Print one line per file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--samples", type=int, default=64, help="sequences of 512 tokens")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-cpp", action="store_true")
    parser.add_argument("--peers", default="", metavar="PYTHON")
    options = parser.parse_args()
    print(
        f"{'type':<15} {'method':<26} {'mean KL':>9} {'PPL':>8} {'MB':>8} {'wall s':>8} "
        f"{'CPU s':>8} {'peak MB':>7}"
    )
    with tempfile.TemporaryDirectory() as name:
        bench = Comparison(options, Path(name))
        for type_name in options.types.split(","):
            for method in options.methods.split(","):
                print(bench.halfbyte(type_name, method), flush=True)
            if options.llama_cpp and is_ggml(type_name):
                print(bench.llama_quantize(type_name, False), flush=True)
                print(bench.llama_quantize(type_name, True), flush=True)
            if options.peers and not is_ggml(type_name):
                for tool, *extra in (["llmcompressor"], ["auto-round", "--iterations", "200"]):
                    print(bench.peer(type_name, tool, *extra), flush=True)


if __name__ == "__main__":
    main()
