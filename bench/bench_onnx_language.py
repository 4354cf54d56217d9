"""A quantized GGUF file as ONNX: time, memory, size; speed in onnxruntime beside the dense model.

    python bench/bench_onnx_language.py MODEL.gguf [--threads 2] [--prefill 256] [--decode 64] [...]

Converts MODEL to every flavour, and once more as float32 for onnxruntime. Decoding of the ort
flavour runs in onnxruntime-genai (shared cache buffers), the standard flavour in onnxruntime with a
cache that grows, the static one in onnxruntime with a cache of 512 places that is written in place
(--capacity), our own runtime over the GGUF file. Medians of alternating runs, ratios to the dense
model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 3
Speeds = tuple[float, float]  # prefill and decode, tokens/s


def convert(source: Path, target: Path, *options: str) -> dict[str, Any]:
    """Return the report of one conversion in a process of its own."""
    command = [sys.executable, "-m", "halfbyte", "convert", str(source), str(target), "--json"]
    out = subprocess.run([*command, *options], check=True, capture_output=True, text=True).stdout
    report: dict[str, Any] = json.loads(out)
    assert report["bytes"] > 0
    return report


class Genai:
    """The ort flavour in onnxruntime-genai."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime_genai as genai

        path = folder / "genai_config.json"
        config = json.loads(path.read_text())
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        path.write_text(json.dumps(config))
        self.genai, self.model = genai, genai.Model(str(folder))

    def run(self, ids: list[int], decode: int) -> Speeds:
        """Return the speeds of one prompt and its continuation."""
        parameters = self.genai.GeneratorParams(self.model)
        length = len(ids) + decode + 1
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = self.genai.Generator(self.model, parameters)
        started = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        middle = time.perf_counter()
        for _ in range(decode):
            generator.generate_next_token()
        return len(ids) / (middle - started), decode / (time.perf_counter() - middle)


class Plain:
    """A decoder in onnxruntime, its cache handed from step to step."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options)
        self.outputs = [value.name for value in self.session.get_outputs()]

    def step(self, ids: Any, past: dict[str, Any], held: int) -> dict[str, Any]:
        """Return the outputs for ids after `held` positions."""
        feeds = {"input_ids": ids, **past}
        feeds["attention_mask"] = np.ones((1, held + ids.shape[1]), np.int64)
        feeds["position_ids"] = np.arange(held, held + ids.shape[1])[None]
        return dict(zip(self.outputs, self.session.run(None, feeds), strict=True))

    def run(self, ids: list[int], decode: int) -> Speeds:
        """Return the speeds of one prompt and its continuation."""
        past = {
            value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
            for value in self.session.get_inputs()
            if value.name.startswith("past")
        }
        started, held = time.perf_counter(), len(ids)
        found = self.step(np.asarray([ids]), past, 0)
        middle = time.perf_counter()
        for _ in range(decode):
            chosen = found["logits"][:, -1].argmax(-1)[None]
            past = {
                name.replace("present", "past_key_values"): found[name] for name in self.outputs[1:]
            }
            found = self.step(chosen, past, held)
            held += 1
        return len(ids) / (middle - started), decode / (time.perf_counter() - middle)


class Static(Plain):
    """A decoder in onnxruntime whose caches of a fixed length are written in place."""

    def __init__(self, path: Path, threads: int, capacity: int) -> None:
        super().__init__(path, threads)
        self.capacity = capacity

    def run(self, ids: list[int], decode: int) -> Speeds:
        """Return the speeds of one prompt and its continuation."""
        import onnxruntime

        caches = {
            value.name: onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros((1, value.shape[1], self.capacity, value.shape[3]), np.float32)
            )
            for value in self.session.get_inputs()
            if "_cache." in value.name
        }
        started, held = time.perf_counter(), len(ids)
        logits = self.bound_step(np.asarray([ids]), caches, 0)
        middle = time.perf_counter()
        for _ in range(decode):
            logits = self.bound_step(logits[:, -1].argmax(-1)[None], caches, held)
            held += 1
        return len(ids) / (middle - started), decode / (time.perf_counter() - middle)

    def bound_step(self, ids: Any, caches: dict[str, Any], held: int) -> Any:
        """Return the logits for ids after `held` positions; the caches get them too."""
        binding, after = self.session.io_binding(), held + ids.shape[1]
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("position_ids", np.arange(held, after)[None])
        binding.bind_cpu_input("write_indices", np.asarray([held]))
        binding.bind_cpu_input("nonpad_kv_seqlen", np.asarray([after]))
        for name, cache in caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(f"updated_{name}", cache)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()


class Own:
    """The GGUF file in our runtime."""

    def __init__(self, path: Path, threads: int) -> None:
        self.command = [sys.executable, "-m", "halfbyte", "bench", str(path), "--json"]
        self.command += ["--threads", str(threads), "--repetitions", "1"]

    def run(self, ids: list[int], decode: int) -> Speeds:
        """Return the speeds of a prompt of this length and of a continuation."""
        command = [*self.command, "--prefill", str(len(ids)), "--decode", str(decode)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        prefill, step = (entry["tokens_per_s"] for entry in json.loads(out)["results"])
        return prefill, step


def conversions(source: Path, folder: Path) -> dict[str, Path]:
    """Write and report every file; return the paths by name."""
    wanted = {
        "ort": ("--to", "onnx:ort"),
        "standard": ("--to", "onnx"),
        "static": ("--to", "onnx:static"),
        "dense": ("--to", "onnx:ort", "--type", "float32"),
    }
    size, paths = source.stat().st_size, {}
    print(f"{'flavour':<10}{'seconds':>9}{'peak MB':>9}{'MB':>9}{'size / GGUF':>13}")
    for name, options in wanted.items():
        (folder / name).mkdir()
        paths[name] = folder / name / "model.onnx"
        report = convert(source, paths[name], *options)
        peak, written = report["peak_memory_bytes"] / 1e6, report["bytes"]
        ratio = written / size
        print(
            f"{name:<10}{report['seconds']:>9.1f}{peak:>9.0f}{written / 1e6:>9.1f}{ratio:>13.3f}",
            flush=True,
        )
    return paths


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=256)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--capacity", type=int, default=512)
    options = parser.parse_args()
    ids = np.random.default_rng(0).integers(100, 1000, options.prefill).tolist()
    with tempfile.TemporaryDirectory() as folder:
        paths = conversions(options.model, Path(folder))
        makers: dict[str, Callable[[], Any]] = {
            "dense": lambda: Genai(paths["dense"].parent, options.threads),
            "ort": lambda: Genai(paths["ort"].parent, options.threads),
            "standard": lambda: Plain(paths["standard"], options.threads),
            "static": lambda: Static(paths["static"], options.threads, options.capacity),
            "halfbyte": lambda: Own(options.model, options.threads),
        }
        runners = {name: make() for name, make in makers.items()}
        found: dict[str, list[Speeds]] = {name: [] for name in runners}
        for _ in range(ROUNDS):
            for name, runner in runners.items():
                found[name].append(runner.run(ids, options.decode))
    heads = f"{'prefill':>9}{'decode':>9}{'prefill / dense':>17}{'decode / dense':>16}"
    print(f"\n{'tokens/s':<10}{heads}")
    dense = [statistics.median(values) for values in zip(*found["dense"], strict=True)]
    for name, speeds in found.items():
        own = [statistics.median(values) for values in zip(*speeds, strict=True)]
        assert min(own) > 0
        ratios = [mine / other for mine, other in zip(own, dense, strict=True)]
        print(f"{name:<10}{own[0]:>9.1f}{own[1]:>9.1f}{ratios[0]:>17.2f}{ratios[1]:>16.2f}")


if __name__ == "__main__":
    main()
