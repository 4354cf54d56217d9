"""A model as GGUF tensors and metadata.

A model read from GGUF keeps its pairs, tensor names and their order; any other gets what the
conversion script of llama.cpp writes. Rows of query and key are brought into the architecture's
rotary order without decoding them.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from halfbyte.converters.architectures import ARCHITECTURES, get_architecture
from halfbyte.converters.architectures.architecture import Architecture
from halfbyte.converters.architectures.rope_scaling import rope_tensors
from halfbyte.converters.format import GgufChoices
from halfbyte.converters.gguf.expert_keys import experts_label
from halfbyte.converters.gguf.ggml_types import (
    BY_NAME,
    FILE_TYPES,
    OTHER_FILE_TYPES,
    QUANTIZATION_VERSION,
    encoding_of,
)
from halfbyte.converters.gguf.limits import DROPPED, check_config, check_keys
from halfbyte.converters.gguf.metadata import (
    CONFIG_KEY,
    FILE_TYPE_KEY,
    INTERLEAVED,
    POOLED,
    VERSION_KEY,
    architecture_keys,
    config_text,
    text_value,
    updated_pairs,
    with_pairs,
)
from halfbyte.converters.gguf.metadata_value import MetadataValue, typed
from halfbyte.converters.gguf.model_card import general_keys
from halfbyte.converters.gguf.names import gguf_name
from halfbyte.converters.gguf.profile import GgufProfile, check_profile
from halfbyte.converters.gguf.vocabulary import tokenizer_keys
from halfbyte.converters.gguf.writer import stored_type
from halfbyte.converters.weight_map import in_rotary_order
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.model import CALIBRATION_KEY, Model
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import ArrayPart, Tensor

_EMBEDDINGS = (Role.TOKEN_EMBEDDING, Role.OUTPUT_HEAD)
_LAYER = re.compile(r"blk\.(\d+)\.", re.ASCII)
log = logging.getLogger("halfbyte")


@dataclass(frozen=True)
class Output:
    """What goes into a file: metadata, tensors in file order, and the names they had before."""

    metadata: dict[str, MetadataValue]
    tensors: list[Tensor]
    source_names: list[str]


def output(model: Model, choices: GgufChoices | None = None) -> Output:
    """Return what a GGUF file of the model holds.

    Raises:
        UnsupportedError: GGUF cannot say something that the model needs.
    """
    choices = choices or GgufChoices()
    pairs = model.metadata.get("gguf")
    if model.architecture not in ARCHITECTURES:
        if pairs is None:
            raise _unknown(model)
        return _copied(model, pairs, None, choices)
    architecture = get_architecture(model.architecture)
    if pairs is not None and text_value(pairs, "general.architecture") == architecture.gguf_name:
        return _copied(model, pairs, architecture, choices)
    return _converted(model, architecture, choices)


def _unknown(model: Model) -> UnsupportedError:
    """Return the error for a model that is none of a known architecture, with what was read."""
    known = sorted(ARCHITECTURES)
    if model.architecture:
        return UnsupportedError(f"architecture {model.architecture!r}", "GGUF", known)
    source = model.provenance.source
    what = "a model without architecture in GGUF"
    return UnsupportedError(what, source or "GGUF", known, "; ".join(model.warnings))


def _placed(tensor: Tensor, name: str, architecture: Architecture | None, model: Model) -> Tensor:
    """Return the weight under its GGUF name, rows in the architecture's rotary order."""
    found = tensor.renamed(name)
    if architecture is not None and tensor.key is not None:
        interleaved = architecture.gguf_name in INTERLEAVED
        found = in_rotary_order(found, architecture, model.config, interleaved)
    check_profile(GgufProfile(), found)
    return found


def _copied(
    model: Model,
    pairs: Mapping[str, MetadataValue],
    known: Architecture | None,
    choices: GgufChoices,
) -> Output:
    architecture = known if model.build is not None else None
    names = {n: n if t.key is None else gguf_name(t.key) for n, t in model.weights.items()}
    if choices.arranged and not choices.part_of:
        names = dict(sorted(names.items(), key=lambda entry: file_order(entry[1])))
    tensors = [_placed(model.weights[n], names[n], architecture, model) for n in names]
    if choices.arranged:
        tensors = [_without_ones(tensor) for tensor in tensors]
    file_type = choices.file_type
    if file_type is None:
        file_type = guess_file_type(tensors, pairs.get(FILE_TYPE_KEY))
    quantized = any(tensor.encoding.is_quantized for tensor in tensors)
    metadata = updated_pairs(pairs, file_type, quantized, at_end=choices.arranged)
    return Output(
        with_pairs(metadata, {**_calibration(model), **choices.pairs}), tensors, list(names)
    )


def _calibration(model: Model) -> dict[str, str]:
    """Return the key that says how the weights were calibrated, if they were."""
    held = model.metadata.get(CALIBRATION_KEY)
    return {} if held is None else {CALIBRATION_KEY: json.dumps(held, sort_keys=True)}


def file_order(name: str) -> tuple[int, bytes]:
    """Return the key by which llama-quantize sorts tensors: the layer, then the bytes."""
    match = _LAYER.match(name)
    layer = -1 if match is None else int(match[1])
    return layer, name.encode("utf-8", "surrogateescape")


def _without_ones(tensor: Tensor) -> Tensor:
    """Return the tensor without leading dimensions of 1, which ggml does not count."""
    shape = tensor.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return replace(tensor, shape=shape)


def _converted(model: Model, architecture: Architecture, choices: GgufChoices) -> Output:
    name = architecture.gguf_name
    check_config(model.config, name)
    check_keys(model.by_key(), name)
    kept = _kept(model, architecture)
    explicit = [
        _rope_tensor(key, values)
        for key, values in rope_tensors(model.config).items()
        if key not in model.by_key()
    ]
    placed = [_placed(t, gguf_name(k), architecture, model) for k, t in kept.items()]
    tensors = [*explicit, *placed]
    if any(stored_type(tensor).name == "F64" for tensor in placed):
        log.warning("GGUF holds float64, but llama.cpp cannot compute with it: give --type float32")
    names = [*(tensor.name for tensor in explicit), *(tensor.name for tensor in kept.values())]
    metadata = _converted_metadata(model, architecture, tensors, choices.file_type)
    return Output(with_pairs(metadata, {**_calibration(model), **choices.pairs}), tensors, names)


def _kept(model: Model, architecture: Architecture) -> dict[WeightKey, Tensor]:
    """Return the weights that go into the file, by identity."""
    dropped = DROPPED.get(architecture.gguf_name, frozenset())
    tied = bool(model.config.get("tie_word_embeddings"))
    kept: dict[WeightKey, Tensor] = {}
    for tensor in model.weights.values():
        key = tensor.key
        if key is None:
            advice = "GGUF names weights by their role"
            raise UnsupportedError(f"weight {tensor.name!r}", model.architecture, (), advice)
        if key.role in dropped:
            log.warning("GGUF has no place for %s: it is left out, as llama.cpp does", tensor.name)
        elif not (tied and key.role is Role.OUTPUT_HEAD):
            kept[key] = tensor
    return kept


def _rope_tensor(key: WeightKey, values: Any) -> Tensor:
    parts = {"data": ArrayPart(values.reshape(1, -1))}
    tensor = Tensor(gguf_name(key), values.shape, encoding_of(BY_NAME["F32"]), parts)
    return tensor.identified(key)


def guess_file_type(tensors: list[Tensor], before: MetadataValue | None = None) -> int | None:
    """Return `general.file_type`: that of the commonest type among matrices.

    before: the number in the file that the tensors came from; it stays if it names a mix of the
    same commonest type. None if no number exists for the type.
    """
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1 and tensor.kind == "weight"]
    inner = [tensor for tensor in matrices if tensor.role not in _EMBEDDINGS] or matrices
    counts = Counter(stored_type(tensor).name for tensor in inner or tensors)
    if not counts:
        return None
    common = counts.most_common(1)[0][0]
    names = {number: name for name, number in FILE_TYPES.items()} | OTHER_FILE_TYPES
    if before is not None and isinstance(before.value, int) and names.get(before.value) == common:
        return before.value
    return FILE_TYPES.get(common)


def _pooling_type(model: Model) -> str | None:
    """Return how sentence-transformers files beside a model say that token states are pooled."""
    files = model.metadata.get("files") or {}
    try:
        modules = json.loads(files.get("modules.json", b"[]"))
        folder = next(m["path"] for m in modules if m["type"].endswith("Pooling"))
        settings = json.loads(files[f"{folder}/config.json"])
    except StopIteration:
        return None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FormatError(
            "modules.json", f"the pooling settings cannot be read ({error})"
        ) from error
    for name, flag in (("mean", "mean_tokens"), ("cls", "cls_token"), ("last", "lasttoken")):
        if settings.get(f"pooling_mode_{flag}"):
            return name
    named = {"mean": "mean", "cls": "cls", "lasttoken": "last"}.get(settings.get("pooling_mode"))
    if named is not None:
        return named
    raise UnsupportedError("this kind of pooling", f"{folder}/config.json", ["mean", "cls", "last"])


def _converted_metadata(
    model: Model, architecture: Architecture, tensors: list[Tensor], file_type: int | None
) -> dict[str, MetadataValue]:
    name = architecture.gguf_name
    config = dict(model.config)
    pooling = _pooling_type(model) if name in POOLED else None
    if pooling is not None:
        config["pooling_type"] = pooling
    parameters = sum(tensor.size for tensor in tensors)
    found = general_keys(model, name, "model", parameters, experts_label(tensors))
    if file_type is None:
        file_type = guess_file_type(tensors)
    found |= architecture_keys(config, name, file_type)
    found[VERSION_KEY] = QUANTIZATION_VERSION
    found |= tokenizer_keys(model, name)
    found[CONFIG_KEY] = config_text(config)
    return {key: typed(value) for key, value in found.items()}
