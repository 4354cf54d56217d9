"""Models split over several files, `NAME-00001-of-00003.gguf`.

The first file carries the metadata; `split.no` counts from 0, the file names from 1.

Source: tools/gguf-split and src/llama-model-loader.cpp of llama.cpp.
"""

from __future__ import annotations

import re
from pathlib import Path

from halfbyte.converters.gguf.container import Container, read_container
from halfbyte.errors import FormatError

MAX_SHARDS = 65535
NAME_PATTERN = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)


def _split_number(container: Container, key: str) -> int | None:
    entry = container.metadata.get(key)
    if entry is None:
        return None
    if not isinstance(entry.value, int) or isinstance(entry.value, bool) or entry.value < 0:
        raise FormatError(container.path, f"{key} is {entry.value!r}, a whole number was required")
    return entry.value


def _shard_paths(first: Container, count: int) -> list[Path]:
    match = NAME_PATTERN.fullmatch(first.path.name)
    if match is None or int(match[3]) != count or count > MAX_SHARDS:
        rule = f"split.count is {count}, the name must end in -00001-of-{count:05d}.gguf; rename it"
        raise FormatError(first.path, rule)
    if int(match[2]) != 1:
        rule = f"this is part {int(match[2])} of {count}; open {match[1]}-00001-of-{count:05d}.gguf"
        raise FormatError(first.path, rule)
    return [shard_name(first.path.with_name(match[1]), i, count) for i in range(count)]


def shard_name(stem: Path, number: int, count: int) -> Path:
    """Return the path of part `number`, from 0; stem: what the paths of all parts begin with."""
    return stem.with_name(f"{stem.name}-{number + 1:05d}-of-{count:05d}.gguf")


def shard_numbers(path: Path) -> dict[str, int]:
    """Return the part that each tensor is in, by name; nothing for a model in one file."""
    shards = read_shards(path)
    if len(shards) == 1:
        return {}
    return {info.name: i for i, shard in enumerate(shards) for info in shard.tensors}


def _check_shard(shard: Container, number: int, count: int) -> None:
    found = (_split_number(shard, "split.no"), _split_number(shard, "split.count"))
    if found[0] != number or found[1] not in (None, count):
        rule = f"split.no, split.count are {found}, ({number}, {count}) was required"
        raise FormatError(shard.path, rule)


def read_shards(path: Path) -> list[Container]:
    """Return the file at `path`, with all further parts if it is the first of a split model.

    Raises:
        FormatError: a part is missing, not the first, or does not belong to the others.
    """
    first = read_container(path)
    count = _split_number(first, "split.count") or 0
    if count <= 1:
        return [first]
    paths = _shard_paths(first, count)
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        shown = ", ".join(missing[:3])
        rule = f"{len(missing)} of {count} parts are missing ({shown} ...); put all in one folder"
        raise FormatError(path, rule)
    shards = [first, *(read_container(part) for part in paths[1:])]
    for number, shard in enumerate(shards):
        _check_shard(shard, number, count)
    names = [info.name for shard in shards for info in shard.tensors]
    total = _split_number(first, "split.tensors.count")
    if len(set(names)) != len(names) or total not in (None, len(names)):
        rule = f"the parts hold {len(names)} tensors ({len(set(names))} names), {total} announced"
        raise FormatError(path, rule)
    return shards
