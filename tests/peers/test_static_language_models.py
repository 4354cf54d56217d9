"""Language models with stored ranges: onnxruntime fuses their pairs and computes what ours does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfbyte
from halfbyte import pipeline
from halfbyte.runtime.session import Session
from support.model_folders import SAMPLE, tiny_model, write_model

ort: Any = pytest.importorskip("onnxruntime")
onnx: Any = pytest.importorskip("onnx")
pytestmark = pytest.mark.peer

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
IDS = np.random.default_rng(5).integers(0, 256, (1, 24))
# Of the rounding's own size: codes flip where float32 sums differ in the last bit.
FARTHEST = 0.3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    (folder / "text.txt").write_text(SAMPLE * 30, encoding="utf-8")
    return write_model(tiny_model("llama", 2, **SIZES), folder / "model")


def written(source: Path, path: Path, **more: Any) -> Path:
    data = {"calib": source.parent / "text.txt", "calib_samples": 4, "calib_length": 48}
    pipeline.quantize(source, path, type="int8", activations="int8-static", **data, **more)
    return path


def theirs(path: Path, level: str, optimized: Path | None = None) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    options.log_severity_level = 4
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    given = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
    given["position_ids"] = np.arange(IDS.shape[1])[None]
    names = [value.name for value in session.get_inputs()]
    feeds |= {name: array for name, array in given.items() if name in names}
    found: np.ndarray = session.run(["logits"], feeds)[0]
    return found


def distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


@pytest.mark.parametrize("target", ["x86", "arm", "gpu"])
def test_onnxruntime_computes_the_same(target: str, source: Path, tmp_path: Path) -> None:
    path = written(source, tmp_path / "m.onnx", target=target)
    plain = tmp_path / "plain.onnx"
    pipeline.quantize(source, plain, type="int8")
    weights = theirs(plain, "DISABLE_ALL")
    found = theirs(path, "DISABLE_ALL")
    rounding = distance(found, weights)
    assert 0.001 < rounding < 0.1
    session = Session(halfbyte.open(path).over_stored_graph())
    empty = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.graph.inputs
        if value.name.startswith("past")
    }
    given = {"input_ids": IDS, "attention_mask": np.ones_like(IDS), **empty}
    known = [value.name for value in session.graph.inputs]
    ours = session.run({name: array for name, array in given.items() if name in known})["logits"]
    assert distance(ours, found) < FARTHEST * rounding


def test_products_are_fused(source: Path, tmp_path: Path) -> None:
    path = written(source, tmp_path / "m.onnx")
    theirs(path, "ENABLE_ALL", tmp_path / "optimized.onnx")
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    ops = [node.op_type for node in graph.node]
    assert ops.count("MatMulIntegerToFloat") == 15  # seven in each layer, and the head
    assert ops.count("QuantizeLinear") == 9  # four values in each layer, and one for the head
    assert "MatMul" not in ops and "DequantizeLinear" not in ops
