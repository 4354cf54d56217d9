"""Write a model as one GGUF file, or as several: `NAME-00001-of-00003.gguf`, ...

The first part carries the metadata, each carries the keys of the split. Whichever limit makes the
parts, tensors keep their order. A set of one part is a plain file.

Source: tools/gguf-split and src/llama-quant.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halfbyte.converters.format import GgufChoices, Progress
from halfbyte.converters.gguf.ggml_types import DEFAULT_ALIGNMENT
from halfbyte.converters.gguf.metadata_value import MetadataValue, typed
from halfbyte.converters.gguf.output import Output
from halfbyte.converters.gguf.split import MAX_SHARDS, NAME_PATTERN, shard_name
from halfbyte.converters.gguf.writer import stored_bytes, write_gguf, write_stream
from halfbyte.errors import UnsupportedError
from halfbyte.files import atomic_files
from halfbyte.ir.tensor import Tensor

ALIGNMENT_KEY = "general.alignment"
NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"


@dataclass(frozen=True)
class Shard:
    """One file of the output."""

    path: Path
    metadata: Mapping[str, MetadataValue]
    tensors: Sequence[Tensor]


def planned_shards(path: Path, made: Output, choices: GgufChoices) -> list[Shard]:
    """Return the files that the output becomes; `path` itself where it is one.

    Raises:
        UnsupportedError: there would be more parts than the format counts.
    """
    groups = _groups(made, choices)
    if len(groups) == 1:
        return [Shard(path, made.metadata, groups[0])]
    if len(groups) > MAX_SHARDS:
        what = f"a split into {len(groups)} files"
        raise UnsupportedError(what, str(path), [f"at most {MAX_SHARDS}"], "raise the limit")
    counts = {COUNT: np.uint16(len(groups)), TENSORS: np.int32(len(made.tensors))}
    # llama-gguf-split sets the count of parts last, llama-quantize does not.
    order = (COUNT, TENSORS) if choices.part_of else (TENSORS, COUNT)
    shards = []
    for number, tensors in enumerate(groups):
        pairs = dict(made.metadata) if number == 0 else _alignment(made.metadata)
        pairs[NUMBER] = typed(np.uint16(number))
        pairs |= {key: typed(counts[key]) for key in order}
        shards.append(Shard(shard_name(_stem(path), number, len(groups)), pairs, tensors))
    return shards


def _stem(path: Path) -> Path:
    """Return the path without its ending, and without the number of a part."""
    match = NAME_PATTERN.fullmatch(path.name)
    return path.with_name(path.name.removesuffix(".gguf") if match is None else match[1])


def _alignment(metadata: Mapping[str, MetadataValue]) -> dict[str, MetadataValue]:
    """Return what a further part must say of its layout: nothing, for the usual one."""
    entry = metadata.get(ALIGNMENT_KEY)
    usual = entry is None or entry.value == DEFAULT_ALIGNMENT
    return {} if entry is None or usual else {ALIGNMENT_KEY: entry}


def _groups(made: Output, choices: GgufChoices) -> list[list[Tensor]]:
    if choices.part_of:
        count = 1 + max(choices.part_of.values())
        groups: list[list[Tensor]] = [[] for _ in range(count)]
        for name, tensor in zip(made.source_names, made.tensors, strict=True):
            groups[choices.part_of.get(name, 0)].append(tensor)
        return groups
    return _limited(made.tensors, choices.max_bytes, choices.max_tensors)


def _limited(tensors: Sequence[Tensor], max_bytes: int, max_tensors: int) -> list[list[Tensor]]:
    """Return groups within the limits; a tensor beyond max_bytes stands alone."""
    groups: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        length = stored_bytes(tensor)
        length += -length % DEFAULT_ALIGNMENT
        too_large = max_bytes and size + length > max_bytes
        too_many = max_tensors and len(groups[-1]) >= max_tensors
        if groups[-1] and (too_large or too_many):
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += length
    return groups


def write_shards(shards: Sequence[Shard], threads: int, progress: Progress | None = None) -> None:
    """Write all files; they appear together, the first one last.

    Raises:
        UnsupportedError: GGUF cannot hold a tensor's encoding, shape or name.
    """
    if len(shards) == 1:
        only = shards[0]
        write_gguf(only.path, only.metadata, only.tensors, threads, progress)
        return
    with atomic_files([shard.path for shard in shards]) as partials:
        for shard, partial in zip(shards, partials, strict=True):
            with partial.open("w+b") as stream:
                write_stream(stream, shard.metadata, shard.tensors, threads, progress)
