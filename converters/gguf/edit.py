"""Change the metadata of a GGUF file; tensors are copied as they lie, never decoded.

In place, a file whose header keeps its padded length is patched where it lies, so that a file of
any size changes in a moment; otherwise it is written anew beside itself and renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.converters.format import Progress
from halfbyte.converters.gguf.container import Container, read_container
from halfbyte.converters.gguf.ggml_types import VALUE_DTYPES, ValueType
from halfbyte.converters.gguf.metadata_value import MetadataValue, typed
from halfbyte.converters.gguf.reader import read_model
from halfbyte.converters.gguf.split import NAME_PATTERN
from halfbyte.converters.gguf.writer import alignment_of, header_bytes, write_stream
from halfbyte.errors import HalfbyteError
from halfbyte.files import atomic_file
from halfbyte.ir.tensor import Tensor

SPLIT_KEY = "split.count"
TOKENS_KEY = "tokenizer.ggml.tokens"
TYPE_NAMES: dict[str, ValueType] = {
    "u8": ValueType.UINT8,
    "i8": ValueType.INT8,
    "u16": ValueType.UINT16,
    "i16": ValueType.INT16,
    "u32": ValueType.UINT32,
    "i32": ValueType.INT32,
    "u64": ValueType.UINT64,
    "i64": ValueType.INT64,
    "f32": ValueType.FLOAT32,
    "f64": ValueType.FLOAT64,
    "bool": ValueType.BOOL,
    "str": ValueType.STRING,
}
_BOOLS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class MetadataEdit:
    """What to change: keys to remove, to rename (old, new), then to set, in that order."""

    set: Mapping[str, MetadataValue] = field(default_factory=dict)
    remove: Sequence[str] = ()
    rename: Sequence[tuple[str, str]] = ()


def _refuse(key: str, text: str, required: str) -> HalfbyteError:
    return HalfbyteError(f"{key}: the value {text[:80]!r} is no {required}")


def _scalar(key: str, text: str, kind: ValueType) -> Any:
    """Return the value that a text says, checked against the range of its type."""
    if kind is ValueType.STRING:
        return text
    if kind is ValueType.BOOL:
        if text.lower() not in _BOOLS:
            raise _refuse(key, text, "bool; write true or false")
        return _BOOLS[text.lower()]
    try:
        number = float(text) if kind in (ValueType.FLOAT32, ValueType.FLOAT64) else int(text, 0)
        with np.errstate(over="raise"):
            return np.array(number, VALUE_DTYPES[kind]).item()
    except (ValueError, OverflowError, FloatingPointError) as error:
        raise _refuse(key, text, f"{kind.name.lower()} ({error})") from error


def _array(key: str, text: str, element: ValueType) -> MetadataValue:
    try:
        items = json.loads(text)
    except ValueError as error:
        raise _refuse(key, text, f"JSON list ({error})") from error
    if not isinstance(items, list):
        raise _refuse(key, text, "JSON list")
    texts = [item if isinstance(item, str) else json.dumps(item) for item in items]
    values: Any = [_scalar(key, item, element) for item in texts]
    if element is not ValueType.STRING:
        values = np.array(values, VALUE_DTYPES[element])
    return MetadataValue(values, ValueType.ARRAY, element)


def parse_value(
    key: str, text: str, type_name: str = "", before: MetadataValue | None = None
) -> MetadataValue:
    """Return the value that `text` says.

    type_name: `u32`, `f32`, `str` ..., or `[u32]` for an array given as a JSON list; without one
    the type that the key has now, or what the text looks like (true, 12, 0.5, else a string).

    Raises:
        HalfbyteError: no type has this name, or the text does not fit it.
    """
    if type_name:
        plain = type_name.removeprefix("[").removesuffix("]")
        if plain not in TYPE_NAMES:
            known = ", ".join(TYPE_NAMES)
            raise HalfbyteError(f"{key}: type {type_name!r} is not known, required one of {known}")
        if plain != type_name:
            return _array(key, text, TYPE_NAMES[plain])
        kind = TYPE_NAMES[plain]
        return MetadataValue(_scalar(key, text, kind), kind)
    if before is not None:
        if before.type is ValueType.ARRAY:
            return _array(key, text, before.element_type or ValueType.UINT32)
        return MetadataValue(_scalar(key, text, before.type), before.type)
    return typed(_guessed(text))


def _guessed(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def special_token(
    metadata: Mapping[str, MetadataValue], name: str, text: str
) -> tuple[str, MetadataValue]:
    """Return the key of a special token (`bos`, `eos`, `eot` ...) and the id of a token's text.

    Raises:
        HalfbyteError: GGUF knows no such special token, or the vocabulary no such token.
    """
    from halfbyte.converters.tokenizers.ggml import ID_KEYS

    if name not in ID_KEYS:
        known = ", ".join(ID_KEYS)
        raise HalfbyteError(f"special token {name!r} is not known, required one of {known}")
    entry = metadata.get(TOKENS_KEY)
    tokens = [] if entry is None else list(entry.value)
    if text in tokens:
        index = tokens.index(text)
    elif text.isdecimal() and int(text) < len(tokens):
        index = int(text)
    else:
        raise HalfbyteError(f"{name}: the vocabulary of {len(tokens)} tokens has no {text!r}")
    return f"tokenizer.ggml.{ID_KEYS[name]}", MetadataValue(index, ValueType.UINT32)


def edited(metadata: Mapping[str, MetadataValue], edit: MetadataEdit) -> dict[str, MetadataValue]:
    """Return the pairs after an edit; keys that stay keep their place, new ones come last.

    Raises:
        HalfbyteError: a key to remove or rename is not there, or a new name is taken.
    """
    pairs = dict(metadata)
    for key in edit.remove:
        if key not in pairs:
            raise HalfbyteError(f"{key}: the file has no such key, nothing to remove")
        del pairs[key]
    for old, new in edit.rename:
        if old not in pairs:
            raise HalfbyteError(f"{old}: the file has no such key, nothing to rename")
        if new in pairs:
            raise HalfbyteError(f"{new}: the file has this key already; remove it first")
        pairs = {new if key == old else key: value for key, value in pairs.items()}
    for key in edit.set:
        if not key or "\0" in key:
            raise HalfbyteError(f"key {key!r}: is empty or has a NUL byte; name a key")
    return {**pairs, **edit.set}


def _tensors(container: Container) -> list[Tensor]:
    return [container.tensor(info) for info in container.tensors]


def _require_readable(path: Path, metadata: Mapping[str, MetadataValue], where: Path) -> None:
    """Check that the file after an edit is one that can be read.

    Raises:
        HalfbyteError: it is not; nothing was changed.
    """
    try:
        if SPLIT_KEY in metadata:
            read_container(path)
        else:
            read_model(path)
    except HalfbyteError as error:
        rule = str(error).replace(str(path), str(where))
        raise HalfbyteError(f"{rule}; this edit would break the file, nothing was changed") from (
            error
        )


def edit_metadata(
    source: Path,
    destination: Path | None,
    edit: MetadataEdit,
    threads: int = 1,
    progress: Progress | None = None,
) -> bool:
    """Write `source` with changed metadata as `destination`, or in place; return if patched.

    The result is read before it takes its name: an edit that breaks the file changes nothing.

    Raises:
        HalfbyteError: the edit does not fit the file, or would leave one that cannot be read.
    """
    container = read_container(source)
    pairs = edited(container.metadata, edit)
    _require_name_of_part(container, pairs, source if destination is None else destination)
    tensors = _tensors(container)
    alignment = alignment_of(pairs)
    header = header_bytes(pairs, tensors, alignment)
    if destination is None and _same_place(container, header, alignment):
        _check_header(source, container, header, pairs)
        _patch(source, header)
        return True
    target = source if destination is None else destination
    if target.is_dir():
        raise HalfbyteError(f"{target}: is a folder, a file was required; name a file")
    _refuse_other_parts(source, target)
    with atomic_file(target) as stream:
        write_stream(stream, pairs, tensors, threads, progress)
        stream.flush()
        _require_readable(Path(stream.name), pairs, target)
    return False


def _require_name_of_part(
    container: Container, pairs: Mapping[str, MetadataValue], target: Path
) -> None:
    """Check that a file which becomes one of several parts has the name of one."""
    count = pairs.get(SPLIT_KEY)
    if count is None or count == container.metadata.get(SPLIT_KEY) or count.value in (0, 1):
        return
    match = NAME_PATTERN.fullmatch(target.name)
    if match is None or int(match[3]) != count.value:
        rule = f"{SPLIT_KEY} {count.value} asks for a name that tells the part and their number"
        raise HalfbyteError(f"{target}: {rule}; nothing was changed")


def _refuse_other_parts(source: Path, target: Path) -> None:
    """Check that `target` is no other part of the split model that `source` is a part of."""
    one, other = NAME_PATTERN.fullmatch(source.name), NAME_PATTERN.fullmatch(target.name)
    if one is None or other is None or not target.exists() or target.samefile(source):
        return
    together = source.parent.resolve() == target.parent.resolve()
    if together and one.group(1, 3) == other.group(1, 3):
        raise HalfbyteError(f"{target}: is another part of the same model; write somewhere else")


def _same_place(container: Container, header: bytes, alignment: int) -> bool:
    """Whether every tensor stays where it is under the new header."""
    stored = [info for info in container.tensors if info.nbytes]
    if container.big_endian or container.version != 3 or not stored:
        return False
    tight = not any("llama.cpp refuses" in problem for problem in container.problems)
    starts = min(info.offset for info in stored)
    return tight and alignment == container.alignment and starts == len(header)


def _check_header(
    source: Path, container: Container, header: bytes, pairs: Mapping[str, MetadataValue]
) -> None:
    """Read the new header over a file of holes in the old one's shape."""
    probe = source.with_name(f".{source.name}.header")
    try:
        with probe.open("w+b") as stream:
            stream.write(header)
            stream.truncate(source.stat().st_size)
        _require_readable(probe, pairs, source)
    finally:
        probe.unlink(missing_ok=True)


def _patch(source: Path, header: bytes) -> None:
    """Write the header over the old one; the old one lies beside the file until that is done."""
    saved = source.with_name(f"{source.name}.old-header")
    with source.open("r+b") as stream:
        old = stream.read(len(header))
        with atomic_file(saved) as copy:
            copy.write(old)
        stream.seek(0)
        stream.write(header)
        stream.flush()
        os.fsync(stream.fileno())
    saved.unlink()
