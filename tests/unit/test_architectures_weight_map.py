"""Checkpoint names, prefixes, row orders and transposition."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.converters.architectures import get_architecture
from halfbyte.converters.weight_map import (
    from_canonical,
    identify,
    in_rotary_order,
    model_in_rotary_order,
    names_by_key,
    to_canonical,
)
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import ArrayPart, Tensor, tensor_from_array
from support.random_models import random_model

LLAMA, GPT2, BERT = (get_architecture(name) for name in ("llama", "gpt2", "bert"))
CONFIGS = {a.model_type: a.canonical_config(a.EXAMPLE) for a in (LLAMA, GPT2, BERT)}


@pytest.mark.parametrize(
    ("model_type", "name", "expected"),
    [
        ("llama", "model.norm.weight", WeightKey(Role.OUTPUT_NORM)),
        ("llama", "norm.weight", WeightKey(Role.OUTPUT_NORM)),
        ("llama", "lm_head.weight", WeightKey(Role.OUTPUT_HEAD)),
        ("llama", "layers.1.self_attn.q_proj.weight", WeightKey(Role.ATTENTION_QUERY, 1)),
        ("gpt2", "h.0.attn.c_attn.bias", WeightKey(Role.ATTENTION_QKV, 0, "bias")),
        ("gpt2", "transformer.h.0.attn.c_attn.bias", WeightKey(Role.ATTENTION_QKV, 0, "bias")),
        ("bert", "bert.pooler.dense.weight", WeightKey(Role.POOLER)),
        ("bert", "embeddings.LayerNorm.weight", WeightKey(Role.EMBEDDING_NORM)),
        ("bert", "bert.embeddings.LayerNorm.gamma", WeightKey(Role.EMBEDDING_NORM)),
        ("bert", "embeddings.LayerNorm.beta", WeightKey(Role.EMBEDDING_NORM, None, "bias")),
    ],
)
def test_names_with_and_without_prefix(model_type: str, name: str, expected: WeightKey) -> None:
    found = identify([name], get_architecture(model_type), CONFIGS[model_type])
    assert found.keys == {name: expected}


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "model.layers.3.self_attn.rotary_emb.inv_freq"),
        ("gpt2", "h.11.attn.bias"),
        ("gpt2", "transformer.h.0.attn.masked_bias"),
        ("bert", "bert.embeddings.position_ids"),
        ("bert", "cls.predictions.transform.dense.weight"),
    ],
)
def test_buffers_are_ignored(model_type: str, name: str) -> None:
    found = identify([name], get_architecture(model_type), CONFIGS[model_type])
    assert (found.keys, found.ignored, found.unknown) == ({}, (name,), ())


def test_unknown_names_are_listed() -> None:
    names = ["model.layers.9.self_attn.q_proj.weight", "score.weight"]
    assert identify(names, LLAMA, CONFIGS["llama"]).unknown == tuple(names)


def test_biases_have_names_only_if_the_config_says_so() -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    assert identify([name], LLAMA, CONFIGS["llama"]).unknown == (name,)
    with_biases = {**CONFIGS["llama"], "attention_bias": True}
    assert identify([name], LLAMA, with_biases).keys[name].kind == "bias"


def test_one_weight_under_two_names_is_refused() -> None:
    with pytest.raises(FormatError) as caught:
        identify(["model.norm.weight", "norm.weight"], LLAMA, CONFIGS["llama"])
    assert str(caught.value) == (
        "model config: 'model.norm.weight' and 'norm.weight' both name output_norm.weight; "
        "keep one of the two"
    )


def test_names_by_key_and_a_weight_without_name() -> None:
    names = names_by_key(LLAMA, CONFIGS["llama"])
    assert names[WeightKey(Role.FEED_FORWARD_DOWN, 1)] == "model.layers.1.mlp.down_proj.weight"
    assert "" not in names.values()
    assert WeightKey(Role.ROPE_DIVISORS) not in names


def test_transposed_weights_read_in_ranges() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    stored = tensor_from_array("h.0.mlp.c_fc.weight", values)
    stored = stored.identified(WeightKey(Role.FEED_FORWARD_UP, 0))
    canonical = to_canonical(stored, GPT2)
    assert canonical.shape == (4, 3)
    part = canonical.parts["data"]
    assert (part.shape, part.dtype) == ((4, 3), np.dtype(np.float32))
    np.testing.assert_array_equal(canonical.float32(1, 3), values.T[1:3])
    back = from_canonical(canonical, GPT2)
    assert back.parts["data"] is stored.parts["data"]


def test_biases_and_weights_without_role_stay() -> None:
    bias = tensor_from_array("b", np.ones(4, np.float32))
    assert to_canonical(bias, GPT2) is bias
    known = bias.identified(WeightKey(Role.FEED_FORWARD_UP, 0, "bias"))
    assert to_canonical(known, GPT2) is known
    assert in_rotary_order(bias, LLAMA, CONFIGS["llama"], True) is bias


def test_quantized_weights_are_not_transposed() -> None:
    encoding = encoding_from_name("Q8_0")
    parts = encoding.encode(np.ones((64, 64), np.float32))
    held = {name: ArrayPart(array) for name, array in parts.items()}
    tensor = Tensor("w", (64, 64), encoding, held).identified(WeightKey(Role.ATTENTION_OUTPUT, 0))
    with pytest.raises(
        UnsupportedError, match=r"transposing 'w' \(Q8_0, shape \[64, 64\]\) is not"
    ):
        from_canonical(tensor, GPT2)


def test_rows_pair_up_as_in_gguf() -> None:
    order = LLAMA.row_order(WeightKey(Role.ATTENTION_KEY, 0), CONFIGS["llama"], True)
    assert order is not None
    assert len(order) == 32
    assert order[:6].tolist() == [0, 8, 1, 9, 2, 10]
    assert order[16:20].tolist() == [16, 24, 17, 25]
    turned = {**CONFIGS["llama"], "rope_interleaved": True}
    back = LLAMA.row_order(WeightKey(Role.ATTENTION_KEY, 0), turned, False)
    assert back is not None
    np.testing.assert_array_equal(order[back], np.arange(32))
    assert LLAMA.row_order(WeightKey(Role.ATTENTION_VALUE, 0), CONFIGS["llama"], True) is None
    assert LLAMA.row_order(WeightKey(Role.ATTENTION_KEY, 0), CONFIGS["llama"], False) is None
    assert GPT2.row_order(WeightKey(Role.ATTENTION_QKV, 0), CONFIGS["gpt2"], True) is None


def test_encoded_rows_move_without_decoding() -> None:
    encoding = encoding_from_name("Q4_0")
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    held = {name: ArrayPart(array) for name, array in encoding.encode(values).items()}
    key = WeightKey(Role.ATTENTION_QUERY, 0)
    tensor = Tensor("w", (64, 64), encoding, held).identified(key)
    turned = in_rotary_order(tensor, LLAMA, CONFIGS["llama"], True)
    order = LLAMA.row_order(key, CONFIGS["llama"], True)
    assert turned.encoding == encoding
    np.testing.assert_array_equal(turned.read()["data"], tensor.read()["data"][order])


def test_a_whole_model_changes_its_order_once() -> None:
    model = random_model("llama", attention_bias=True)
    assert model_in_rotary_order(model, LLAMA, False) is model
    turned = model_in_rotary_order(model, LLAMA, True)
    assert turned.config["rope_interleaved"] is True
    assert model_in_rotary_order(turned, LLAMA, True) is turned
    back = model_in_rotary_order(turned, LLAMA, False)
    assert back.config == model.config
    for name, tensor in model.weights.items():
        np.testing.assert_array_equal(back.weights[name].numpy(), tensor.numpy())
    gpt2 = random_model("gpt2")
    assert model_in_rotary_order(gpt2, GPT2, True) is gpt2
