"""Language models of other writers: recognised where that is certain, else told why not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from halfbyte.converters.format import WriteOptions
from halfbyte.converters.gguf.format import GGUF
from halfbyte.converters.onnx.reader import read_graph_model, read_model
from halfbyte.runtime.session import Session
from support.genai_graphs import GenaiGraph
from support.model_folders import byte_level_tokenizer
from support.random_models import random_model

IDS = np.random.default_rng(4).integers(0, 128, (1, 11))


def logits(model) -> np.ndarray:
    return Session(model).run({"input_ids": IDS})["logits"]


@pytest.mark.parametrize(
    ("architecture", "packed", "overrides"),
    [
        ("llama", False, {}),
        ("llama", True, {"rope_theta": 500000.0}),
        ("llama", False, {"tie_word_embeddings": True}),
        ("llama", False, {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", False, {}),
        ("qwen3", False, {"rope_theta": 1e6}),
    ],
)
def test_a_decoder_is_recognised(architecture, packed, overrides, tmp_path):
    model = random_model(architecture, **overrides)
    found = read_model(GenaiGraph(model, packed).save(tmp_path / "model.onnx"))
    assert found.architecture == architecture and not found.warnings
    same = ("hidden_size", "rope_theta", "num_key_value_heads", "head_dim", "rms_norm_eps")
    assert [found.config[key] for key in same] == [model.config[key] for key in same]
    assert found.config["tie_word_embeddings"] == model.config["tie_word_embeddings"]
    np.testing.assert_array_equal(logits(found), logits(model))


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_quantized_blocks_are_recognised(architecture, tmp_path):
    model = random_model(architecture, tie_word_embeddings=True)
    path = GenaiGraph(model, blocks=True).save(tmp_path / "model.onnx")
    found = read_model(path)
    assert found.architecture == architecture, found.warnings
    kinds = {str(t.encoding) for t in found.weights.values()}
    assert kinds == {"int4-g16-asym-f32", "float32"}
    plain = read_graph_model(path)
    feeds = {
        "input_ids": IDS,
        "attention_mask": np.ones_like(IDS),
        **{
            value.name: np.zeros((1, 2, 0, 16), np.float32)
            for value in plain.graph.inputs
            if value.name.startswith("past")
        },
    }
    as_graph = Session(plain).run(feeds)["logits"]
    np.testing.assert_allclose(logits(found), as_graph, atol=4e-6 * np.abs(as_graph).max())


@pytest.mark.parametrize("packed", [False, True])
def test_blocks_of_untied_models(packed, tmp_path):
    graph = GenaiGraph(random_model("llama"), packed=packed, blocks=True)
    assert read_model(graph.save(tmp_path / "model.onnx")).architecture == "llama"


def test_a_window_makes_it_mistral(tmp_path):
    model = random_model("mistral")
    graph = GenaiGraph(model, attention={"local_window_size": 8})
    found = read_model(graph.save(tmp_path / "model.onnx"))
    assert (found.architecture, found.config["sliding_window"]) == ("mistral", 8)
    np.testing.assert_array_equal(logits(found), logits(model))


def test_files_beside_the_model_give_ids_and_tokenizer(tmp_path):
    model = random_model("llama", vocab_size=320)
    tokenizer = byte_level_tokenizer()
    described = {"model": {"type": "llama", "context_length": 32, "eos_token_id": [3, 5]}}
    (tmp_path / "genai_config.json").write_text(json.dumps(described))
    for name, content in tokenizer.source.items():
        (tmp_path / name).write_bytes(content)
    found = read_model(GenaiGraph(model).save(tmp_path / "model.onnx"))
    assert found.config["max_position_embeddings"] == 32
    assert found.generation_config["eos_token_id"] == [3, 5]
    assert found.tokenizer.tokens == tokenizer.tokens


def test_a_recognised_model_becomes_gguf(tmp_path):
    model = random_model("llama")
    found = read_model(GenaiGraph(model, packed=True).save(tmp_path / "model.onnx"))
    GGUF.write(found, tmp_path / "m.gguf", WriteOptions())
    again = GGUF.read(tmp_path / "m.gguf", None)
    np.testing.assert_allclose(logits(again), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"activation": "Tanh"}, "no activation that is known"),
        ({"stretch": 0.5}, "not those of a plain base"),
        ({"attention": {"softcap": 30.0}}, "a scale, cap or rotation of its own"),
        ({"attention": {"scale": 0.5}}, "a scale, cap or rotation of its own"),
        ({"attention": {"do_rotary": 0}}, "a rotation was due"),
    ],
)
def test_what_is_not_certain_stays_a_graph_with_the_reason(settings, reason, tmp_path):
    graph = GenaiGraph(random_model("llama"), **settings)
    found = read_model(graph.save(tmp_path / "model.onnx"))
    assert not found.architecture
    assert any(reason in warning for warning in found.warnings), found.warnings
    assert found.graph.nodes


def test_a_norm_of_another_value_is_not_certain(tmp_path):
    class Crossed(GenaiGraph):
        def skip_norm(self, x, skip, scale, name):
            return super().skip_norm(x, x if name == "layers.1/n2" else skip, scale, name)

    found = read_model(Crossed(random_model("llama")).save(tmp_path / "model.onnx"))
    assert not found.architecture and found.warnings


@pytest.mark.parametrize(
    ("op", "inputs", "reason"),
    [
        ("Cast", ["logits"], "is made by"),
        ("MatMul", [], "lack something"),
        ("MatMul", ["input_ids"], "lack something"),
        ("Softmax", ["input_ids"], "is made by Softmax"),
    ],
)
def test_odd_graphs_are_told_without_an_endless_search(op, inputs, reason):
    from halfbyte.converters.onnx.language.pattern import NotRecognisedError
    from halfbyte.converters.onnx.messages import GraphMessage, NodeMessage
    from halfbyte.converters.onnx.recognise import recognise
    from halfbyte.ir.model import Model

    node = NodeMessage(op_type=op, input=inputs, output=["logits"])
    with pytest.raises(NotRecognisedError, match=reason):
        recognise(Model({}), GraphMessage(node=[node]))
