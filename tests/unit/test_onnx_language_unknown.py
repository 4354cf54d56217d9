"""ONNX files of language models that cannot be known again say why, and run as graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import halfbyte
from halfbyte.cli.group import run
from halfbyte.converters.format import WriteOptions
from halfbyte.converters.onnx.language_model import write_language_model
from halfbyte.converters.onnx.reader import read_model
from support.random_models import random_model

REASON = "language model of unknown structure"
VOCABULARY, WIDTH = 24, 8


def exported(
    folder: Path, *, output: str = "97", past: bool = False, table: str = "plain", rows: int = 0
) -> Path:
    """Write a graph like those of torch.onnx: a lookup, a sum with the past, a head.

    table: how the lookup reads it. rows: of the head, as many as the vocabulary if not given.
    """
    generator = np.random.default_rng(0)
    embedding = generator.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
    head = generator.standard_normal((WIDTH, rows or VOCABULARY)).astype(np.float32)
    nodes, read = [], "embedding"
    if table == "circle":
        nodes.append(helper.make_node("Identity", ["shared"], ["shared"]))
        read = "shared"
    elif table == "shared":
        nodes.append(helper.make_node("Identity", ["embedding"], ["shared"]))
        read = "shared"
    nodes.append(helper.make_node("Gather", [read, "input_ids"], ["hidden"]))
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])]
    last = "hidden"
    if past:
        shape = ["b", 2, "p", 4]
        inputs.append(helper.make_tensor_value_info("past_key_values.0.key", 1, shape))
        nodes.append(helper.make_node("ReduceSum", ["past_key_values.0.key"], ["held"], keepdims=0))
        nodes.append(helper.make_node("Add", ["hidden", "held"], ["summed"]))
        last = "summed"
    nodes.append(helper.make_node("MatMul", [last, "head"], [output]))
    made = helper.make_tensor_value_info(output, 1, ["b", "s", rows or VOCABULARY])
    weights = [numpy_helper.from_array(a, n) for a, n in ((embedding, "embedding"), (head, "head"))]
    graph = helper.make_graph(nodes, "main_graph", inputs, [made], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize(
    ("settings", "lacking"),
    [
        (
            {},
            "inputs past_key_values.N.key, the name 'logits' for output '97' and "
            "GroupQueryAttention nodes are missing",
        ),
        ({"table": "shared", "output": "logits"}, "past_key_values.N.key and GroupQueryAttention"),
        ({"past": True, "output": "logits"}, "but GroupQueryAttention nodes are missing"),
        ({"past": True, "table": "shared"}, "but the name 'logits' for output '97' and Group"),
    ],
)
def test_the_reason_names_what_is_missing(settings, lacking, tmp_path, capsys):
    path = exported(tmp_path, **settings)
    found = read_model(path)
    (reason,) = found.warnings
    assert not found.architecture
    assert reason.startswith(f"{REASON}: input_ids give logits") and lacking in reason
    assert run(["inspect", str(path)]) == 0
    assert REASON in " ".join(capsys.readouterr().out.split())


def test_conversion_to_gguf_ends_with_one_error(tmp_path, capsys):
    path = exported(tmp_path)
    assert run(["convert", str(path), str(tmp_path / "m.gguf")]) == 1
    printed = capsys.readouterr().err
    assert printed.count("error:") == 1 and printed.startswith(f"error: {path}: a model without")
    assert REASON in printed and "GroupQueryAttention nodes are missing" in printed
    assert not (tmp_path / "m.gguf").exists()


def test_it_runs_and_is_verified_as_a_graph(tmp_path):
    path, arrays = exported(tmp_path, past=True), tmp_path / "x.npz"
    past = np.ones((2, 2, 3, 4), np.float32)
    feeds = {"input_ids": np.asarray([[1, 2, 3], [4, 5, 6]]), "past_key_values.0.key": past}
    np.savez(arrays, **feeds)
    assert run(["run", str(path), "--input", str(arrays), "--output", str(tmp_path / "y.npz")]) == 0
    proto = onnx.load(path)
    embedding, head = (numpy_helper.to_array(t) for t in proto.graph.initializer)
    with np.load(tmp_path / "y.npz") as found:
        expected = (embedding[feeds["input_ids"]] + 48) @ head
        np.testing.assert_allclose(found["97"], expected, rtol=1e-5, atol=1e-4)
    (figures,) = halfbyte.verify(path, path, data=arrays).outputs
    assert figures["name"] == "97"


@pytest.mark.parametrize("settings", [{"rows": 5}, {"table": "circle"}])
def test_other_graphs_over_ids_have_no_reason(settings, tmp_path):
    from halfbyte.converters.onnx.language.reading import language_model
    from halfbyte.converters.onnx.protobuf import mapped
    from halfbyte.converters.onnx.reader import parse

    path = exported(tmp_path, **settings)
    with mapped(path) as data:
        assert language_model(*parse(path, data)) == ""


@pytest.mark.parametrize("flavour", ["", "static"])
def test_our_own_graphs_without_metadata(flavour, tmp_path):
    path = tmp_path / "m.onnx"
    write_language_model(random_model("llama"), path, WriteOptions(flavour=flavour))
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, path)
    (reason,) = read_model(path).warnings
    assert "GroupQueryAttention nodes are missing" in reason
