"""The weight files of a Hugging Face folder: one file, or shards under an index."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from halfbyte.converters.format import ReadOptions
from halfbyte.converters.hugging_face.safetensors import parse_json, read_safetensors
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.files import contained
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.tensor import Part, Tensor

SAFETENSORS_FILE = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
PICKLE_ENDINGS = (".bin", ".pt", ".pth")
MAX_INDEX_BYTES = 100_000_000

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.(safetensors|bin)")

ReadFile = Callable[[Path], dict[str, Tensor]]


def dense_tensor(name: str, shape: tuple[int, ...], part: Part) -> Tensor:
    """Return a role-less tensor over a part [rows, columns] of plain numbers."""
    return Tensor(name, shape, Dense(part.dtype.name), {"data": part})


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one safetensors file, mapped."""
    file = read_safetensors(path)
    return {n: dense_tensor(n, e.shape, file.part(n)) for n, e in file.entries.items()}


def _read_pickle_file(path: Path) -> dict[str, Tensor]:
    from halfbyte.converters.hugging_face.pickle_checkpoint import read_pickle_checkpoint

    return {
        name: dense_tensor(name, array.shape, array.part)
        for name, array in read_pickle_checkpoint(path).items()
    }


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weight files of a kind read here."""
    names = (SAFETENSORS_FILE, SAFETENSORS_INDEX, PICKLE_FILE, PICKLE_INDEX)
    return any((folder / name).is_file() for name in names) or bool(_loose(folder))


def _loose(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def read_weights(path: Path, options: ReadOptions) -> dict[str, Tensor]:
    """Return the tensors of a folder or of one file, in file order.

    Raises:
        FormatError: a file is damaged or missing, or index and shards disagree.
        UnsupportedError: the weights are pickled and `allow_pickle` is not given.
    """
    if path.is_file():
        return _select(path, options)(path)
    if (path / SAFETENSORS_INDEX).is_file():
        return _read_index(path, SAFETENSORS_INDEX, read_weight_file)
    if (path / SAFETENSORS_FILE).is_file():
        return read_weight_file(path / SAFETENSORS_FILE)
    loose = _loose(path)
    if loose:
        return _read_loose(path, loose)
    for name in (PICKLE_INDEX, PICKLE_FILE):
        if (path / name).is_file():
            read_file = _select(path / name, options)
            if name == PICKLE_INDEX:
                return _read_index(path, name, read_file)
            return read_file(path / name)
    wanted = f"{SAFETENSORS_FILE} or {SAFETENSORS_INDEX}"
    raise FormatError(path, f"no weights here, {wanted} required; check the path")


def _select(path: Path, options: ReadOptions) -> ReadFile:
    pickled = path.name == PICKLE_INDEX or path.suffix in PICKLE_ENDINGS
    if not pickled:
        return read_weight_file
    if not options.allow_pickle:
        raise UnsupportedError(
            "a pickled checkpoint",
            str(path),
            [SAFETENSORS_FILE],
            "give --allow-pickle to read it through a restricted unpickler",
        )
    return _read_pickle_file


def _read_loose(folder: Path, files: list[Path]) -> dict[str, Tensor]:
    """Read shards without an index, or a single file of another name."""
    shards = [_SHARD.fullmatch(file.name) for file in files]
    numbered = [match for match in shards if match is not None]
    if len(numbered) == len(files):
        _require_all_shards(folder, {(m[1], int(m[2]), int(m[3])) for m in numbered})
    elif len(files) > 1:
        names = [file.name for file in files[:5]]
        raise FormatError(
            folder, f"{len(files)} weight files and no {SAFETENSORS_INDEX} ({names}); name one file"
        )
    return _merge(folder, ((file, read_weight_file(file)) for file in files))


def _require_all_shards(folder: Path, found: set[tuple[str, int, int]]) -> None:
    stems = {(stem, total) for stem, _, total in found}
    if len(stems) != 1:
        sets = sorted(stems)
        raise FormatError(folder, f"shards of several sets lie together: {sets}; keep one set")
    stem, total = stems.pop()
    present = {number for _, number, _ in found}
    for number in range(1, total + 1):
        if number not in present:
            missing = f"{stem}-{number:05d}-of-{total:05d}.safetensors"
            raise FormatError(folder, f"shard {missing!r} is missing; download it again")


def _merge(folder: Path, files: Iterable[tuple[Path, dict[str, Tensor]]]) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for file, tensors in files:
        for name, tensor in tensors.items():
            if name in merged:
                raise FormatError(
                    folder,
                    f"tensor {name!r} stands in {file.name} and before it; remove one of the two",
                )
            merged[name] = tensor
    return merged


def _weight_map(path: Path) -> dict[str, str]:
    if path.stat().st_size > MAX_INDEX_BYTES:
        rule = f"the index passes {MAX_INDEX_BYTES} bytes; it is damaged, download it again"
        raise FormatError(path, rule)
    found = parse_json(path.read_bytes(), path, "index").get("weight_map")
    valid = isinstance(found, dict) and all(isinstance(name, str) for name in found.values())
    if not valid or not found:
        raise FormatError(path, "weight_map must be an object of file names; download it again")
    return dict(found)


def _read_index(folder: Path, index: str, read_file: ReadFile) -> dict[str, Tensor]:
    weight_map = _weight_map(folder / index)
    shards: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        shards.setdefault(shard, set()).add(tensor)
    paths = {shard: contained(folder, shard) for shard in shards}
    for shard, path in paths.items():
        if not path.is_file():
            raise FormatError(
                folder / index, f"shard {shard!r} is missing; download it again or check the folder"
            )
    found = []
    for shard in sorted(shards):
        tensors = read_file(paths[shard])
        _compare(folder / index, shard, shards[shard], set(tensors))
        found.append((paths[shard], tensors))
    return _merge(folder, found)


def _compare(index: Path, shard: str, listed: set[str], held: set[str]) -> None:
    if listed - held:
        name = min(listed - held)
        rule = f"tensor {name!r} is missing from shard {shard!r} of the index; download both again"
        raise FormatError(index, rule)
    if held - listed:
        name = min(held - listed)
        rule = f"shard {shard!r} holds tensor {name!r}, which the index lacks; download both again"
        raise FormatError(index, rule)
