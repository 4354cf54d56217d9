"""Whole ONNX models against onnxruntime, read, and read and written again.

A float model must agree within 1e-4 of the largest value of each output. An int8 model must agree
within twice the spread that onnxruntime itself shows between no optimization and all, and come
close to one of the two: one code that tips over in a layer moves an output by less than 1e-2.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import halfbyte
from halfbyte.converters import get_format
from halfbyte.converters.format import WriteOptions
from halfbyte.ir.model import Model
from halfbyte.runtime.session import Session
from support.real_onnx import NAMES, example_inputs, require_onnx

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytestmark = pytest.mark.peer

FLOAT = 1e-4
TIPPED = 1e-2
Arrays = dict[str, np.ndarray]


def theirs(path: Path, feeds: Arrays, level: str = "ORT_ENABLE_ALL") -> Arrays:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.log_severity_level = 3
    # Products with dequantized weights in float32; by default they round activations to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def distance(found: np.ndarray, truth: np.ndarray) -> float:
    """Return max |difference| / max |truth|; infinite where type or shape differ."""
    if found.dtype != truth.dtype or found.shape != truth.shape:
        return float("inf")
    wide = found.astype(np.float64), truth.astype(np.float64)
    scale = max(float(np.abs(wide[1]).max(initial=0.0)), 1e-12)
    return float(np.abs(wide[0] - wide[1]).max(initial=0.0)) / scale


def limits(path: Path, feeds: Arrays, truth: Arrays) -> dict[str, float]:
    """Return for each output how far ours may lie from onnxruntime's."""
    plain = theirs(path, feeds, "ORT_DISABLE_ALL")
    return {name: max(FLOAT, 2 * distance(plain[name], truth[name])) for name in truth}


def assert_near_one(found: Arrays, *truths: Arrays) -> None:
    far = [max(distance(found[name], truth[name]) for name in truth) for truth in truths]
    assert min(far) <= TIPPED, far


def assert_close(found: Arrays, truth: Arrays, allowed: dict[str, float]) -> None:
    far = {
        name: (distance(found[name], truth[name]), allowed[name])
        for name in truth
        if not distance(found[name], truth[name]) <= allowed[name]
    }
    assert not far, far


def allowed_for(name: str, path: Path, feeds: Arrays, truth: Arrays) -> dict[str, float]:
    return limits(path, feeds, truth) if NAMES[name] else dict.fromkeys(truth, FLOAT)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_model_gives_what_onnxruntime_gives(name: str) -> None:
    path = require_onnx(name)
    feeds = example_inputs(path)
    truth = theirs(path, feeds)
    found = Session(halfbyte.open(path)).run(feeds)
    assert_close(found, truth, allowed_for(name, path, feeds, truth))
    assert_near_one(found, truth, theirs(path, feeds, "ORT_DISABLE_ALL"))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_model_written_again_gives_onnxruntime_the_same(name: str, tmp_path: Path) -> None:
    path, again = require_onnx(name), tmp_path / "again.onnx"
    feeds = example_inputs(path)
    truth = theirs(path, feeds)
    write(halfbyte.open(path), again)
    assert_close(theirs(again, feeds), truth, allowed_for(name, path, feeds, truth))


def write(model: Model, path: Path) -> None:
    """Write a model as ONNX with standard operators."""
    get_format("onnx").write(model, path, WriteOptions())
