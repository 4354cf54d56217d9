"""Tensor names of GGUF files and roles."""

from __future__ import annotations

import pytest

from halfbyte.converters.architectures import ARCHITECTURES, get_architecture
from halfbyte.converters.gguf.names import GLOBAL_NAMES, LAYER_NAMES, gguf_name, key_of
from halfbyte.ir.roles import Role, WeightKey


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (WeightKey(Role.TOKEN_EMBEDDING), "token_embd.weight"),
        (WeightKey(Role.OUTPUT_NORM, kind="bias"), "output_norm.bias"),
        (WeightKey(Role.OUTPUT_HEAD), "output.weight"),
        (WeightKey(Role.ROPE_DIVISORS), "rope_freqs.weight"),
        (WeightKey(Role.ATTENTION_QUERY, 0), "blk.0.attn_q.weight"),
        (WeightKey(Role.ATTENTION_QKV, 11, "bias"), "blk.11.attn_qkv.bias"),
        (WeightKey(Role.ATTENTION_OUTPUT_NORM, 3), "blk.3.attn_output_norm.weight"),
        (WeightKey(Role.LAYER_OUTPUT_NORM, 511, "bias"), "blk.511.layer_output_norm.bias"),
        (WeightKey(Role.FEED_FORWARD_DOWN, 42), "blk.42.ffn_down.weight"),
        (WeightKey(Role.ROUTER, 1), "blk.1.ffn_gate_inp.weight"),
        (WeightKey(Role.EXPERTS_DOWN, 1), "blk.1.ffn_down_exps.weight"),
    ],
)
def test_names(key: WeightKey, name: str) -> None:
    assert gguf_name(key) == name
    assert key_of(name) == key


def test_every_name_comes_back() -> None:
    for role in GLOBAL_NAMES:
        assert key_of(gguf_name(WeightKey(role))) == WeightKey(role)
    for role in LAYER_NAMES:
        for kind in ("weight", "bias"):
            key = WeightKey(role, 7, kind)
            assert key_of(gguf_name(key)) == key


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_weight_of_an_architecture_has_a_name(model_type: str) -> None:
    architecture = get_architecture(model_type)
    config = architecture.canonical_config(architecture.EXAMPLE)
    for key in architecture.hugging_face_names(config).values():
        if key.role is not Role.POOLER:
            assert key_of(gguf_name(key)) == key


@pytest.mark.parametrize(
    "name",
    [
        "",
        "blk.-1.attn_q.weight",
        "blk.01.attn_q.weight",
        "blk.99999999999.attn_q.weight",
        "blk.1.attn_q",
        "blk.1.attn_q.scale",
        "blk.1.output.weight",
        "attn_q.weight",
        "blk.1.ffn_down_exp.weight",
        "token_embd.weight\n",
        "../token_embd.weight",
        "blk.١.attn_q.weight",
    ],
)
def test_other_names_have_no_role(name: str) -> None:
    assert key_of(name) is None


@pytest.mark.parametrize(
    "key", [WeightKey(Role.POOLER), WeightKey(Role.ATTENTION_QUERY), WeightKey(Role.OUTPUT_HEAD, 1)]
)
def test_roles_without_a_name(key: WeightKey) -> None:
    with pytest.raises(KeyError):
        gguf_name(key)
