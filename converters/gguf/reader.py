"""A parsed GGUF file as a model. Weights stay on disk; rows stay in the file's rotary order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.converters.architectures import ARCHITECTURES, get_architecture
from halfbyte.converters.architectures.architecture import Architecture
from halfbyte.converters.architectures.rope_scaling import rope_tensors
from halfbyte.converters.gguf.expert_keys import model_type_of
from halfbyte.converters.gguf.hyperparameters import Hyperparameters
from halfbyte.converters.gguf.metadata import (
    architecture_keys,
    carried_config,
    generation_config,
    is_adapter,
    raw_config,
    text_value,
)
from halfbyte.converters.gguf.metadata_value import MetadataValue, plain
from halfbyte.converters.gguf.names import key_of
from halfbyte.converters.gguf.rope_keys import ignored_yarn
from halfbyte.converters.gguf.split import read_shards
from halfbyte.errors import HalfbyteError, UnsupportedError
from halfbyte.ir.model import Model, Provenance
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import Tensor
from halfbyte.ir.tokenizer import Tokenizer

Metadata = Mapping[str, MetadataValue]
Config = dict[str, Any]


def read_model(path: Path) -> Model:
    """Return the model at `path`.

    A file of an architecture that is unknown here gives a model without a graph, which can be
    listed and copied to GGUF.

    Raises:
        FormatError: the file breaks a rule of the format, or keys and tensors do not fit.
    """
    shards = read_shards(path)
    metadata = dict(shards[0].metadata)
    weights: dict[str, Tensor] = {}
    for shard in shards:
        for info in shard.tensors:
            weights[info.name] = shard.tensor(info).identified(key_of(info.name))
    problems = [problem for shard in shards for problem in shard.problems]
    tokenizer = _read_tokenizer(metadata, problems)
    model = Model(
        weights,
        {"model_type": text_value(metadata, "general.architecture")},
        tokenizer,
        generation_config(metadata, () if tokenizer is None else tokenizer.stop_ids),
        {"gguf": metadata},
        Provenance("gguf", str(path)),
        None,
        tuple(problems),
    )
    return _with_architecture(model)


def _read_tokenizer(metadata: Metadata, problems: list[str]) -> Tokenizer | None:
    from halfbyte.converters.tokenizers import from_gguf

    if text_value(metadata, "tokenizer.ggml.model") in ("", "none", "no_vocab"):
        return None
    try:
        return from_gguf(plain(metadata))
    except UnsupportedError as error:
        problems.append(f"the tokenizer is carried along unread: {error}")
        return None


def _with_architecture(model: Model) -> Model:
    """Return the model with config and graph builder, or as it is with the reason as a warning."""
    name = model.architecture
    if is_adapter(model.metadata["gguf"]):
        reason = "an adapter, not a model: merge it into its base model with --lora"
        return replace(model, warnings=(*model.warnings, reason))
    try:
        keys = Hyperparameters(model.provenance.source, name, model.metadata["gguf"])
        model_type = model_type_of(name, keys)
    except UnsupportedError:
        model_type = name
    if model_type not in ARCHITECTURES or get_architecture(model_type).gguf_name != name:
        reason = f"architecture {name!r} is unknown here: the file can be listed and copied to GGUF"
        return replace(model, warnings=(*model.warnings, reason))
    try:
        return _with_config(model, get_architecture(model_type))
    except UnsupportedError as error:
        reason = f"{error}; the file can be listed and copied to GGUF"
        return replace(model, warnings=(*model.warnings, reason))


def _with_config(model: Model, architecture: Architecture) -> Model:
    metadata: Metadata = model.metadata["gguf"]
    where = model.provenance.source
    by_key = model.by_key()
    embedding = by_key.get(WeightKey(Role.TOKEN_EMBEDDING))
    vocabulary = _vocabulary(model, embedding)
    raw = raw_config(where, architecture.gguf_name, metadata, vocabulary)
    config = architecture.config_for_weights(architecture.canonical_config(raw), by_key)
    warnings = list(model.warnings)
    carried = carried_config(metadata)
    if carried is not None:
        trusted = _trusted(carried, config, architecture, metadata, by_key)
        if trusted is None:
            warnings.append("halfbyte.config does not match the file's own keys and was not used")
        else:
            config = trusted
            architecture = get_architecture(config["model_type"])
    ignored = ignored_yarn(Hyperparameters(where, architecture.gguf_name, metadata))
    if ignored:
        keys = ", ".join(ignored)
        warnings.append(f"{keys}: used as the model's authors mean them; llama.cpp does not")
    nameless = [name for name, tensor in model.weights.items() if tensor.key is None]
    if nameless:
        shown = ", ".join(nameless[:3])
        warnings.append(f"{len(nameless)} tensors have no role in {model.architecture} ({shown})")
    found = replace(model, config=config, build=architecture.build, warnings=tuple(warnings))
    if model.weights:
        architecture.bind(found, config)
    if model.tokenizer is not None and embedding is not None:
        model.tokenizer.check_vocabulary_size(embedding.rows, where)
    return found


def _vocabulary(model: Model, embedding: Tensor | None) -> int:
    if embedding is not None and embedding.rows:
        return embedding.rows
    return max(1, 0 if model.tokenizer is None else len(model.tokenizer.tokens))


def _own_keys(metadata: Metadata, prefix: str) -> dict[str, MetadataValue]:
    skipped = f"{prefix}.vocab_size"
    return {k: v for k, v in metadata.items() if k.startswith(prefix + ".") and k != skipped}


def _trusted(
    carried: Config,
    inferred: Config,
    architecture: Architecture,
    metadata: Metadata,
    weights: Mapping[WeightKey, Tensor],
) -> Config | None:
    """Return the carried config if it says exactly what keys and tensors say, else None."""
    name = architecture.gguf_name
    raw = dict(carried)
    if "rope_interleaved" in inferred:
        raw["rope_interleaved"] = inferred["rope_interleaved"]
    try:
        own = get_architecture(str(carried.get("model_type")))
        config = own.config_for_weights(own.canonical_config(raw), weights)
        keys = architecture_keys(config, name, None)
        same_tensors = _same_rope(config, weights)
    except (HalfbyteError, KeyError, TypeError, ValueError):
        return None
    same = _own_keys(keys, name) == _own_keys(metadata, name)
    same = same and config["vocab_size"] == inferred["vocab_size"] and same_tensors
    return config if same and own.gguf_name == name else None


def _same_rope(config: Config, weights: Mapping[WeightKey, Tensor]) -> bool:
    for key, values in rope_tensors(config).items():
        tensor = weights.get(key)
        if tensor is None or tensor.size != values.size:
            return False
        if not np.allclose(tensor.float32().reshape(-1), values, rtol=1e-5, atol=0):
            return False
    return True
