"""Config to GGUF keys and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.architectures import get_architecture
from halfbyte.converters.gguf.hyperparameters import Hyperparameters
from halfbyte.converters.gguf.limits import check_config, check_keys
from halfbyte.converters.gguf.metadata import (
    CONFIG_KEY,
    architecture_keys,
    carried_config,
    generation_config,
    raw_config,
    text_value,
)
from halfbyte.converters.gguf.metadata_value import MetadataValue, plain, typed
from halfbyte.converters.gguf.model_card import sampling_keys
from halfbyte.converters.gguf.rope_keys import ignored_yarn, read_rope, yarn_attention_factor
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role, WeightKey
from support.gguf_models import fitted, gguf_bytes, read, write
from support.random_models import random_model


def canonical(model_type: str, **settings: Any) -> dict[str, Any]:
    architecture = get_architecture(model_type)
    return architecture.canonical_config({**architecture.EXAMPLE, **settings})


LLAMA_KEYS = {
    "llama.block_count": typed(2),
    "llama.context_length": typed(64),
    "llama.embedding_length": typed(64),
    "llama.feed_forward_length": typed(96),
    "llama.attention.head_count": typed(4),
    "llama.attention.head_count_kv": typed(2),
    "llama.rope.freq_base": typed(10000.0),
    "llama.attention.layer_norm_rms_epsilon": typed(1e-5),
    "llama.attention.key_length": typed(16),
    "llama.attention.value_length": typed(16),
    "general.file_type": typed(0),
    "llama.vocab_size": typed(128),
    "llama.rope.dimension_count": typed(16),
}


def test_keys_of_llama_in_order() -> None:
    found = architecture_keys(canonical("llama"), "llama", 0)
    assert list(found.items()) == list(LLAMA_KEYS.items())


def test_keys_of_other_architectures() -> None:
    qwen2 = architecture_keys(canonical("qwen2"), "qwen2", 1)
    assert [key.removeprefix("qwen2.") for key in qwen2] == [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "rope.freq_base",
        "attention.layer_norm_rms_epsilon",
        "general.file_type",
    ]
    qwen3 = architecture_keys(canonical("qwen3", head_dim=32), "qwen3", None)
    assert qwen3["qwen3.attention.key_length"] == typed(32)
    assert "general.file_type" not in qwen3
    gpt2 = plain(architecture_keys(canonical("gpt2"), "gpt2", 1))
    assert gpt2 == {
        "gpt2.block_count": 2,
        "gpt2.context_length": 64,
        "gpt2.embedding_length": 64,
        "gpt2.feed_forward_length": 256,
        "gpt2.attention.head_count": 4,
        "gpt2.attention.layer_norm_epsilon": float(np.float32(1e-5)),
        "general.file_type": 1,
    }
    bert = plain(architecture_keys(canonical("bert", pooling_type="mean"), "bert", 1))
    assert bert["bert.attention.causal"] is False
    assert bert["bert.pooling_type"] == 1
    assert bert["bert.attention.layer_norm_epsilon"] == float(np.float32(1e-12))


SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "attention_factor": 1.5,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    },
    {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 16,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {
        "rope_type": "longrope",
        "original_max_position_embeddings": 32,
        "long_factor": [1.0 + 0.25 * i for i in range(8)],
        "short_factor": [1.0 + 0.125 * i for i in range(8)],
    },
]


def settings_for(scaling: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_scaling": scaling}
    if scaling["rope_type"] == "llama3":
        found |= {"rope_theta": 500000.0, "max_position_embeddings": 131072}
    return found


def without_config(model: Model) -> Model:
    pairs = {k: v for k, v in model.metadata["gguf"].items() if k != CONFIG_KEY}
    return Model(model.weights, model.config, metadata={"gguf": pairs}, build=model.build)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: f"{s['rope_type']}-{len(s)}")
def test_rope_scaling_comes_back(tmp_path: Path, scaling: dict[str, Any]) -> None:
    model = random_model("llama", **settings_for(scaling))
    write(model, tmp_path / "carried.gguf")
    carried = read(tmp_path / "carried.gguf")
    assert carried.warnings == ()
    assert {**carried.config, "rope_interleaved": False} == model.config
    write(without_config(carried), tmp_path / "plain.gguf")
    inferred = read(tmp_path / "plain.gguf")
    found, wanted = inferred.config["rope_scaling"], model.config["rope_scaling"]
    assert found["rope_type"] == wanted["rope_type"]
    for name in ("factor", "original_max_position_embeddings", "long_factor", "high_freq_factor"):
        assert found.get(name, wanted.get(name)) == wanted.get(name, found.get(name))
    if scaling["rope_type"] == "yarn":
        factors = yarn_attention_factor(found), yarn_attention_factor(wanted)
        assert math.isclose(*factors, rel_tol=1e-6)


def test_llama3_scaling_is_a_tensor(tmp_path: Path) -> None:
    model = random_model("llama", **settings_for(SCALINGS[4]))
    written = write(model, tmp_path / "m.gguf")
    assert written[0].name == "rope_freqs.weight"
    back = read(tmp_path / "m.gguf")
    divisors = back.weights["rope_freqs.weight"].numpy()
    assert divisors.dtype == np.float32
    assert divisors.shape == (8,)
    assert divisors[0] == 1
    assert divisors[-1] == 8
    # a copy keeps the tensor once
    assert [w.name for w in write(back, tmp_path / "copy.gguf")].count("rope_freqs.weight") == 1


def test_divisors_that_no_setting_explains_stay(tmp_path: Path) -> None:
    model = random_model("llama", **settings_for(SCALINGS[4]))
    write(model, tmp_path / "m.gguf")
    content = (tmp_path / "m.gguf").read_bytes()
    back = read(tmp_path / "m.gguf")
    odd = np.linspace(1, 2, 8, dtype=np.float32)
    at = content.index(back.weights["rope_freqs.weight"].numpy().tobytes())
    (tmp_path / "odd.gguf").write_bytes(content[:at] + odd.tobytes() + content[at + 32 :])
    found = read(tmp_path / "odd.gguf")
    assert found.config["rope_scaling"] is None
    assert "halfbyte.config does not match" in found.warnings[0]
    np.testing.assert_array_equal(found.weights["rope_freqs.weight"].numpy(), odd)


REFUSED = [
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
    ("qwen2", settings_for(SCALINGS[4]), "rope_type 'llama3'"),
    ("qwen3", {**settings_for(SCALINGS[5]), "head_dim": 16}, "rope_type 'longrope'"),
    ("llama", {"rope_scaling": {**SCALINGS[1], "beta_fast": 64.0}}, "yarn beta_fast 64.0"),
    ("llama", {"rope_scaling": {**SCALINGS[1], "truncate": False}}, "yarn without truncation"),
    ("llama", {"hidden_act": "gelu"}, "activation 'gelu'"),
    ("gpt2", {"activation_function": "relu"}, "activation 'relu'"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights False"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
    ("bert", {"hidden_act": "relu"}, "activation 'relu'"),
    ("mistral", {"sliding_window": 8}, "sliding_window 8"),
    ("llama", {"attention_multiplier": 0.5}, "attention_multiplier 0.5"),
    ("qwen2", {"head_dim": 32}, "head_dim 32"),
]


@pytest.mark.parametrize(("model_type", "settings", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_gguf_cannot_say_is_refused(
    tmp_path: Path, model_type: str, settings: dict[str, Any], message: str
) -> None:
    model = fitted(random_model(model_type, **settings))
    with pytest.raises(UnsupportedError, match=f"GGUF architecture .*: {message}"):
        write(model, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("mistral", {"sliding_window": 64}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 8}),
        ("llama", {"partial_rotary_factor": 1.0, "pretraining_tp": 2}),
    ],
)
def test_settings_that_change_nothing_pass(model_type: str, settings: dict[str, Any]) -> None:
    architecture = get_architecture(model_type)
    check_config(canonical(model_type, **settings), architecture.gguf_name)


def test_biases_without_a_place_are_refused() -> None:
    key = WeightKey(Role.ATTENTION_OUTPUT, 0, "bias")
    check_keys([key], "llama")
    message = "GGUF architecture qwen2: weight layers.0.attention_output.bias is not supported; "
    with pytest.raises(UnsupportedError, match=message + "llama.cpp has no such tensor there"):
        check_keys([key], "qwen2")


def pairs(**changes: Any) -> dict[str, MetadataValue]:
    found = {**LLAMA_KEYS, "general.architecture": typed("llama")}
    for name, value in changes.items():
        key = "llama." + name.replace("__", ".")
        if value is None:
            del found[key]
        else:
            found[key] = typed(value)
    return found


def test_raw_config_of_llama() -> None:
    found = raw_config("f.gguf", "llama", pairs(), 128)
    assert get_architecture("llama").canonical_config(found) == {
        **canonical("llama"),
        "rope_interleaved": True,
    }


def test_absent_keys_take_their_defaults() -> None:
    absent = pairs(
        attention__head_count_kv=None,
        attention__key_length=None,
        attention__value_length=None,
        rope__freq_base=None,
        rope__dimension_count=None,
        vocab_size=None,
    )
    found = raw_config("f.gguf", "llama", absent, 77)
    assert found["num_key_value_heads"] == 4
    assert found["head_dim"] == 16
    assert found["rope_theta"] == 10000.0
    assert found["vocab_size"] == 77


def test_older_spelling_of_linear_scaling() -> None:
    found = raw_config("f.gguf", "llama", pairs(rope__scale_linear=4.0), 128)
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    found = raw_config("f.gguf", "llama", pairs(rope__scaling__type="none"), 128)
    assert found["rope_scaling"] is None


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"block_count": None}, "'llama.block_count' is missing, an integer was required"),
        ({"block_count": 0}, "UINT32 0, an integer of at least 1"),
        ({"block_count": 513}, "513 blocks announced, the format's limit is 512"),
        ({"block_count": "2"}, "STRING '2', an integer"),
        ({"attention__head_count": 0}, "head_count' is UINT32 0"),
        ({"attention__head_count_kv": 0}, "head_count_kv' is UINT32 0"),
        ({"embedding_length": -64}, "INT32 -64"),
        ({"embedding_length": 2**40}, "UINT64 1099511627776"),
        ({"attention__layer_norm_rms_epsilon": None}, "missing, a number"),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, "nan, a finite number"),
        ({"attention__layer_norm_rms_epsilon": -1.0}, "-1.0, a number of at least 0"),
        ({"rope__freq_base": "x"}, "STRING 'x', a finite number"),
        ({"rope__dimension_count": 8}, "rope.dimension_count is 8, 16 was required"),
        ({"attention__value_length": 8}, "attention.value_length is 8, 16 was required"),
        ({"rope__scaling__type": 3}, "UINT32, a string"),
        ({"attention__causal": 1}, "UINT32 1, a bool"),
    ],
    ids=lambda v: str(v)[:50],
)
def test_broken_keys(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(FormatError, match=rule) as caught:
        raw_config("f.gguf", "llama", pairs(**changes), 128)
    assert str(caught.value).startswith("f.gguf: ")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"expert_count": 8, "expert_gating_func": 2}, "another function than softmax"),
        ({"expert_count": 8, "expert_group_count": 2}, "experts in groups"),
        ({"expert_count": 8, "expert_weights_scale": 2.5}, "scaled shares"),
        ({"expert_count": 8, "expert_shared_count": 1}, "an expert that all tokens meet"),
        ({"attention__causal": False}, "attention without a causal mask"),
        ({"attention__head_count_kv": np.array([2, 4], np.int32)}, "differs between layers"),
        ({"rope__scaling__type": "magic"}, "rope scaling 'magic'"),
    ],
    ids=lambda v: str(v)[:50],
)
def test_keys_that_ask_for_more(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UnsupportedError, match=what):
        raw_config("f.gguf", "llama", pairs(**changes), 128)


def test_arrays_of_equal_numbers_count_as_one() -> None:
    found = raw_config(
        "f", "llama", pairs(attention__head_count_kv=np.array([2, 2], np.uint32)), 128
    )
    assert found["num_key_value_heads"] == 2


def test_floats_are_read_as_the_shortest_decimal() -> None:
    keys = Hyperparameters("f", "x", {"x.a": typed(1e-5), "x.b": typed(np.float64(0.1))})
    assert keys.number("a") == 1e-5
    assert keys.number("b") == 0.1
    assert keys.number("c", 2.0) == 2.0


def test_generation_config_comes_back() -> None:
    generation = {"temperature": 0.7, "top_k": 40, "top_p": 0.9}
    found = {k: typed(v) for k, v in sampling_keys(generation).items()}
    found["tokenizer.ggml.eos_token_id"] = typed(5)
    assert generation_config(found) == {**generation, "eos_token_id": 5, "do_sample": True}
    assert generation_config({}, [5]) == {}
    assert generation_config(found, [5, 7])["eos_token_id"] == [5, 7]


@pytest.mark.parametrize(
    "entry", [None, typed(3), typed("no json"), typed("[1]"), typed("[" * 100_000)]
)
def test_carried_config_that_is_none(entry: MetadataValue | None) -> None:
    assert carried_config({} if entry is None else {CONFIG_KEY: entry}) is None


def test_text_values() -> None:
    assert text_value({"a": typed("x")}, "a") == "x"
    assert text_value({"a": typed(1)}, "a") == ""
    assert text_value({}, "a") == ""


@pytest.mark.parametrize("value", ['{"model_type":"gpt2"}', '{"model_type":"none"}', "{}"])
def test_carried_config_of_another_model_is_not_used(tmp_path: Path, value: str) -> None:
    model = random_model("llama")
    write(model, tmp_path / "m.gguf")
    back = read(tmp_path / "m.gguf")
    changed = {**back.metadata["gguf"], CONFIG_KEY: typed(value)}
    write(Model(back.weights, back.config, metadata={"gguf": changed}), tmp_path / "n.gguf")
    found = read(tmp_path / "n.gguf")
    assert "halfbyte.config does not match" in found.warnings[0]
    assert found.config["hidden_size"] == 64


def test_a_missing_key_fails_the_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes({"general.architecture": "llama"}))
    with pytest.raises(HalfbyteError, match=r"'llama.block_count' is missing"):
        read(path)


def test_yarn_keys_that_llama_cpp_ignores_are_read_where_its_own_is_absent() -> None:
    yarn = {
        "llama.context_length": typed(128),
        "llama.rope.scaling.type": typed("yarn"),
        "llama.rope.scaling.factor": typed(4.0),
        "llama.rope.scaling.original_context_length": typed(32),
        "llama.rope.scaling.yarn_attn_factor": typed(1.5),
        "llama.rope.scaling.yarn_beta_fast": typed(32.0),
    }
    keys = Hyperparameters("f", "llama", yarn)
    found = read_rope(keys)["rope_scaling"]
    assert (found["attention_factor"], found["beta_fast"]) == (1.5, 32.0)
    assert ignored_yarn(keys) == ["rope.scaling.yarn_attn_factor"]
    said = {**yarn, "llama.rope.scaling.attn_factor": typed(1.25)}
    keys = Hyperparameters("f", "llama", said)
    found = read_rope(keys)["rope_scaling"]
    assert math.isclose(found["attention_factor"], 1.25 * (0.1 * math.log(4) + 1))
    assert "beta_fast" not in found
    assert ignored_yarn(keys) == []
