"""LoRA adapters as GGUF files: `X.weight.lora_a` and `X.weight.lora_b` beside `adapter.lora.alpha`.

llama.cpp multiplies B A by alpha / rank and knows no other scale: what an adapter says beyond it
goes into alpha where one number says it for all pairs, else into B.

Source: src/llama-adapter.cpp and convert_lora_to_gguf.py of llama.cpp.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.converters.architectures.architecture import Architecture
from halfbyte.converters.format import Progress
from halfbyte.converters.gguf.ggml_types import QUANTIZATION_VERSION
from halfbyte.converters.gguf.hyperparameters import Hyperparameters
from halfbyte.converters.gguf.metadata import (
    INTERLEAVED,
    TYPE_KEY,
    VERSION_KEY,
    is_adapter,
    text_value,
)
from halfbyte.converters.gguf.metadata_value import MetadataValue, typed
from halfbyte.converters.gguf.model_card import general_keys
from halfbyte.converters.gguf.names import gguf_name, key_of
from halfbyte.converters.gguf.split import read_shards
from halfbyte.converters.gguf.writer import write_gguf
from halfbyte.converters.lora import Adapter, Pair, check_pair, require_finite
from halfbyte.converters.weight_map import in_rotary_order
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.model import Model, Provenance
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.streamed_parts import computed_part
from halfbyte.ir.tensor import Tensor
from halfbyte.ir.transposed import transposed

KIND_KEY = "adapter.type"
ALPHA_KEY = "adapter.lora.alpha"
TOKENS_KEY = "adapter.alora.invocation_tokens"
SUFFIXES = {".lora_a": "a", ".lora_b": "b"}
log = logging.getLogger("halfbyte")


def read_adapter(path: Path, architecture: Architecture) -> Adapter:
    """Return the adapter at `path`, made for models of an architecture.

    Raises:
        FormatError: the file breaks a rule, or is no adapter.
        UnsupportedError: it is an adapter of another kind or for another architecture.
    """
    shards = read_shards(path)
    metadata, where = dict(shards[0].metadata), str(path)
    kind = text_value(metadata, KIND_KEY)
    if not is_adapter(metadata):
        raise FormatError(path, f"{TYPE_KEY} is not 'adapter': this is no adapter; check the path")
    if kind != "lora":
        raise UnsupportedError(f"an adapter of type {kind!r}", where, ["lora"])
    named = text_value(metadata, "general.architecture")
    if named != architecture.gguf_name:
        what = f"an adapter for {named!r} in a model of {architecture.gguf_name!r}"
        raise UnsupportedError(what, where, (), "take the adapter's own base model")
    keys = Hyperparameters(where, "adapter", metadata)
    alpha = keys.number("lora.alpha")
    tensors = {info.name: shard.tensor(info) for shard in shards for info in shard.tensors}
    pairs, replaced = _sorted_out(tensors, alpha, where)
    if not pairs and not replaced:
        raise FormatError(path, "no pair of lora_a and lora_b in it; the file is damaged")
    tokens = metadata.get(TOKENS_KEY)
    invocation = () if tokens is None else tuple(map(int, np.asarray(tokens.value).tolist()))
    interleaved = architecture.gguf_name in INTERLEAVED
    return Adapter(where, alpha, tuple(pairs), interleaved, replaced, invocation)


def _sorted_out(
    tensors: dict[str, Tensor], alpha: float, where: str
) -> tuple[list[Pair], dict[WeightKey, Tensor]]:
    """Return the pairs of a file and the weights that stand whole in it."""
    halves: dict[str, dict[str, Tensor]] = {}
    replaced: dict[WeightKey, Tensor] = {}
    for name, tensor in tensors.items():
        part = SUFFIXES.get(name[-7:])
        if part is not None:
            halves.setdefault(name[:-7], {})[part] = tensor
            continue
        key = key_of(name)
        if key is None:
            raise FormatError(where, f"tensor {name!r} belongs to no pair and names no weight")
        require_finite(tensor, where)
        replaced[key] = tensor.identified(key)
    pairs = []
    for name, found in halves.items():
        key = key_of(name)
        if key is None:
            advice = "no weight has this name"
            raise UnsupportedError(f"a pair for {name!r}", where, (), advice)
        for letter in "ab":
            if letter not in found:
                raise FormatError(where, f"{name}.lora_{letter} is missing; the file is damaged")
        a, b = found["a"], found["b"]
        if key.role is Role.TOKEN_EMBEDDING:
            a, b = _embedding_halves(a, b, where)
        pair = Pair(name, key, a, b, alpha / max(1, a.rows))
        check_pair(pair, where)
        pairs.append(pair)
    return pairs, replaced


def _embedding_halves(a: Tensor, b: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Return A and B of the token embedding; the file has them the other way round, transposed."""
    if not all(isinstance(tensor.encoding, Dense) and len(tensor.shape) == 2 for tensor in (a, b)):
        raise FormatError(where, f"{a.name!r} and {b.name!r}: dense matrices are required")
    return transposed(b), a


@dataclass(frozen=True)
class AdapterFile:
    """What goes into a file: metadata, tensors in file order, and the names they had before."""

    metadata: dict[str, MetadataValue]
    tensors: list[Tensor]
    source_names: list[str]


def adapter_file(
    adapter: Adapter, architecture: Architecture, config: dict[str, Any]
) -> AdapterFile:
    """Return what a GGUF file of an adapter holds, in the adapter's own types.

    config: of the base model; it says how many heads the rotary order is about.

    Raises:
        UnsupportedError: GGUF cannot say what the adapter does.
    """
    _check_writable(adapter, bool(config.get("tie_word_embeddings")))
    alpha, factors = _said_scales(adapter)
    interleaved = architecture.gguf_name in INTERLEAVED
    named = {**config, "rope_interleaved": adapter.interleaved}
    tensors, sources, values = [], [], 0
    for pair, factor in zip(adapter.pairs, factors, strict=True):
        b = in_rotary_order(pair.b.identified(pair.key), architecture, named, interleaved)
        b = b if factor == 1.0 else _times(b, factor)
        name = gguf_name(pair.key)
        first, second = pair.a, b
        if pair.key.role is Role.TOKEN_EMBEDDING:
            first, second = b, transposed(pair.a)
        for tensor, suffix in ((first, ".lora_a"), (second, ".lora_b")):
            tensors.append(tensor.renamed(name + suffix))
            sources.append(pair.name)
        values += pair.a.columns * pair.b.rows
    for key, tensor in adapter.replaced.items():
        log.warning("%s: llama.cpp does not apply norms of an adapter", tensor.name)
        tensors.append(tensor.renamed(gguf_name(key)))
        sources.append(tensor.name)
        values += tensor.size
    metadata = _metadata(adapter, architecture.gguf_name, alpha, -values)
    return AdapterFile(metadata, tensors, sources)


def _check_writable(adapter: Adapter, tied: bool) -> None:
    if tied and any(pair.key.role is Role.OUTPUT_HEAD for pair in adapter.pairs):
        what = "a pair for the output head of a model that ties it to the embedding"
        raise UnsupportedError(what, adapter.source, (), "llama.cpp finds no such weight there")
    held = [tensor.name for key, tensor in adapter.replaced.items() if not key.role.is_norm]
    if held:
        advice = "GGUF adapters hold pairs only: merge it into its base model with --lora"
        raise UnsupportedError(f"{held[0]!r}, a whole weight", adapter.source, (), advice)
    if any(pair.dora is not None for pair in adapter.pairs):
        advice = "llama.cpp knows no row lengths: merge it into its base model with --lora"
        raise UnsupportedError("DoRA in a GGUF adapter", adapter.source, (), advice)


def _said_scales(adapter: Adapter) -> tuple[float, list[float]]:
    """Return alpha for the file, and what each B is multiplied by to have its pair's scale."""
    meant = [pair.scale * pair.rank for pair in adapter.pairs]
    if all(math.isclose(value, adapter.alpha, rel_tol=1e-12) for value in meant):
        return adapter.alpha, [1.0] * len(meant)
    alpha = meant[0] if meant else adapter.alpha
    if alpha == 0:
        return alpha, [1.0] * len(meant)
    factors = [value / alpha for value in meant]
    return alpha, [1.0 if math.isclose(f, 1.0, rel_tol=1e-12) else f for f in factors]


def _times(tensor: Tensor, factor: float) -> Tensor:
    spec = Dense("float32").part_specs(tensor.rows, tensor.columns)["data"]

    def rows(start: int, stop: int) -> Array:
        return np.asarray(tensor.float32(start, stop) * np.float32(factor))

    part = computed_part(spec, tensor.rows or 1, rows)
    return replace(tensor, encoding=Dense("float32"), parts={"data": part})


def _metadata(
    adapter: Adapter, architecture: str, alpha: float, values: int
) -> dict[str, MetadataValue]:
    card = Model({}, metadata={"files": adapter.files}, provenance=Provenance("", adapter.source))
    found = general_keys(card, architecture, "adapter", values)
    found = _after(found, TYPE_KEY, {KIND_KEY: "lora"})
    found[ALPHA_KEY] = np.float32(alpha)
    if adapter.invocation_tokens:
        found[TOKENS_KEY] = np.array(adapter.invocation_tokens, np.uint32)
    found[VERSION_KEY] = QUANTIZATION_VERSION
    return {key: typed(value) for key, value in found.items()}


def _after(keys: dict[str, Any], place: str, more: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in keys.items():
        found[key] = value
        if key == place:
            found |= more
    return found


def write_adapter(
    path: Path,
    file: AdapterFile,
    tensors: Iterable[Tensor],
    threads: int,
    progress: Progress | None,
) -> None:
    """Write an adapter's file with its tensors in the types that were chosen for them."""
    write_gguf(path, file.metadata, list(tensors), threads, progress)
