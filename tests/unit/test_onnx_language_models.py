"""Language models as ONNX files: graph, cache, companions, and the way back."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from halfbyte.converters.format import WriteOptions
from halfbyte.converters.gguf.format import GGUF
from halfbyte.converters.onnx.language.export import export_graph
from halfbyte.converters.onnx.language.naming import node_name
from halfbyte.converters.onnx.language_model import write_language_model
from halfbyte.converters.onnx.reader import read_graph_model, read_model
from halfbyte.errors import HalfbyteError, UnsupportedError
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import ArrayPart
from halfbyte.quant.plan import apply_plan, make_plan
from halfbyte.runtime.session import Session
from support.model_folders import tiny_model
from support.random_models import random_model

FLAVOURS = ("", "ort")
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
WIDE = {"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 512}


def quantized(model: Model, type_name: str) -> Model:
    if not type_name:
        return model
    from halfbyte.converters.native.profile import NativeProfile

    return apply_plan(model, make_plan(model, NativeProfile(), type_name, requantize=True))


def write(model: Model, path: Path, flavour: str = "") -> Path:
    write_language_model(model, path, WriteOptions(flavour=flavour))
    return path


def feeds(graph, ids: np.ndarray, held: int = 0, past: dict | None = None) -> dict:
    """Return the inputs of one step after `held` positions."""
    batch, length = ids.shape
    found = {"input_ids": ids}
    for value in graph.inputs:
        if value.name.startswith("past"):
            shape = (batch, value.shape[1], 0, value.shape[3])
            found[value.name] = np.zeros(shape, np.float32)
        elif value.name == "attention_mask":
            found[value.name] = np.ones((batch, held + length), np.int64)
        elif value.name == "position_ids":
            found[value.name] = np.tile(np.arange(held, held + length), (batch, 1))
        elif value.name == "token_type_ids":
            found[value.name] = np.zeros((batch, length), np.int64)
    return found | (past or {})


def next_past(outputs: dict) -> dict:
    return {
        name.replace("present", "past_key_values"): array
        for name, array in outputs.items()
        if name.startswith("present")
    }


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("type_name", ["", "Q4_1"])
@pytest.mark.parametrize("architecture", [*DECODERS, "bert"])
def test_our_runtime_runs_the_written_graph(architecture, type_name, flavour, tmp_path):
    model = quantized(random_model(architecture), type_name)
    plain = read_graph_model(write(model, tmp_path / "m.onnx", flavour))
    ids = np.random.default_rng(1).integers(0, 128, (2, 10))
    expected = Session(model).run({"input_ids": ids})
    session, graph = Session(plain), plain.graph
    if architecture == "bert":
        found = session.run(feeds(graph, ids))
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, atol=2e-6 * np.abs(array).max())
        return
    limit, held, past = 4e-6 * np.abs(expected["logits"]).max(), 0, {}
    for count in (8, 1, 1):
        step = feeds(graph, ids[:, held : held + count], held, past)
        found = session.run(step)
        wanted = expected["logits"][:, held : held + count]
        np.testing.assert_allclose(found["logits"], wanted, atol=limit)
        held, past = held + count, next_past(found)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("tied", [False, True])
def test_tables_with_columns_sorted_by_group(flavour, tied, tmp_path):
    model = quantized(random_model("llama", tie_word_embeddings=tied), "int4-g32-actorder")
    name = "model.embed_tokens.weight"
    shuffled = np.random.default_rng(3).permutation(np.arange(64, dtype=np.int32) // 32)
    table = model.weights[name]
    table = replace(table, parts={**table.parts, "g_idx": ArrayPart(shuffled)})
    model = model.with_weights({**model.weights, name: table})
    ids = np.random.default_rng(1).integers(0, 128, (1, 10))
    expected = Session(model).run({"input_ids": ids})["logits"]
    path = write(model, tmp_path / "m.onnx", flavour)
    plain = read_graph_model(path)
    found = Session(plain).run(feeds(plain.graph, ids))["logits"]
    np.testing.assert_allclose(found, expected, atol=4e-6 * np.abs(expected).max())
    again = read_model(path).weights[name]
    assert again.encoding == table.encoding
    for part in table.parts:
        np.testing.assert_array_equal(again.parts[part].read(), table.parts[part].read())


def test_left_padding_changes_nothing(tmp_path):
    model = random_model("mistral")
    plain = read_graph_model(write(model, tmp_path / "m.onnx"))
    ids = np.random.default_rng(2).integers(0, 128, (1, 9))
    expected = Session(model).run({"input_ids": ids})["logits"]
    padded = np.concatenate([np.full((1, 3), 5), ids], axis=1)
    step = feeds(plain.graph, padded)
    step["attention_mask"][0, :3] = 0
    step["position_ids"] = np.asarray([[0, 0, 0, *range(9)]])
    found = Session(plain).run(step)["logits"][:, 3:]
    np.testing.assert_allclose(found, expected, atol=4e-6 * np.abs(expected).max())
    assert np.isfinite(found).all()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_inputs_outputs_and_opset(flavour, tmp_path):
    proto = onnx.load(write(random_model("llama"), tmp_path / "m.onnx", flavour))
    cache = [f"{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    inputs = [value.name for value in proto.graph.input]
    own = ["input_ids", "attention_mask"] + ([] if flavour else ["position_ids"])
    assert inputs == own + [f"past_key_values.{name}" for name in cache]
    outputs = [value.name for value in proto.graph.output]
    assert outputs == ["logits"] + [f"present.{name}" for name in cache]
    dims = [d.dim_param or d.dim_value for d in proto.graph.input[-1].type.tensor_type.shape.dim]
    assert dims == ["batch_size", 2, "past_sequence_length", 16]
    domains = {entry.domain: entry.version for entry in proto.opset_import}
    assert domains == ({"": 23, "com.microsoft": 1} if flavour else {"": 23})
    assert {node.domain for node in proto.graph.node} == (
        {"", "com.microsoft"} if flavour else {""}
    )


def test_a_chosen_opset(tmp_path):
    model = random_model("llama")
    write_language_model(model, tmp_path / "m.onnx", WriteOptions(opset=25))
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert proto.opset_import[0].version == 25
    with pytest.raises(UnsupportedError, match="opset 21"):
        write_language_model(model, tmp_path / "n.onnx", WriteOptions(opset=21))
    assert not (tmp_path / "n.onnx").exists()


def test_the_same_model_gives_the_same_files(tmp_path):
    for name in ("a", "b"):
        write(quantized(tiny_model("llama"), "Q4_1"), tmp_path / name, "ort")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_the_profile_of_weights_with_roles():
    from halfbyte.converters.onnx.profile import profile
    from halfbyte.ir.encodings import encoding_from_name

    weight = random_model("llama").weights["model.layers.0.self_attn.q_proj.weight"]
    for name in ("Q4_0", "Q4_1", "Q5_1", "Q8_0", "int4-g32-actorder", "int3-g16", "int4-g128"):
        assert profile("ort").accepts(weight, encoding_from_name(name)), name


def test_the_operators_of_onnxruntime(tmp_path):
    model = quantized(random_model("llama"), "Q4_0")
    proto = onnx.load(write(model, tmp_path / "m.onnx", "ort"))
    contrib = {n.op_type for n in proto.graph.node if n.domain == "com.microsoft"}
    assert contrib == {
        *("GroupQueryAttention", "SkipSimplifiedLayerNormalization"),
        *("MatMulNBits", "GatherBlockQuantized"),
    }
    attention = next(n for n in proto.graph.node if n.op_type == "GroupQueryAttention")
    settings = {a.name: onnx.helper.get_attribute_value(a) for a in attention.attribute}
    assert settings["do_rotary"] == 1 and settings["rotary_interleaved"] == 0
    assert (settings["num_heads"], settings["kv_num_heads"]) == (4, 2)
    assert attention.name == "/model/layers.0/attn/GroupQueryAttention"
    names = [n.name for n in proto.graph.node]
    assert "/model/layers.1/attn/q_proj/MatMulNBits" in names and len(set(names)) == len(names)


def test_windows_and_rotary_order_reach_the_attention():
    graph = export_graph(random_model("mistral", rope_interleaved=True), "ort").graph
    nodes = [n for n in graph.nodes if n.op == "GroupQueryAttention"]
    assert [n.attributes["local_window_size"] for n in nodes] == [8, 8]
    assert [n.attributes["rotary_interleaved"] for n in nodes] == [1, 1]
    plain = export_graph(random_model("llama"), "ort").graph
    found = next(n for n in plain.nodes if n.op == "GroupQueryAttention")
    assert found.attributes["local_window_size"] == -1


def test_frequencies_that_depend_on_length_stay_outside_the_attention(tmp_path):
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    model = random_model("llama", rope_scaling=scaling)
    graph = export_graph(model, "ort").graph
    attention = next(n for n in graph.nodes if n.op == "GroupQueryAttention")
    assert attention.attributes["do_rotary"] == 0
    assert {v.name for v in graph.inputs} >= {"position_ids"}
    assert sum(n.op == "RotaryEmbedding" for n in graph.nodes) == 4


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("type_name", ["", "Q8_0", "Q4_1"])
def test_a_tied_embedding_is_stored_once(type_name, flavour, tmp_path):
    sizes = {"vocab_size": 4096, "num_hidden_layers": 1}
    model = quantized(random_model("qwen2", **sizes), type_name)
    write(model, tmp_path / "m.onnx", flavour)
    own = sum(tensor.nbytes for tensor in model.weights.values())
    alignment = 4096 * 40
    assert (tmp_path / "m.onnx.data").stat().st_size < own + alignment
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    table = [t for t in proto.graph.initializer if t.name.startswith("model.embed_tokens")]
    places = [{e.key: e.value for e in t.external_data}["offset"] for t in table if t.external_data]
    views = 2 if flavour and type_name else 1
    assert max(places.count(place) for place in places) == views


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("type_name", ["", "Q4_0", "Q4_1", "Q5_1", "Q8_0", "int4-g32-asym"])
def test_everything_comes_back(type_name, flavour, tmp_path):
    model = quantized(tiny_model("llama"), type_name)
    found = read_model(write(model, tmp_path / "m.onnx", flavour))
    assert found.config == model.config and found.tokenizer == model.tokenizer
    assert list(found.weights) == list(model.weights)
    for name, tensor in model.weights.items():
        other = found.weights[name]
        assert (other.encoding, other.shape, other.key) == (
            tensor.encoding,
            tensor.shape,
            tensor.key,
        )
        for part, content in tensor.parts.items():
            np.testing.assert_array_equal(other.parts[part].read(), content.read(), err_msg=name)
    ids = np.arange(6)[None]
    np.testing.assert_array_equal(
        Session(found).run({"input_ids": ids})["logits"],
        Session(model).run({"input_ids": ids})["logits"],
    )


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("type_name", ["Q4_0", "Q6_K", "Q4_K", "Q2_K"])
def test_gguf_comes_back_byte_for_byte(type_name, flavour, tmp_path):
    model = quantized(random_model("llama", **WIDE), type_name)
    GGUF.write(model, tmp_path / "a.gguf", WriteOptions())
    write(GGUF.read(tmp_path / "a.gguf", None), tmp_path / "m.onnx", flavour)
    GGUF.write(read_model(tmp_path / "m.onnx"), tmp_path / "b.gguf", WriteOptions())
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_a_weight_without_use_in_the_graph_travels_in_the_metadata(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    GGUF.write(random_model("llama", rope_scaling=scaling), tmp_path / "a.gguf", WriteOptions())
    model = GGUF.read(tmp_path / "a.gguf", None)
    assert "rope_freqs.weight" in model.weights
    found = read_model(write(model, tmp_path / "m.onnx", "ort"))
    np.testing.assert_array_equal(
        found.weights["rope_freqs.weight"].numpy(), model.weights["rope_freqs.weight"].numpy()
    )


def test_a_folder_gets_everything_that_onnxruntime_genai_wants(tmp_path):
    model = tiny_model("llama")
    write(model, tmp_path / "out", "ort")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"}
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    decoder = config["model"]["decoder"]
    assert decoder["filename"] == "model.onnx" and decoder["head_size"] == 16
    assert decoder["inputs"] == {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    assert config["model"]["type"] == "llama"
    assert config["model"]["eos_token_id"] == model.tokenizer.special_ids["eos"]
    assert config["search"]["max_length"] == config["model"]["context_length"] == 64


def test_a_written_folder_is_opened_as_it_is(tmp_path):
    import halfbyte

    model = tiny_model("llama")
    write(model, tmp_path / "out", "ort")
    assert halfbyte.open(tmp_path / "out").tokenizer == model.tokenizer
    report = halfbyte.convert(tmp_path / "out", tmp_path / "m.gguf")
    assert {tensor.verdict for tensor in report.tensors} == {"exact"}


def test_a_model_without_an_end_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "halfbyte"):
        write(random_model("llama"), tmp_path / "m.onnx", "ort")
    assert "no id ends a text" in caplog.text


def test_companions_do_not_replace_other_files(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(HalfbyteError, match="another file of that name"):
        write(tiny_model("llama"), tmp_path / "m.onnx", "ort")
    assert not (tmp_path / "m.onnx").exists()
    write(tiny_model("llama"), tmp_path / "m.onnx")


def test_writing_again_replaces_our_own_files(tmp_path):
    for _ in range(2):
        write(tiny_model("llama"), tmp_path / "m.onnx", "ort")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("layers.3.attention.query", "/model/layers.3/attn/q_proj/Op"),
        ("layers.0.feed_forward.gate/Op", "/model/layers.0/mlp/gate_proj/Op"),
        ("layers.0.attention_norm", "/model/layers.0/input_layernorm/Op"),
        ("layers.10.attention.query_heads", "/model/layers.10/attn/q_proj_heads/Op"),
        ("logits/Op", "/lm_head/Op"),
        ("embedding/Op", "/model/embed_tokens/Op"),
        ("embedding_norm", "embedding_norm/Op"),
        ("other", "other/Op"),
    ],
)
def test_node_names(value, name):
    assert node_name(value, "Op") == name
