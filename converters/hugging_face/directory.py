"""Reading a Hugging Face folder, or a lone weight file with what lies beside it, as a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.converters.architectures import get_architecture
from halfbyte.converters.architectures.architecture import Architecture
from halfbyte.converters.architectures.config import WHERE
from halfbyte.converters.format import ReadOptions
from halfbyte.converters.hugging_face.checkpoint import read_weights
from halfbyte.converters.hugging_face.checkpoints import get_checkpoint
from halfbyte.converters.hugging_face.checkpoints.detection import find_quantization
from halfbyte.converters.hugging_face.experts import with_stacked_experts
from halfbyte.converters.hugging_face.safetensors import parse_json
from halfbyte.converters.weight_map import Identified, identify, to_canonical
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.model import Model, Provenance
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import Tensor
from halfbyte.ir.tokenizer import Tokenizer

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
QUANTIZATION_KEYS = ("quantization_config", "compression_config", "quantization")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)
TEXT_FILES = (
    CONFIG_FILE,
    GENERATION_FILE,
    *TOKENIZER_FILES,
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
)
TEMPLATES = "additional_chat_templates"
MAX_TEXT_BYTES = 200_000_000
HEAD = WeightKey(Role.OUTPUT_HEAD)
EMBEDDING = WeightKey(Role.TOKEN_EMBEDDING)

_CACHED = re.compile(r"models--(.+)")


@dataclass(frozen=True)
class _Described:
    """What config.json says: architecture if known, canonical config, notes for the user."""

    architecture: Architecture | None
    config: dict[str, Any]
    warnings: tuple[str, ...] = ()


def read_text_files(folder: Path) -> dict[str, bytes]:
    """Return config, tokenizer, licence and card of a folder by name, byte for byte.

    Raises:
        FormatError: one of them is too large.
    """
    found: dict[str, bytes] = {}
    templates = sorted(path.name for path in (folder / TEMPLATES).glob("*.jinja"))
    for name in (*TEXT_FILES, *(f"{TEMPLATES}/{template}" for template in templates)):
        path = folder / name
        if path.is_file():
            if path.stat().st_size > MAX_TEXT_BYTES:
                raise FormatError(path, f"passes {MAX_TEXT_BYTES} bytes; it is damaged")
            found[name] = path.read_bytes()
    return found


def read_model(path: Path, options: ReadOptions) -> Model:
    """Return the model in a folder or in a single weight file; weights stay on disk.

    Raises:
        FormatError: a file breaks a rule, is missing or does not fit another.
        UnsupportedError: the checkpoint is quantized or pickled in a way not read here.
    """
    folder = path if path.is_dir() else path.parent
    files = read_text_files(folder)
    described = _describe(folder, files)
    weights, notes, carried = _decodable(folder, files, read_weights(path, options))
    weights, config, warnings = _identified(path, weights, described)
    tokenizer, tokenizer_warnings = _tokenizer(files)
    generation: dict[str, Any] = {}
    if GENERATION_FILE in files:
        where = folder / GENERATION_FILE
        generation = parse_json(files[GENERATION_FILE], where, GENERATION_FILE)
    return Model(
        weights=weights,
        config=config,
        tokenizer=tokenizer,
        generation_config=generation,
        metadata=({"files": files} if files else {}) | carried,
        provenance=_provenance(path),
        build=None if described.architecture is None else described.architecture.build,
        warnings=(*described.warnings, *notes, *warnings, *tokenizer_warnings),
    )


def _decodable(
    folder: Path, files: dict[str, bytes], stored: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str], dict[str, Any]]:
    """Return the weights, those of a quantized checkpoint encoded, notes and metadata."""
    raw = {}
    if CONFIG_FILE in files:
        raw = parse_json(files[CONFIG_FILE], folder / CONFIG_FILE, CONFIG_FILE)
    found = find_quantization(folder, raw, stored)
    if found is None:
        return stored, [], {}
    weights = get_checkpoint(found.method, str(found.where)).read(stored, found)
    return weights, found.notes, found.carried


def _describe(folder: Path, files: dict[str, bytes]) -> _Described:
    if CONFIG_FILE not in files:
        return _Described(None, {}, (f"no {CONFIG_FILE}: weights only, without a graph",))
    where = folder / CONFIG_FILE
    raw = parse_json(files[CONFIG_FILE], where, CONFIG_FILE)
    raw = {key: value for key, value in raw.items() if key not in QUANTIZATION_KEYS}
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        return _Described(None, raw, (f"{CONFIG_FILE} has no model_type: weights only",))
    try:
        architecture = get_architecture(model_type)
    except UnsupportedError:
        note = f"architecture {model_type!r} is not known: weights only, without a graph"
        return _Described(None, raw, (note,))
    try:
        return _Described(architecture, architecture.canonical_config(raw))
    except FormatError as error:
        if error.path == WHERE:
            raise FormatError(where, error.rule) from error
        raise


def _identified(
    path: Path, weights: dict[str, Tensor], described: _Described
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Return the weights with roles, in the order of the layers, and the config they agree with."""
    architecture, config = described.architecture, described.config
    if architecture is None:
        return weights, config, []
    try:
        weights = with_stacked_experts(weights, architecture, config)
        found = identify(weights, architecture, config)
    except FormatError as error:
        raise FormatError(path, error.rule) from error
    order = {key: i for i, key in enumerate(architecture.hugging_face_names(config).values())}
    known: dict[str, Tensor] = {}
    for name in sorted(found.keys, key=lambda name: order[found.keys[name]]):
        tensor = weights[name].identified(found.keys[name])
        # Quantized weights lie [out, in] in every checkpoint.
        quantized = tensor.encoding.is_quantized
        known[name] = tensor if quantized else to_canonical(tensor, architecture)
    warnings = _notes(found)
    if config.get("tie_word_embeddings"):
        config = _settle_tie(known, config, warnings)
    return known | {name: weights[name] for name in found.unknown}, config, warnings


def _notes(found: Identified) -> list[str]:
    notes = []
    for names, remark in (
        (found.ignored, "left out: the model computes the same without it"),
        (found.unknown, "kept, but nothing uses it"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            notes.append(f"tensor {names[0]!r}{more} {remark}")
    return notes


def _settle_tie(
    known: dict[str, Tensor], config: dict[str, Any], warnings: list[str]
) -> dict[str, Any]:
    """Drop an output head that repeats the tied embedding; untie the config if it differs."""
    by_key = {tensor.key: tensor for tensor in known.values()}
    head, embedding = by_key.get(HEAD), by_key.get(EMBEDDING)
    if head is None or embedding is None:
        return config
    if _same_values(head, embedding):
        del known[head.name]
        return config
    warnings.append(
        f"tie_word_embeddings is true but {head.name!r} differs from the embedding: kept untied"
    )
    return {**config, "tie_word_embeddings": False}


def _same_values(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or left.encoding != right.encoding:
        return False
    return all(
        np.array_equal(
            np.asarray(left.decode(*span)).view(np.uint8),
            np.asarray(right.decode(*span)).view(np.uint8),
        )
        for span in left.row_ranges()
    )


def _tokenizer(files: dict[str, bytes]) -> tuple[Tokenizer | None, list[str]]:
    if not files.keys() & set(TOKENIZER_FILES):
        return None, []
    from halfbyte.converters.tokenizers import from_hugging_face

    try:
        tokenizer = from_hugging_face(files)
    except UnsupportedError as error:
        return None, [f"tokenizer not read, its files are carried along ({error})"]
    return tokenizer, [] if tokenizer is None else list(tokenizer.warnings)


def _provenance(path: Path) -> Provenance:
    """Return where a model came from; snapshots of a hub cache give id and commit."""
    parts = path.absolute().parts
    for index, part in enumerate(parts[:-2]):
        match = _CACHED.fullmatch(part)
        if match and parts[index + 1] == "snapshots":
            return Provenance("hf", match[1].replace("--", "/"), parts[index + 2])
    return Provenance("hf", str(path))


def dense_dtype(weights: dict[str, Tensor]) -> str:
    """Return the floating type that most weight bytes have, if possible wider than 8 bits."""
    sizes: dict[str, int] = {}
    for tensor in weights.values():
        encoding = tensor.encoding
        if isinstance(encoding, Dense) and encoding.is_float:
            wide = 1 if encoding.bits_per_weight > 8 else 0
            sizes[encoding.dtype_name] = sizes.get(encoding.dtype_name, 0) + wide * tensor.nbytes
    return max(sizes, key=lambda name: sizes[name]) if sizes else "float32"


def with_source_files(model: Model) -> dict[str, bytes]:
    """Return the Hugging Face text files that travel with a model, by name."""
    files = model.metadata.get("files", {})
    return dict(files) if isinstance(files, dict) else {}
