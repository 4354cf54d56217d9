"""Canonical config to GGUF metadata and back.

Keys, their types and their order are those of llama.cpp's conversion scripts. Beside them stands
`halfbyte.config`, the canonical config as JSON: a reader uses it only if it gives the very same
architecture keys, so a file edited by others is never read by stale settings.

Source: conversion/{base,llama,qwen,gpt2,bert}.py of llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.converters.gguf.expert_keys import (
    count_keys,
    is_mixture,
    model_type_of,
    read_experts,
    width_keys,
)
from halfbyte.converters.gguf.ggml_types import QUANTIZATION_VERSION, ValueType
from halfbyte.converters.gguf.hyperparameters import Hyperparameters
from halfbyte.converters.gguf.metadata_value import MetadataValue, plain, typed
from halfbyte.converters.gguf.model_card import read_sampling
from halfbyte.converters.gguf.rope_keys import read_rope, rope_keys
from halfbyte.errors import FormatError, UnsupportedError

CONFIG_KEY = "halfbyte.config"
FILE_TYPE_KEY = "general.file_type"
TYPE_KEY = "general.type"
VERSION_KEY = "general.quantization_version"
POOLING_TYPES = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
MAX_LAYERS = 512

_SPECIAL_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
ROTARY = ("llama", "qwen2", "qwen3", "qwen2moe", "qwen3moe")
"""Architectures with rotary attention over grouped heads and RMS norms."""
POOLED = ("bert", "qwen2", "qwen3")
"""Those whose files may say how token states become one vector."""
INTERLEAVED = ("llama",)
"""Those whose files hold the two rows of a rotary pair side by side."""


def _common_keys(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
    }
    if architecture in ROTARY:
        found["attention.head_count_kv"] = config["num_key_value_heads"]
        found |= rope_keys(config)
        found["attention.layer_norm_rms_epsilon"] = float(config["rms_norm_eps"])
    if architecture == "bert":
        found["attention.layer_norm_epsilon"] = float(config["layer_norm_eps"])
    if architecture == "gpt2":
        found["attention.layer_norm_epsilon"] = float(config["layer_norm_epsilon"])
    found |= count_keys(config)
    if _says_head_size(config, architecture):
        found["attention.key_length"] = config["head_dim"]
        found["attention.value_length"] = config["head_dim"]
    return found


def _says_head_size(config: Mapping[str, Any], architecture: str) -> bool:
    """Whether the script writes the size of a head: configs of mixtral leave out the usual one."""
    if architecture == "llama" and is_mixture(config):
        return bool(config["head_dim"] * config["num_attention_heads"] != config["hidden_size"])
    return architecture in ("llama", "qwen3", "qwen3moe")


def _extra_keys(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    if architecture == "llama":
        return {"vocab_size": config["vocab_size"], "rope.dimension_count": config["head_dim"]}
    found: dict[str, Any] = {"attention.causal": False} if architecture == "bert" else {}
    found |= width_keys(config)
    pooling = POOLING_TYPES.get(str(config.get("pooling_type")))
    if architecture in POOLED and pooling is not None:
        found["pooling_type"] = pooling
    return found


def architecture_keys(
    config: Mapping[str, Any], architecture: str, file_type: int | None
) -> dict[str, MetadataValue]:
    """Return the keys of the architecture, with `general.file_type` where the scripts put it."""
    found = {f"{architecture}.{k}": v for k, v in _common_keys(config, architecture).items()}
    if file_type is not None:
        found[FILE_TYPE_KEY] = file_type
    found |= {f"{architecture}.{k}": v for k, v in _extra_keys(config, architecture).items()}
    return {key: typed(value) for key, value in found.items()}


def config_text(config: Mapping[str, Any]) -> str:
    """Return the value of `halfbyte.config`."""
    carried = {key: value for key, value in config.items() if key != "rope_interleaved"}
    return json.dumps(carried, ensure_ascii=True, separators=(",", ":"))


def carried_config(metadata: Mapping[str, MetadataValue]) -> dict[str, Any] | None:
    """Return the config that a file carries, unchecked, or None if it holds none."""
    entry = metadata.get(CONFIG_KEY)
    if entry is None or entry.type is not ValueType.STRING:
        return None
    try:
        found = json.loads(entry.value)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def text_value(metadata: Mapping[str, MetadataValue], key: str) -> str:
    """Return a string value, or the empty string if the key is absent or of another type."""
    entry = metadata.get(key)
    return str(entry.value) if entry is not None and entry.type is ValueType.STRING else ""


def is_adapter(metadata: Mapping[str, MetadataValue]) -> bool:
    """Whether a file's pairs say that it is an adapter."""
    return text_value(metadata, TYPE_KEY) == "adapter"


def _special_ids(metadata: Mapping[str, MetadataValue]) -> dict[str, int]:
    keys = Hyperparameters("", "tokenizer.ggml", metadata)
    found = {}
    for name in _SPECIAL_IDS:
        entry = keys.find(_SPECIAL_IDS[name].removeprefix("tokenizer.ggml."))
        if entry is not None and isinstance(entry.value, int) and entry.value >= 0:
            found[name] = entry.value
    return found


def generation_config(
    metadata: Mapping[str, MetadataValue], stop_ids: Sequence[int] = ()
) -> dict[str, Any]:
    """Return special ids and sampling settings as generation_config.json has them.

    stop_ids: all tokens that end a text; a file names one, readers know the others by their text.
    """
    found: dict[str, Any] = {**_special_ids(metadata), **read_sampling(plain(metadata))}
    if len(stop_ids) > 1:
        found["eos_token_id"] = list(stop_ids)
    if found.get("temperature") or "top_p" in found:
        found["do_sample"] = True
    return found


def raw_config(
    where: str, architecture: str, metadata: Mapping[str, MetadataValue], vocabulary: int
) -> dict[str, Any]:
    """Return the config that the keys of a file say, for the architecture to normalise.

    vocabulary: rows of the token embedding.

    Raises:
        FormatError: a key is missing, or has the wrong type or range.
        UnsupportedError: the keys ask for something that is missing here.
    """
    keys = Hyperparameters(where, architecture, metadata)
    if architecture != "bert" and not keys.flag("attention.causal", True):
        raise UnsupportedError("attention without a causal mask", f"{where} ({architecture})")
    layers = keys.integer("block_count")
    if layers > MAX_LAYERS:
        raise FormatError(where, f"{layers} blocks announced, the format's limit is {MAX_LAYERS}")
    heads = keys.integer("attention.head_count")
    width = keys.integer("embedding_length")
    config: dict[str, Any] = {
        "model_type": model_type_of(architecture, keys),
        "vocab_size": keys.integer("vocab_size", vocabulary, 0),
        "hidden_size": width,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": keys.integer("context_length"),
        **_special_ids(metadata),
        **read_experts(keys),
    }
    if architecture in ROTARY:
        config |= _rotary_config(keys, heads, width)
    elif architecture == "gpt2":
        config["layer_norm_epsilon"] = keys.number("attention.layer_norm_epsilon")
        config["hidden_act"] = "gelu_new"
    else:
        config |= _bert_config(keys, metadata)
    return config | (_pooling(keys) if architecture in POOLED else {})


def _rotary_config(keys: Hyperparameters, heads: int, width: int) -> dict[str, Any]:
    head_dim = keys.integer("attention.key_length", width // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.integer(name, head_dim) != head_dim:
            rule = f"key {keys.prefix}.{name} is {keys.integer(name)}, {head_dim} was required"
            raise FormatError(keys.where, rule)
    return {
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        **read_rope(keys),
        "rope_interleaved": keys.prefix in INTERLEAVED,
    }


def _bert_config(keys: Hyperparameters, metadata: Mapping[str, MetadataValue]) -> dict[str, Any]:
    tokens = Hyperparameters(keys.where, "tokenizer.ggml", metadata)
    return {
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "type_vocab_size": tokens.integer("token_type_count", 1),
        "hidden_act": "gelu",
    }


def _pooling(keys: Hyperparameters) -> dict[str, str]:
    pooling = keys.integer("pooling_type", 0, 0)
    names = {number: name for name, number in POOLING_TYPES.items()}
    return {"pooling_type": names[pooling]} if pooling in names and pooling else {}


def updated_pairs(
    metadata: Mapping[str, MetadataValue],
    file_type: int | None,
    quantized: bool,
    at_end: bool = False,
) -> dict[str, MetadataValue]:
    """Return a file's pairs for a copy: all in order, file type and version brought up to date.

    Keys of the split that the file was read from are dropped. at_end: version and file type go to
    the end, where llama-quantize has them.
    """
    found = {key: entry for key, entry in metadata.items() if not key.startswith("split.")}
    if at_end:
        old = found.pop(FILE_TYPE_KEY, None)
        found.pop(VERSION_KEY, None)
        found[VERSION_KEY] = typed(QUANTIZATION_VERSION)
        if old is not None:
            found[FILE_TYPE_KEY] = old
    if file_type is not None:
        found[FILE_TYPE_KEY] = typed(file_type)
    if VERSION_KEY in found or quantized:
        found[VERSION_KEY] = typed(QUANTIZATION_VERSION)
    return found


def with_pairs(
    metadata: Mapping[str, MetadataValue], pairs: Mapping[str, Any]
) -> dict[str, MetadataValue]:
    """Return metadata with further pairs at its end, in the place of any of the same key."""
    kept = {key: entry for key, entry in metadata.items() if key not in pairs}
    return kept | {key: typed(value) for key, value in pairs.items()}
