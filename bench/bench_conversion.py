"""Hugging Face to GGUF: wall time beside a plain copy of the weights and llama.cpp's script.

    python bench/bench_conversion.py FOLDER [--type bfloat16]

Whole processes, alternating; medians and ratios in one run. llama.cpp's script needs torch and
transformers in this environment and is left out where they are missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from llama_cpp import source_folder

ROUNDS = 5


class Conversion:
    """One checkpoint folder converted in three ways."""

    def __init__(self, source: Path, folder: Path, type_name: str) -> None:
        self.source = source
        self.folder = folder
        self.type_name = type_name

    def time_halfbyte(self) -> None:
        target = self.folder / "halfbyte.gguf"
        command = [sys.executable, "-m", "halfbyte", "convert", str(self.source), str(target)]
        subprocess.run([*command, "--type", self.type_name, "-q"], check=True)
        assert target.stat().st_size > 0

    def time_copy(self) -> None:
        for path in self.source.glob("*.safetensors"):
            shutil.copyfile(path, self.folder / "copy.safetensors")

    def time_convert_script(self) -> None:
        target = self.folder / "script.gguf"
        outtype = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}[self.type_name]
        script = source_folder() / "convert_hf_to_gguf.py"
        command = [sys.executable, str(script), str(self.source), "--outfile", str(target)]
        subprocess.run([*command, "--outtype", outtype], check=True, capture_output=True)
        assert target.stat().st_size > 0


def seconds(function: Callable[[], None]) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--type", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Conversion(options.source, Path(folder), options.type)
        ways = {"halfbyte": bench.time_halfbyte, "file copy": bench.time_copy}
        if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
            ways["llama.cpp's script"] = bench.time_convert_script
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, function in ways.items():
                times[name].append(seconds(function))
        for name, values in times.items():
            ratio = statistics.median(
                ours / other for ours, other in zip(times["halfbyte"], values, strict=True)
            )
            print(f"{name:<20} {statistics.median(values):7.3f} s   halfbyte / it: {ratio:.3f}")


if __name__ == "__main__":
    main()
