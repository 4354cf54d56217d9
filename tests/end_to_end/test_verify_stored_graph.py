"""Verification judges the graph that an ONNX file holds, not the one its metadata describes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import halfbyte
from halfbyte.cli.group import run
from halfbyte.errors import HalfbyteError
from halfbyte.ir.graph import Graph
from halfbyte.runtime.session import Session
from halfbyte.verification.stored_graph import StoredGraph
from support.model_folders import tiny_model, write_model

FLAVOURS = ["onnx", "onnx:static", "onnx:ort"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tiny_model("llama"), tmp_path_factory.mktemp("source") / "llama")


def verified(reference: Path, candidate: Path, text: Path) -> dict[str, float]:
    return halfbyte.verify(reference, candidate, data=text, context=16, chunks=4).figures


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog " * 40)
    return path


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_written_graph_gives_the_same_logits(folder, text, tmp_path, flavour: str) -> None:
    path = tmp_path / "m.onnx"
    halfbyte.convert(folder, path, to=flavour)
    figures = verified(folder, path, text)
    assert figures["max_kl"] < 1e-6 and figures["top1_agreement"] == 1


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_graph_that_was_changed_is_found_out(folder, text, tmp_path, flavour: str) -> None:
    path = tmp_path / "m.onnx"
    halfbyte.convert(folder, path, to=flavour)
    proto = onnx.load(path, load_external_data=False)
    changed = 0
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f = 1.0
                changed += 1
    assert changed
    onnx.save(proto, path)
    figures = verified(folder, path, text)
    assert figures["mean_kl"] > 1e-4


def test_other_graphs_are_refused() -> None:
    graph = Graph("other")
    graph.outputs = [graph.add_input("pixels", "float32", (1, 3))]
    with pytest.raises(HalfbyteError, match="input 'pixels'"):
        StoredGraph(Session(graph))


def test_positions_are_picked(folder, tmp_path) -> None:
    path = tmp_path / "m.onnx"
    halfbyte.convert(folder, path, to="onnx")
    model = halfbyte.open(path)
    assert model.stored_graph is not None
    whole = StoredGraph(Session(model.stored_graph()))
    ids = np.arange(1, 9)[None]
    every = whole.run({"input_ids": ids})["logits"]
    some = whole.run({"input_ids": ids, "output_positions": np.array([2, 5])})["logits"]
    np.testing.assert_array_equal(some, every[:, [2, 5]])
    expected = Session(model).run({"input_ids": ids})["logits"]
    np.testing.assert_allclose(every, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_arrays_of_the_files_own_graph_run_on_it(folder, tmp_path) -> None:
    path, arrays, results = tmp_path / "m.onnx", tmp_path / "x.npz", tmp_path / "y.npz"
    halfbyte.convert(folder, path, to="onnx")
    model = halfbyte.open(path)
    ids = np.arange(1, 9)[None]
    feeds = {"input_ids": ids}
    for value in model.over_stored_graph().graph.inputs:
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((1, *value.shape[1:2], 0, *value.shape[3:]), np.float32)
        elif value.name == "attention_mask":
            feeds[value.name] = np.ones((1, 8), np.int64)
        elif value.name == "position_ids":
            feeds[value.name] = np.arange(8)[None]
    np.savez(arrays, **feeds)
    assert run(["run", str(path), "--input", str(arrays), "--output", str(results)]) == 0
    with np.load(results) as found:
        assert "present.0.key" in found.files
        expected = Session(model).run({"input_ids": ids})["logits"]
        np.testing.assert_allclose(
            found["logits"], expected, atol=1e-4 * np.abs(expected).max(), rtol=0
        )
    figures = halfbyte.verify(path, path, data=arrays)
    assert {entry["name"] for entry in figures.outputs} >= {"logits", "present.0.key"}
    np.savez(arrays, input_ids=ids)
    assert run(["run", str(path), "--input", str(arrays)]) == 0
