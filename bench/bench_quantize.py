"""Whole-file quantization: wall time beside llama-quantize and a plain copy; equal tensors.

    python bench/bench_quantize.py [F16.gguf] [--types Q4_K_M,IQ4_XS] [--imatrix FILE] [--threads 2]

Without a file it makes a Llama of 496 million random float16 weights (`--layers 4`: 156 million).
Whole processes, alternating; medians of wall time in one run. Every tensor of both outputs is
compared, type and bytes. The last columns say our peak of anonymous memory and the rate of our run
over that of copying the source.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import tools_folder

TYPES = (
    *("F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4_MOE"),
)
IMATRIX_TYPES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "IQ3_XXS")
IMATRIX_TYPES += ("IQ3_XS", "IQ3_S", "IQ3_M")
CONFIG = {
    "vocab_size": 28000,
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def make_source(path: Path, layers: int) -> None:
    """Write a Llama of random float16 weights as GGUF: 496 million with 16 layers."""
    from halfbyte.converters.architectures import get_architecture
    from halfbyte.converters.format import WriteOptions
    from halfbyte.converters.gguf.format import GGUF
    from halfbyte.ir.encodings.dense import Dense
    from halfbyte.ir.model import Model, Provenance
    from halfbyte.ir.tensor import ArrayPart, Tensor, rows_and_columns

    architecture = get_architecture("llama")
    config = architecture.canonical_config({**CONFIG, "num_hidden_layers": layers})
    generator = np.random.default_rng(0)
    weights = {}
    for spec in architecture.weight_specs(config):
        if spec.name == "lm_head.weight":
            continue
        is_vector = len(spec.shape) == 1
        dtype = np.float32 if is_vector else np.float16
        values = generator.standard_normal(spec.shape, np.float32) * np.float32(0.02)
        part = ArrayPart(values.astype(dtype).reshape(rows_and_columns(spec.shape)))
        name = np.dtype(dtype).name
        weights[spec.name] = Tensor(spec.name, spec.shape, Dense(name), {"data": part}).identified(
            spec.key
        )
    model = Model(weights, config, provenance=Provenance("bench", ""), build=architecture.build)
    GGUF.write(model, path, WriteOptions(threads=2))


def made_importance(source: Path, path: Path) -> None:
    """Write an importance matrix of random positive numbers for every block weight."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["random"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    generator = np.random.default_rng(1)
    for tensor in reader.tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            columns = int(tensor.shape[0])
            sums = (generator.random((1, columns), np.float32) ** 2 + 1e-3) * 512
            writer.add_tensor(f"{tensor.name}.in_sum2", sums)
            writer.add_tensor(f"{tensor.name}.counts", np.full((1, 1), 512, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def seconds(function: Callable[[], Any]) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


class Job:
    """One type, written by both."""

    def __init__(self, source: Path, folder: Path, name: str, imatrix: Path | None, threads: int):
        self.source, self.name, self.threads = source, name, str(threads)
        self.ours, self.theirs = folder / f"ours-{name}.gguf", folder / f"theirs-{name}.gguf"
        self.imatrix = [] if imatrix is None else ["--imatrix", str(imatrix)]
        self.peak_bytes = 0

    def halfbyte(self) -> None:
        """Run `halfbyte quantize`."""
        command = [sys.executable, "-m", "halfbyte", "quantize", str(self.source), str(self.ours)]
        command += ["--type", self.name, "--threads", self.threads, "--json", *self.imatrix]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        self.peak_bytes = json.loads(done.stdout)["peak_memory_bytes"]

    def llama_quantize(self) -> None:
        """Run `llama-quantize`."""
        tool = str(tools_folder() / "llama-quantize")
        command = [tool, *self.imatrix, str(self.source), str(self.theirs), self.name, self.threads]
        subprocess.run(command, check=True, capture_output=True)

    def differing_tensors(self) -> int:
        """Return how many tensors of the two files differ, and delete them."""
        from halfbyte.pipeline import diff

        found = diff(self.theirs, self.ours)
        assert found.same_tensors + len(found.tensors) > 0
        self.ours.unlink()
        self.theirs.unlink()
        return len(found.tensors)


def copy_seconds(source: Path, folder: Path) -> float:
    """Return the median time of copying the source, synced."""

    def copy() -> None:
        with (folder / "copy").open("wb") as target, source.open("rb") as stream:
            shutil.copyfileobj(stream, target, 16 << 20)
            target.flush()
            os.fsync(target.fileno())

    return statistics.median(seconds(copy) for _ in range(3))


def main() -> None:
    """Print one line per type."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--types", default="")
    parser.add_argument("--imatrix", type=Path, help="a file, or `random` to make one")
    parser.add_argument("--layers", type=int, default=16, help="of the model that is made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, imatrix = options.source, options.imatrix
        if source is None:
            source = folder / "source.gguf"
            make_source(source, options.layers)
        if imatrix is not None and str(imatrix) == "random":
            imatrix = folder / "imatrix.gguf"
            made_importance(source, imatrix)
        usual = TYPES if imatrix is None else (*IMATRIX_TYPES, *TYPES[2:])
        copy = copy_seconds(source, folder)
        print(f"copy of {source.stat().st_size / 1e9:.2f} GB, synced: {copy:.2f} s")
        print(f"{'type':<10} {'ours s':>7} {'peer s':>7} {'ratio':>6} {'differ':>7} {'MB':>5} copy")
        for kind in options.types.split(",") if options.types else usual:
            job = Job(source, folder, kind, imatrix, options.threads)
            rounds = [
                (seconds(job.halfbyte), seconds(job.llama_quantize)) for _ in range(options.rounds)
            ]
            ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(b / a for a, b in rounds)
            line = f"{kind:<10} {ours:7.2f} {theirs:7.2f} {ratio:6.1f} {job.differing_tensors():>7}"
            print(f"{line} {job.peak_bytes / 1e6:5.0f} {copy / ours:.2f}", flush=True)


if __name__ == "__main__":
    main()
