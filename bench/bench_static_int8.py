"""Static int8 of ONNX models beside onnxruntime's quantize_static: output error, and speed.

    python bench/bench_static_int8.py MODEL.onnx ... [--samples N] [--judged N] [--method mse]

Both quantize the same file (theirs after its own pre-processing, at opset 17 where it is older) to
U8S8 with a scale for each channel, from the same structured random inputs; other inputs judge. The
error is |quantized - float| / |float| over all judged outputs, once computed in exact integers by
our runtime, once by onnxruntime, whose kernels for x86 without VNNI saturate. Times are medians of
the processor time of alternating runs in onnxruntime with one thread.

Asserted for each model: no larger an error than the best of their methods in both, and at most
SLOWER times the time of their fastest file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

import halfbyte
from halfbyte.pipeline import quantize
from halfbyte.runtime.session import Session

Inputs = dict[str, np.ndarray]
METHODS = ("MinMax", "Entropy", "Percentile")
SLOWER = 1.1
ROUNDS = 60
OPSET = 17


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives inputs one after the other."""

    def __init__(self, runs: Sequence[Inputs]) -> None:
        self.left = iter(runs)

    def get_next(self) -> Inputs | None:
        """Return the next inputs, None at the end."""
        return next(self.left, None)


def picture(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return waves, a disc and noise, 0..1."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    made = np.full((height, width), random.random() * 0.5)
    for _ in range(5):
        across, down = random.random(2) * 12
        phase = 2 * np.pi * (across * x + down * y + random.random())
        made += random.normal() * 0.25 * np.sin(phase)
    left, top, radius = random.random(3) * [1, 1, 0.3]
    made[(x - left) ** 2 + (y - top) ** 2 < radius**2] += random.normal() * 0.4
    return np.asarray(np.clip(made + random.normal(size=made.shape) * 0.03, 0, 1))


def sound(random: np.random.Generator, length: int) -> np.ndarray:
    """Return tones that swell and fade, and noise."""
    t = np.arange(length) / 16000
    made = random.normal(size=length) * 0.01
    for _ in range(6):
        tone = np.sin(2 * np.pi * ((80 + random.random() * 2000) * t + random.random()))
        middle, width = t[-1] * random.random(), 0.05 + 0.1 * random.random()
        made += random.random() * 0.2 * tone * np.exp(-(((t - middle) / width) ** 2))
    return np.asarray(made)


def example(entry: Any, random: np.random.Generator) -> np.ndarray:
    """Return an input for a description of onnxruntime."""
    shape = [dim if isinstance(dim, int) else 1 for dim in entry.shape]
    if entry.name.startswith("state"):
        return np.zeros(shape, np.float32)
    if len(shape) == 4:
        planes = [picture(random, *shape[2:]) for _ in range(shape[0] * shape[1])]
        return np.stack(planes).reshape(shape).astype(np.float32)
    rows = [sound(random, shape[-1]) for _ in range(int(np.prod(shape[:-1])))]
    return np.stack(rows).reshape(shape).astype(np.float32)


def session(path: Path) -> Any:
    """Return a session of onnxruntime with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs_of(path: Path, count: int, seed: int) -> list[Inputs]:
    """Return inputs by name."""
    random = np.random.default_rng(seed)
    entries = session(path).get_inputs()
    return [{entry.name: example(entry, random) for entry in entries} for _ in range(count)]


def by_them(path: Path, runs: Sequence[Inputs]) -> np.ndarray:
    """Return the first output of onnxruntime for each run."""
    held = session(path)
    return np.stack([held.run(None, run)[0] for run in runs])


def by_us(path: Path, runs: Sequence[Inputs]) -> np.ndarray:
    """Return the first output of our runtime, which computes exact integers, for each run."""
    model = halfbyte.open(path).over_stored_graph()
    held, name = Session(model), model.graph.outputs[0].name
    return np.stack([held.run(run)[name] for run in runs])


def error(found: np.ndarray, truth: np.ndarray) -> float:
    """Return |found - truth| / |truth|."""
    return float(np.linalg.norm((found - truth).astype(np.float64)) / np.linalg.norm(truth))


def peer_files(path: Path, seen: Sequence[Inputs], folder: Path) -> dict[str, Path]:
    """Return what quantize_static makes, by method; a method that fails is left out."""
    prepared = folder / "prepared.onnx"
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    model = onnx.load(prepared)
    if next(o.version for o in model.opset_import if not o.domain) < OPSET:
        onnx.save(onnx.version_converter.convert_version(model, OPSET), prepared)
    found = {}
    for method in METHODS:
        target = folder / f"{method}.onnx"
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                quantize_static(
                    str(prepared),
                    str(target),
                    Reader(seen),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=getattr(CalibrationMethod, method),
                )
            found[method] = target
        except Exception as failure:
            print(f"  onnxruntime {method}: fails ({str(failure)[:80]})")
    return found


def milliseconds(paths: Sequence[Path], run: Inputs) -> list[float]:
    """Return the median processor time of a run of each file, taken in turns."""
    held = [session(path) for path in paths]
    times: list[list[float]] = [[] for _ in held]
    for turn in range(ROUNDS + 3):
        for one, taken in zip(held, times, strict=True):
            before = time.process_time()
            one.run(None, run)
            if turn >= 3:
                taken.append((time.process_time() - before) * 1e3)
    return [statistics.median(taken) for taken in times]


def compare(path: Path, arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Print the figures of one model; return what is not as it should be."""
    seen = inputs_of(path, arguments.samples, 1)
    judged = inputs_of(path, arguments.judged, 2)
    truth = by_them(path, judged)
    (folder / "seen").mkdir()
    for index, run in enumerate(seen):
        np.savez(folder / "seen" / f"{index:04}.npz", **run)
    own = folder / "own.onnx"
    quantize(
        path,
        own,
        type="int8",
        activations="int8-static",
        calib=folder / "seen",
        calibration_method=arguments.method,
    )
    files = {f"halfbyte {arguments.method}": own}
    theirs = peer_files(path, seen, folder)
    files |= {f"onnxruntime {method}": file for method, file in theirs.items()}
    times = milliseconds([path, *files.values()], judged[0])
    print(f"{path.stem}: float {times[0]:.2f} ms, {path.stat().st_size / 1e6:.1f} MB")
    rows = {}
    for (name, file), taken in zip(files.items(), times[1:], strict=True):
        rows[name] = error(by_us(file, judged), truth), error(by_them(file, judged), truth), taken
        exact, saturated, _ = rows[name]
        size = file.stat().st_size / 1e6
        print(
            f"  {name:24} error {exact:.4f} exact, {saturated:.4f} in onnxruntime; "
            f"{taken:.2f} ms, {size:.1f} MB"
        )
    mine, *others = rows.values()
    if not others:
        return []
    best = [min(column) for column in zip(*others, strict=True)]
    wrong = []
    for what, ours, limit in zip(
        ("exact error", "error in onnxruntime", "time"),
        mine,
        (best[0], best[1], best[2] * SLOWER),
        strict=True,
    ):
        if ours > limit:
            wrong.append(f"{path.stem}: {what} {ours:.4f}, at most {limit:.4f} was wanted")
    return wrong


def main() -> int:
    """Compare each model; return 1 if a figure is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--judged", type=int, default=64)
    parser.add_argument("--method", default="mse")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    wrong = []
    for path in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            wrong += compare(path, arguments, Path(folder))
    print("\n".join(wrong) or "every figure is as it should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
