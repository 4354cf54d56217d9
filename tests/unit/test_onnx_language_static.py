"""Language models as ONNX files whose caches have a fixed length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import halfbyte
from halfbyte.cli.group import run
from halfbyte.converters.format import WriteOptions
from halfbyte.converters.gguf.format import GGUF
from halfbyte.converters.native.profile import NativeProfile
from halfbyte.converters.onnx.language_model import write_language_model
from halfbyte.converters.onnx.output import write_onnx
from halfbyte.converters.onnx.reader import read_graph_model, read_model
from halfbyte.errors import UnsupportedError
from halfbyte.ir.model import Model
from halfbyte.quant.plan import apply_plan, make_plan
from halfbyte.runtime.session import Session
from support.model_folders import tiny_model, write_model
from support.random_models import random_model

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
STATIC = WriteOptions(flavour="static")
WIDE = {"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 512}
CAPACITY = 13


def quantized(model: Model, type_name: str) -> Model:
    if not type_name:
        return model
    return apply_plan(model, make_plan(model, NativeProfile(), type_name, requantize=True))


def write(model: Model, folder: Path) -> Path:
    write_language_model(model, folder / "m.onnx", STATIC)
    return folder / "m.onnx"


def empty_caches(proto: onnx.ModelProto, batch: int) -> dict[str, np.ndarray]:
    """Return caches whose places hold anything."""
    found = {}
    for value in proto.graph.input:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if "_cache." in value.name:
            found[value.name] = np.full((batch, dims[1], CAPACITY, dims[3]), 9, np.float32)
    return found


def step(ids: np.ndarray, held: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "input_ids": ids,
        "position_ids": held[:, None] + np.arange(ids.shape[1]),
        "write_indices": held,
        "nonpad_kv_seqlen": held + ids.shape[1],
    }


def updated(outputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name.removeprefix("updated_"): array for name, array in outputs.items() if "_cache." in name
    }


@pytest.mark.parametrize("type_name", ["", "Q4_1"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_our_runtime_runs_the_written_graph(architecture, type_name, tmp_path):
    model = quantized(random_model(architecture), type_name)
    path = write(model, tmp_path)
    session, ids = (
        Session(read_graph_model(path)),
        np.random.default_rng(1).integers(0, 128, (2, 10)),
    )
    expected = Session(model).run({"input_ids": ids})["logits"]
    caches, held = empty_caches(onnx.load(path), 2), np.zeros(2, np.int64)
    for count in (8, 1, 1):
        start = int(held[0])
        found = session.run(step(ids[:, start : start + count], held) | caches)
        wanted = expected[:, start : start + count]
        np.testing.assert_allclose(found["logits"], wanted, atol=4e-6 * np.abs(expected).max())
        caches, held = updated(found), held + count
        assert all(cache.shape[2] == CAPACITY for cache in caches.values())


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_the_reference_of_onnx_runs_the_written_graph(architecture, tmp_path):
    model = random_model(architecture)
    proto = onnx.load(write(model, tmp_path))
    ids = np.random.default_rng(2).integers(0, 128, (1, 11))
    expected = Session(model).run({"input_ids": ids})["logits"]
    runner, caches = ReferenceEvaluator(proto), empty_caches(proto, 1)
    for start, count in ((0, 10), (10, 1)):
        given = step(ids[:, start : start + count], np.asarray([start])) | caches
        found = dict(zip(runner.output_names, runner.run(None, given), strict=True))
        wanted = expected[:, start : start + count]
        np.testing.assert_allclose(found["logits"], wanted, atol=2e-5 * np.abs(expected).max())
        caches = updated(found)


def test_sequences_of_different_lengths_share_a_batch(tmp_path):
    model = random_model("mistral")
    path = write(model, tmp_path)
    ids = np.random.default_rng(3).integers(0, 128, (2, 10))
    session, caches = Session(read_graph_model(path)), empty_caches(onnx.load(path), 2)
    first = session.run(step(ids[:, :9], np.zeros(2, np.int64)) | caches)
    last = session.run(step(ids[:, 9:], np.asarray([9, 5])) | updated(first))["logits"]
    for row, length in ((0, 9), (1, 5)):
        own = np.append(ids[row, :length], ids[row, 9])[None]
        alone = Session(model).run({"input_ids": own})["logits"][0]
        limit = 4e-6 * np.abs(alone).max()
        np.testing.assert_allclose(first["logits"][row, :length], alone[:-1], atol=limit)
        np.testing.assert_allclose(last[row, 0], alone[-1], atol=limit)


@pytest.mark.parametrize(("architecture", "has_window"), [("llama", False), ("mistral", True)])
def test_inputs_outputs_and_operators(architecture, has_window, tmp_path):
    proto = onnx.load(write(random_model(architecture), tmp_path))
    caches = [f"{kind}_cache.{i}" for i in range(2) for kind in ("key", "value")]
    inputs = [value.name for value in proto.graph.input]
    first = ["input_ids", "position_ids", "write_indices", "nonpad_kv_seqlen"]
    assert inputs == first + caches
    outputs = [value.name for value in proto.graph.output]
    assert outputs == ["logits"] + [f"updated_{name}" for name in caches]
    for value in (proto.graph.input[-1], proto.graph.output[-1]):
        dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        assert dims == ["batch_size", 2, "capacity", 16]
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 24)]
    attentions = [node for node in proto.graph.node if node.op_type == "Attention"]
    assert len(attentions) == 2
    for node in attentions:
        settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert settings["is_causal"] == 1 and "left_window_size" not in settings
        assert node.input[6] == "nonpad_kv_seqlen" and bool(node.input[3]) == has_window
    assert sum(node.op_type == "TensorScatter" for node in proto.graph.node) == 4


@pytest.mark.parametrize("flavour", ["", "static", "ort"])
def test_every_position_of_the_sequence_gets_logits(flavour, tmp_path):
    path = tmp_path / "m.onnx"
    write_language_model(random_model("llama"), path, WriteOptions(flavour=flavour))
    logits = onnx.load(path).graph.output[0]
    dims = [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim]
    assert (logits.name, dims) == ("logits", ["batch_size", "sequence_length", 128])


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_K", "Q8_0", "int4-g32-asym"])
def test_everything_comes_back(type_name, tmp_path):
    model = quantized(tiny_model("llama", **WIDE), type_name)
    found = read_model(write(model, tmp_path))
    assert (found.architecture, found.config) == (model.architecture, model.config)
    assert set(found.weights) == set(model.weights)
    for name, tensor in model.weights.items():
        again = found.weights[name]
        assert (again.encoding, again.shape) == (tensor.encoding, tensor.shape)
        for part, stored in tensor.parts.items():
            np.testing.assert_array_equal(again.parts[part].read(), stored.read(), err_msg=name)
    if not type_name.startswith("int"):
        GGUF.write(model, tmp_path / "a.gguf", WriteOptions())
        GGUF.write(found, tmp_path / "b.gguf", WriteOptions())
        assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_an_older_opset_is_refused(tmp_path):
    options = WriteOptions(flavour="static", opset=23)
    with pytest.raises(UnsupportedError, match="opset 23"):
        write_onnx(random_model("llama"), tmp_path / "m.onnx", options)
    assert not list(tmp_path.iterdir())


def test_models_without_a_cache_are_refused(tmp_path, capsys):
    with pytest.raises(UnsupportedError, match="without a cache of keys and values"):
        write_onnx(random_model("bert"), tmp_path / "m.onnx", STATIC)
    source = write_model(tiny_model("bert"), tmp_path / "bert")
    assert run(["convert", str(source), str(tmp_path / "b.onnx"), "--to", "onnx:static"]) == 1
    assert "supported: onnx, onnx:ort" in capsys.readouterr().err
    with pytest.raises(UnsupportedError, match=r"onnx:static"):
        halfbyte.convert(source, tmp_path / "c.onnx", to="onnx:odd")
