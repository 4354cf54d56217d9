"""Files with integer activations: onnxruntime computes what our runtime does, in integers.

onnxruntime's kernels for x86 without VNNI saturate sums of full-range products. Static files are
therefore compared with its unoptimized graph, which computes the pairs in float; dynamic ones,
whose MatMulInteger saturates in either, with the float model.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import halfbyte
from halfbyte.cli.group import run
from halfbyte.converters.onnx.output import lowered_graph
from halfbyte.converters.onnx.writer import write_graph
from halfbyte.ir.model import Model
from halfbyte.pipeline import quantize
from halfbyte.quant.activations import ActivationOptions, quantize_activations
from halfbyte.runtime.session import Session
from support.integer_models import residual_net, samples, token_net
from support.real_onnx import example_inputs, require_onnx

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.peer

NETS = {"residual": lambda: residual_net(1), "tokens": token_net}


def theirs(path: Path, runs: list[dict[str, np.ndarray]], level: str = "ENABLE_ALL") -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, run)[0] for run in runs])


def optimized_ops(path: Path) -> Counter[str]:
    """Return the operators of the graph that onnxruntime makes of a file."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    return Counter(node.op_type for node in graph.node)


def ours(model: Model, runs: list[dict[str, np.ndarray]]) -> np.ndarray:
    session = Session(model)
    return np.stack([next(iter(session.run(run).values())) for run in runs])


def error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("preset", ["x86", "x86-avx2", "arm", "gpu"])
@pytest.mark.parametrize("net", NETS)
def test_onnxruntime_computes_the_same(net: str, preset: str, tmp_path: Path) -> None:
    model = NETS[net]()
    options = ActivationOptions(preset=preset)
    made, _ = quantize_activations(model, samples(model, 8), options)
    path = tmp_path / "net.onnx"
    write_graph(lowered_graph(made.graph)[0], path)
    other = samples(model, 6, seed=9)
    plain = theirs(path, other, "DISABLE_ALL")
    assert error(ours(halfbyte.open(path), other), plain) < 0.02
    assert error(plain, ours(model, other)) < (0.15 if preset == "x86-avx2" else 0.06)
    if preset == "x86-avx2":
        assert error(theirs(path, other), plain) < 0.02
    if preset.startswith("x86"):
        ops = optimized_ops(path)
        expected = {"residual": {"QLinearConv": 6, "QGemm": 1, "QLinearAdd": 1}, "tokens": {}}
        assert {op: ops[op] for op in expected[net]} == expected[net]
        assert not ops["Gemm"]
        assert not ops["Conv"]


@pytest.mark.parametrize("name", ["resnet_op9", "wav2vec_op15"])
def test_real_models_from_the_command_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = require_onnx(name)
    folder = tmp_path / "inputs"
    folder.mkdir()
    for seed in range(4):
        np.savez(folder / f"{seed}.npz", **example_inputs(source, seed))
    output = tmp_path / "small.onnx"
    command = ["quantize", source, output, "--type", "int8"]
    command += ["--activations", "int8-static", "--calib", folder]
    assert run([str(word) for word in command]) == 0
    said = capsys.readouterr()
    assert "layers compute in integers" in said.out + said.err
    assert output.stat().st_size < 0.45 * source.stat().st_size
    other = [example_inputs(source, 20)]
    truth = theirs(source, other)
    assert error(theirs(output, other, "DISABLE_ALL"), truth) < 0.3
    assert error(ours(halfbyte.open(output), other), truth) < 0.3


def test_dynamic_integers_of_an_encoder(tmp_path: Path) -> None:
    source, output = require_onnx("minilm_op14"), tmp_path / "small.onnx"
    report = quantize(source, output, type="int8", activations="int8-dynamic")
    assert report.bytes < 0.26 * source.stat().st_size
    ops = optimized_ops(output)
    assert ops["MatMulIntegerToFloat"] + ops["DynamicQuantizeMatMul"] == 37
    other = [example_inputs(source, seed) for seed in range(3)]
    truth = theirs(source, other)
    # Random ids are far from text: the ranges of whole batches are wide.
    assert error(theirs(output, other), truth) < 0.3
    assert error(ours(halfbyte.open(output).over_stored_graph(), other), truth) < 0.25
