"""Reading .hb files: the header is checked whole at every open, hashes on request."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from halfbyte.converters.architectures import get_architecture
from halfbyte.converters.hugging_face.safetensors import (
    LENGTH_BYTES,
    MAX_DIMENSIONS,
    SafetensorsFile,
    looks_like_safetensors,
    read_safetensors,
)
from halfbyte.converters.native import values
from halfbyte.converters.native.layout import (
    EXTRA,
    FILES,
    FORMAT_NAME,
    FORMAT_VERSION,
    GRAPH,
    RESERVED,
    TOKENIZER,
    part_name,
    stored_shape,
)
from halfbyte.engine import ordered_map
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError
from halfbyte.files import HASH_CHUNK_BYTES, contained
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.graph import Graph
from halfbyte.ir.model import Model, Provenance
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import FilePart, Tensor, rows_and_columns
from halfbyte.ir.tokenizer import Tokenizer

MAX_TEXT_BYTES = 1 << 30
_TENSOR_KEYS = {"name", "shape", "encoding", "role", "layer", "kind"}
_MARK = re.compile(rb'"halfbyte_format"\s*:\s*"')
_ROLES = {role.value: role for role in Role}
_HASH = re.compile("[0-9a-f]{64}")


def looks_native(path: Path) -> bool:
    """Whether a file begins as a .hb file, however damaged the rest may be."""
    if not looks_like_safetensors(path):
        return False
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(LENGTH_BYTES))
        return _MARK.search(stream.read(length)) is not None


def read_native(path: Path) -> Model:
    """Return the model in a .hb file; weights stay on disk.

    Raises:
        FormatError: the file breaks a rule of the format.
        UnsupportedError: it was written by a later version, or holds an unknown encoding.
    """
    file = read_safetensors(path)
    _require_version(file)
    weights, used = _weights(file)
    files = _files(file)
    used |= {FILES + name for name in files} | {GRAPH, TOKENIZER, EXTRA}
    strays = sorted(set(file.entries) - used)
    if strays:
        raise FormatError(path, f"array {strays[0]!r} belongs to no tensor; the file is damaged")
    stored_hashes(file)
    metadata = _object(file, EXTRA, values.load(_text(file, EXTRA), path, EXTRA))
    if files:
        metadata["files"] = files
    metadata["origin"] = _json_object(file, "provenance")
    config = _config(file)
    return Model(
        weights=weights,
        config=config,
        tokenizer=_tokenizer(file, files),
        generation_config=_json_object(file, "generation_config"),
        metadata=metadata,
        provenance=Provenance("hb", str(path)),
        build=_builder(config, file),
    )


def verify_hashes(path: Path, threads: int = 1) -> None:
    """Compare the SHA-256 of every array with the one in the header.

    Raises:
        FormatError: an array differs, or the file is not a sound .hb file.
    """
    file = read_safetensors(path)
    _require_version(file)
    expected = stored_hashes(file)
    names = list(file.entries)
    for name, found in zip(names, ordered_map(partial(_hash, file), names, threads), strict=True):
        if found != expected[name]:
            raise FormatError(
                path,
                f"array {name!r} has SHA-256 {found[:12]}..., {expected[name][:12]}... was required"
                "; the file is damaged, copy it again",
                file.entries[name].offset,
            )


def _hash(file: SafetensorsFile, name: str) -> str:
    entry = file.entries[name]
    digest = hashlib.sha256()
    left = entry.nbytes
    with file.path.open("rb") as stream:
        stream.seek(entry.offset)
        while left and (chunk := stream.read(min(left, HASH_CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def stored_hashes(file: SafetensorsFile) -> dict[str, str]:
    """Return the SHA-256 of every array as the header states it.

    Raises:
        FormatError: one is missing, or is no hash.
    """
    hashes = _json_object(file, "sha256")
    if set(hashes) != set(file.entries):
        raise FormatError(file.path, "sha256 does not name exactly the arrays of the file")
    for name, found in hashes.items():
        if not isinstance(found, str) or not _HASH.fullmatch(found):
            raise FormatError(file.path, f"sha256 of {name!r} is not 64 hexadecimal digits")
    return hashes


def _require_version(file: SafetensorsFile) -> None:
    if file.metadata.get("format") != FORMAT_NAME or "halfbyte_format" not in file.metadata:
        raise FormatError(file.path, f"metadata names no {FORMAT_NAME} format; not a .hb file")
    version = file.metadata["halfbyte_format"]
    if version != FORMAT_VERSION:
        raise UnsupportedError(
            f".hb layout {version!r}", str(file.path), [FORMAT_VERSION], "upgrade halfbyte"
        )


def _json(file: SafetensorsFile, key: str) -> Any:
    if key not in file.metadata:
        raise FormatError(file.path, f"metadata lacks {key!r}; the file is damaged")
    return values.load(file.metadata[key], file.path, f"metadata {key!r}")


def _json_object(file: SafetensorsFile, key: str) -> dict[str, Any]:
    return _object(file, key, _json(file, key))


def _object(file: SafetensorsFile, what: str, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise FormatError(file.path, f"{what} is not a JSON object; the file is damaged")
    return found


def _config(file: SafetensorsFile) -> dict[str, Any]:
    """Return the config; one of a known architecture has every canonical key."""
    config = _json_object(file, "config")
    try:
        architecture = get_architecture(str(config.get("model_type", "")))
    except UnsupportedError:
        return config
    try:
        canonical = architecture.canonical_config(config)
    except FormatError as error:
        raise FormatError(file.path, error.rule) from error
    missing = sorted(set(canonical) - set(config))
    if missing:
        raise FormatError(file.path, f"config lacks {missing[0]!r}; the file is damaged")
    return config


def _text(file: SafetensorsFile, name: str) -> bytes:
    if name not in file.entries:
        return b"{}"
    entry = file.entries[name]
    if entry.dtype.name != "uint8" or len(entry.shape) != 1 or entry.nbytes > MAX_TEXT_BYTES:
        raise FormatError(
            file.path, f"array {name!r} must be a list of bytes below 1 GiB", entry.offset
        )
    return file.read_bytes(name)


def _weights(file: SafetensorsFile) -> tuple[dict[str, Tensor], set[str]]:
    """Return the weights in model order and the arrays they use."""
    table = _json(file, "tensors")
    if not isinstance(table, list):
        raise FormatError(file.path, "metadata 'tensors' is not a list; the file is damaged")
    weights: dict[str, Tensor] = {}
    used: set[str] = set()
    for entry in table:
        tensor = _described(file, entry)
        if tensor.name in weights:
            raise FormatError(file.path, f"tensor {tensor.name!r} stands twice in the table")
        parts = _parts(file, tensor, used)
        weights[tensor.name] = replace(tensor, parts=parts)
    return weights, used


@lru_cache(maxsize=256)
def _encoding(name: str) -> Encoding:
    return encoding_from_name(name)


def _described(file: SafetensorsFile, entry: Any) -> Tensor:
    def require(holds: bool, what: str) -> None:
        if not holds:
            raise FormatError(file.path, f"an entry of the tensor table has {what}")

    require(isinstance(entry, dict) and set(entry) == _TENSOR_KEYS, "other keys than it must")
    name, shape = entry["name"], entry["shape"]
    require(isinstance(name, str) and not name.startswith(RESERVED), f"name {name!r}")
    counts = isinstance(shape, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
    require(counts and len(shape) <= MAX_DIMENSIONS, f"a bad shape ({name!r})")
    role, layer, kind = entry["role"], entry["layer"], entry["kind"]
    require(role is None or (isinstance(role, str) and role in _ROLES), f"role {role!r} ({name!r})")
    require(layer is None or (type(layer) is int and layer >= 0), f"layer {layer!r} ({name!r})")
    require(isinstance(kind, str) and isinstance(entry["encoding"], str), f"a bad kind ({name!r})")
    try:
        encoding = _encoding(entry["encoding"])
    except UnsupportedError as error:
        raise UnsupportedError(
            f"encoding {entry['encoding']!r} of tensor {name!r}", str(file.path), error.supported
        ) from None
    return Tensor(name, tuple(shape), encoding, {}, role and _ROLES[role], layer, kind)


def _parts(file: SafetensorsFile, tensor: Tensor, used: set[str]) -> dict[str, FilePart]:
    rows, columns = rows_and_columns(tensor.shape)
    try:
        specs = tensor.encoding.part_specs(rows, columns)
    except HalfbyteError as error:
        raise FormatError(file.path, f"tensor {tensor.name!r}: {error}") from None
    parts: dict[str, FilePart] = {}
    for part, spec in specs.items():
        name = part_name(tensor.name, part, specs)
        entry = file.entries.get(name)
        if entry is None:
            raise FormatError(file.path, f"array {name!r} of tensor {tensor.name!r} is missing")
        required = stored_shape(tensor, spec)
        if entry.shape != required or entry.dtype != spec.dtype:
            raise FormatError(
                file.path,
                f"array {name!r} is {entry.dtype.name} {list(entry.shape)}, "
                f"{spec.dtype.name} {list(required)} was required by {tensor.encoding}",
                entry.offset,
            )
        if name in used:
            raise FormatError(file.path, f"array {name!r} is used by two tensors", entry.offset)
        used.add(name)
        parts[part] = FilePart(file.path, entry.offset, entry.dtype, spec.shape)
    return parts


def _files(file: SafetensorsFile) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for stored in file.entries:
        if stored.startswith(FILES):
            name = stored[len(FILES) :]
            contained(file.path, name)
            found[name] = _text(file, stored)
    return found


def _tokenizer(file: SafetensorsFile, files: dict[str, bytes]) -> Tokenizer | None:
    if TOKENIZER not in file.entries:
        return None
    shared = _json(file, "tokenizer_files")
    if not isinstance(shared, list) or not all(isinstance(n, str) and n in files for n in shared):
        raise FormatError(file.path, "tokenizer_files names a file that is not here")
    tokenizer = Tokenizer.from_json(_text(file, TOKENIZER), str(file.path))
    return replace(tokenizer, source={**{n: files[n] for n in shared}, **tokenizer.source})


def _builder(config: dict[str, Any], file: SafetensorsFile) -> Callable[[Model], Graph] | None:
    """Return the architecture's builder; for other models one that reads the stored graph."""
    try:
        return get_architecture(str(config.get("model_type", ""))).build
    except UnsupportedError:
        return partial(_stored_graph, file) if GRAPH in file.entries else None


def _stored_graph(file: SafetensorsFile, model: Model) -> Graph:
    from halfbyte.ir.text import parse

    try:
        return parse(_text(file, GRAPH).decode("utf-8"), model.weights)
    except UnicodeDecodeError as error:
        raise FormatError(file.path, f"{GRAPH} is not UTF-8 text ({error})") from None
