"""Configs of architectures: defaults, spellings, hostile values, missing and stray weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.architectures import get_architecture
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import tensor_from_array
from support.random_models import random_model, random_weights


def config_of(model_type: str, **overrides: Any) -> dict[str, Any]:
    architecture = get_architecture(model_type)
    return architecture.canonical_config({**architecture.EXAMPLE, **overrides})


def test_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(UnsupportedError) as caught:
        get_architecture("rwkv")
    assert str(caught.value) == (
        "model_type: architecture 'rwkv' is not supported; supported: bert, gpt2, llama, mistral, "
        "mixtral and 5 more"
    )


def test_defaults_are_those_of_transformers() -> None:
    llama = get_architecture("llama").canonical_config({})
    assert (llama["num_key_value_heads"], llama["head_dim"]) == (32, 128)
    assert (llama["rope_theta"], llama["rope_scaling"], llama["rms_norm_eps"]) == (1e4, None, 1e-6)
    mistral = get_architecture("mistral").canonical_config({})
    assert (mistral["num_key_value_heads"], mistral["sliding_window"]) == (8, 4096)
    qwen3 = get_architecture("qwen3").canonical_config({"num_hidden_layers": 2})
    assert (qwen3["head_dim"], qwen3["sliding_window"]) == (128, None)
    assert qwen3["layer_types"] == ["full_attention"] * 2
    mixtral = get_architecture("mixtral").canonical_config({})
    assert (mixtral["num_experts"], mixtral["num_experts_per_tok"]) == (8, 2)
    assert (mixtral["rope_theta"], mixtral["rms_norm_eps"]) == (1e6, 1e-5)
    sparse = get_architecture("qwen3_moe").canonical_config({"hidden_size": 2048})
    assert (sparse["num_experts"], sparse["num_experts_per_tok"]) == (128, 8)
    assert (sparse["head_dim"], sparse["norm_topk_prob"]) == (64, False)
    gpt2 = get_architecture("gpt2").canonical_config({})
    assert (gpt2["intermediate_size"], gpt2["tie_word_embeddings"]) == (3072, True)
    assert get_architecture("bert").canonical_config({})["layer_norm_eps"] == 1e-12


def test_null_key_value_heads_mean_one_for_each_query_head() -> None:
    assert config_of("mistral", num_key_value_heads=None)["num_key_value_heads"] == 4


def test_other_keys_pass_through() -> None:
    config = config_of("llama", bos_token_id=1, torch_dtype="bfloat16")
    assert (config["bos_token_id"], config["torch_dtype"]) == (1, "bfloat16")


def test_gpt2_is_written_with_its_own_spelling() -> None:
    architecture = get_architecture("gpt2")
    written = architecture.hugging_face_config(config_of("gpt2"))
    assert (written["n_embd"], written["n_inner"], written["n_positions"]) == (64, 256, 64)
    assert written["activation_function"] == "gelu_new"
    assert not {"hidden_size", "head_dim", "num_key_value_heads", "hidden_act"} & set(written)


def test_encoder_is_written_as_the_bare_model() -> None:
    config = config_of("bert", architectures=["BertForMaskedLM"])
    assert get_architecture("bert").hugging_face_config(config)["architectures"] == ["BertModel"]


@pytest.mark.parametrize(
    ("model_type", "overrides", "message"),
    [
        ("llama", {"hidden_size": -4}, "hidden_size is -4, an integer from 1 to 2147483647 was"),
        ("llama", {"hidden_size": "64"}, "hidden_size is '64', an integer"),
        ("llama", {"hidden_size": True}, "hidden_size is True, an integer"),
        ("llama", {"hidden_size": 64.0}, "hidden_size is 64.0, an integer"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, an integer from"),
        ("llama", {"num_attention_heads": 7}, "num_attention_heads is 7, a divisor of hidden_size"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads is 3, a divisor of num_attent"),
        ("llama", {"head_dim": 7}, "head_dim is 7, an even number was required"),
        ("llama", {"head_dim": 2**20}, "head_dim is 1048576, an integer from 1 to 65536"),
        ("llama", {"head_dim": 0}, "head_dim is 0, an integer from 1"),
        ("llama", {"vocab_size": 0}, "vocab_size is 0, an integer"),
        ("llama", {"rms_norm_eps": math.nan}, "rms_norm_eps is nan, a finite number"),
        ("llama", {"rms_norm_eps": 3}, "rms_norm_eps is 3, a finite number of at least 0 and at m"),
        ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5', a finite number"),
        ("llama", {"attention_bias": 1}, "attention_bias is 1, true or false was required"),
        ("llama", {"rope_interleaved": "yes"}, "rope_interleaved is 'yes', true or false"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0, an integer from 1"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types is ['full_attention'], 2 of"),
        ("qwen2", {"layer_types": 3}, "layer_types is 3, 2 of"),
        ("qwen2", {"layer_types": ["full_attention", "chunked"]}, "layer_types is ['full_att"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "use_sliding_window with a sliding"),
        ("gpt2", {"n_head": 5}, "num_attention_heads is 5, a divisor of hidden_size 64"),
        ("bert", {"num_attention_heads": 5}, "num_attention_heads is 5, a divisor of hidden_size"),
        ("llama", {"hidden_size": [1] * 100}, "..., an integer from 1"),
    ],
)
def test_bad_values_are_named(model_type: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError) as caught:
        config_of(model_type, **overrides)
    assert str(caught.value).startswith("model config: ")
    assert message in str(caught.value)
    assert str(caught.value).endswith("correct the config")


@pytest.mark.parametrize(
    ("model_type", "overrides", "message"),
    [
        ("llama", {"hidden_act": "mish"}, "hidden_act 'mish' is not supported; supported: gelu"),
        ("llama", {"hidden_act": ["silu"]}, "hidden_act ['silu'] is not supported"),
        ("qwen3", {"rope_interleaved": True}, "rope_interleaved with norms of query and key"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention True is not supported"),
        ("bert", {"is_decoder": True}, "is_decoder True is not supported; supported: False"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ],
)
def test_missing_features_are_named(
    model_type: str, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        config_of(model_type, **overrides)
    assert f"model config: {message}" in str(caught.value)


def test_windows_by_layer() -> None:
    qwen2 = get_architecture("qwen2")
    config = config_of("qwen2", use_sliding_window=True, sliding_window=9, max_window_layers=1)
    assert [qwen2.layer_window(config, layer) for layer in (0, 1)] == [None, 9]  # type: ignore[attr-defined]
    model = random_model("qwen2", use_sliding_window=True, sliding_window=9, max_window_layers=1)
    assert [model.graph.states[f"key_cache.{layer}"].window for layer in (0, 1)] == [None, 9]


def test_missing_weights_are_named() -> None:
    model = random_model("llama", skip=(Role.FEED_FORWARD_UP, Role.OUTPUT_HEAD))
    with pytest.raises(FormatError) as caught:
        _ = model.graph
    assert str(caught.value) == (
        "random llama: weights model.layers.0.mlp.up_proj.weight, "
        "model.layers.1.mlp.up_proj.weight, lm_head.weight missing; the file is incomplete "
        "or its config (model_type llama) belongs to another model"
    )


def test_a_long_list_of_missing_weights_is_cut() -> None:
    model = replace(random_model("bert"), weights={})
    with pytest.raises(FormatError, match=r"and 32 more missing"):
        _ = model.graph


def test_wrong_shapes_are_named() -> None:
    model = random_model("gpt2")
    name = "transformer.h.1.mlp.c_fc.weight"
    short = tensor_from_array(name, np.zeros((255, 64), np.float32))
    weights = {**model.weights, name: short.identified(model.weights[name].key)}
    with pytest.raises(FormatError) as caught:
        _ = model.with_weights(weights).graph
    assert str(caught.value) == (
        f"random gpt2: weight {name!r} has shape [255, 64], [256, 64] was required by the config; "
        "correct the config"
    )


def test_weights_without_a_place_are_refused() -> None:
    model = random_model("llama")
    stray = tensor_from_array("q_norm", np.ones(16, np.float32))
    stray = stray.identified(WeightKey(Role.ATTENTION_QUERY_NORM, 0))
    with pytest.raises(UnsupportedError) as caught:
        _ = model.with_weights({**model.weights, "q_norm": stray}).graph
    assert str(caught.value) == (
        "random llama: weight q_norm (layers.0.attention_query_norm.weight) in architecture llama "
        "is not supported"
    )


def test_biases_that_the_config_does_not_know_are_used() -> None:
    full = random_model("llama", attention_bias=True)
    partial = {k: t for k, t in full.weights.items() if not k.endswith("o_proj.bias")}
    model = replace(full.with_weights(partial), config=config_of("llama"))
    sizes = {
        node.outputs[0].name: len(node.inputs)
        for node in model.graph.nodes
        if node.op == "Linear" and node.layer == 0
    }
    assert sizes["layers.0.attention.query"] == 3
    assert sizes["layers.0.attention.output"] == 2


def test_config_takes_from_weights_what_a_container_does_not_say() -> None:
    llama = get_architecture("llama")
    config = config_of("llama")
    full = random_model("llama", attention_bias=True, mlp_bias=True)
    found = llama.config_for_weights(config, full.by_key())
    assert (found["attention_bias"], found["mlp_bias"]) == (True, True)
    assert not found["tie_word_embeddings"]
    tied = random_model("llama", skip=(Role.OUTPUT_HEAD,))
    found = llama.config_for_weights(config, tied.by_key())
    assert (found["attention_bias"], found["tie_word_embeddings"]) == (False, True)
    encoder = config_of("bert")
    assert get_architecture("bert").config_for_weights(encoder, {}) == encoder


def test_a_tied_embedding_is_one_constant_used_twice() -> None:
    model = random_model("gpt2")
    table = model.graph.constant_value("transformer.wte.weight")
    assert sorted(node.op for node, _ in table.uses) == ["Gather", "Linear"]


def test_a_head_beside_a_tied_embedding_is_used() -> None:
    config = config_of("qwen2")
    weights = random_weights("qwen2", config)
    model = replace(random_model("qwen2"), weights=weights)
    assert [op.op for op, _ in model.graph.constant_value("lm_head.weight").uses] == ["Linear"]


def test_every_error_is_a_halfbyte_error() -> None:
    junk: list[Any] = [None, -1, 0, 2**40, 1.5, math.inf, "x", [], {}, [[]], True]
    for model_type in ("llama", "mistral", "qwen2", "qwen3", "gpt2", "bert"):
        architecture = get_architecture(model_type)
        for key in [*architecture.canonical_config(architecture.EXAMPLE), "rope_parameters"]:
            for value in junk:
                try:
                    architecture.canonical_config({**architecture.EXAMPLE, key: value})
                except HalfbyteError as error:
                    assert len(str(error)) < 400
