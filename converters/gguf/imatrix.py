"""Importance matrices: mean squared inputs of weights, as llama-imatrix writes them.

The GGUF form has two float32 tensors per weight, `NAME.in_sum2` [matrices, columns] (sums of
squares) and `NAME.counts` [matrices, 1] (tokens that were summed), and the keys `imatrix.datasets`,
`imatrix.chunk_count` and `imatrix.chunk_size`. The older form (`.dat`) is told by the lack of
GGUF's magic and read in `imatrix_dat.py`. A dense stacked weight has one count for all matrices.

Source: tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.gguf.container import Container, TensorInfo, is_gguf, read_container
from halfbyte.converters.gguf.ggml_types import ValueType
from halfbyte.converters.gguf.imatrix_dat import read_dat, write_dat
from halfbyte.converters.gguf.importance import (
    DEFAULT_CHUNK_SIZE,
    ImportanceEntry,
    ImportanceMatrix,
    check_entry,
)
from halfbyte.converters.gguf.metadata_value import MetadataValue, typed
from halfbyte.converters.gguf.writer import write_gguf
from halfbyte.errors import FormatError
from halfbyte.ir.tensor import Tensor, tensor_from_array

__all__ = [
    "ImportanceEntry",
    "ImportanceMatrix",
    "is_importance",
    "merge_importance",
    "read_importance",
    "write_importance",
]

SUMS, COUNTS = ".in_sum2", ".counts"
TYPE = "general.type"
DATASETS = "imatrix.datasets"
CHUNK_COUNT = "imatrix.chunk_count"
CHUNK_SIZE = "imatrix.chunk_size"
LARGEST_COUNT = float(2**53)
PEEKED_BYTES = 1 << 20


@dataclass
class _Pair:
    """The two tensors of a weight, as they are found."""

    sums: TensorInfo | None = None
    counts: TensorInfo | None = None


def is_importance(path: Path) -> bool:
    """Whether the file at `path` is an importance matrix in GGUF form."""
    if not is_gguf(path):
        return False
    with path.open("rb") as stream:
        # Models have vocabularies to parse: most are told by the lack of a key near the start.
        if CHUNK_COUNT.encode() not in stream.read(PEEKED_BYTES):
            return False
    try:
        metadata = read_container(path).metadata
    except FormatError:
        return False
    return TYPE in metadata and metadata[TYPE].value == "imatrix"


def read_importance(path: str | Path) -> ImportanceMatrix:
    """Return the importance matrix at `path`, in either form; every value is checked.

    Raises:
        FormatError: the file breaks a rule of its form, or holds sums or counts that no
            collection can give (negative, infinite, NaN).
    """
    path = Path(path)
    if not is_gguf(path):
        return read_dat(path)
    container = read_container(path)
    _check_type(container)
    datasets = _required(container, DATASETS, ValueType.ARRAY, ValueType.STRING)
    chunk_count = _required(container, CHUNK_COUNT, ValueType.UINT32)
    chunk_size = _required(container, CHUNK_SIZE, ValueType.UINT32)
    entries = {name: _entry(container, name, pair) for name, pair in _pairs(container).items()}
    if not entries:
        raise FormatError(path, "has no entries, at least one is required; collect it anew")
    return ImportanceMatrix(entries, tuple(datasets), chunk_count, chunk_size, str(path))


def _check_type(container: Container) -> None:
    entry = container.metadata.get(TYPE)
    if entry is None or entry.value != "imatrix":
        found = "no general.type" if entry is None else f"general.type {str(entry.value)[:40]!r}"
        raise FormatError(
            container.path,
            f"has {found}, 'imatrix' is required; give a file that llama-imatrix or "
            "`halfbyte imatrix` wrote",
        )


def _required(
    container: Container, key: str, kind: ValueType, element: ValueType | None = None
) -> Any:
    entry = container.metadata.get(key)
    if entry is None:
        raise FormatError(container.path, f"key {key} is missing; collect the matrix anew")
    if (entry.type, entry.element_type) != (kind, element):
        wanted = kind.name if element is None else f"{kind.name} of {element.name}"
        found = entry.type.name
        if entry.element_type is not None:
            found += f" of {entry.element_type.name}"
        raise FormatError(container.path, f"key {key} is {found}, {wanted} is required")
    return entry.value


def _pairs(container: Container) -> dict[str, _Pair]:
    pairs: dict[str, _Pair] = {}
    for info in container.tensors:
        if info.name.endswith(SUMS):
            pairs.setdefault(info.name.removesuffix(SUMS), _Pair()).sums = info
        elif info.name.endswith(COUNTS):
            pairs.setdefault(info.name.removesuffix(COUNTS), _Pair()).counts = info
    return pairs


def _values(container: Container, info: TensorInfo) -> NDArray[np.float32]:
    """Return a tensor as it lies in the file: pages of the file, no copy."""
    if info.kind.name != "F32":
        raise FormatError(
            container.path, f"tensor {info.name!r} is {info.kind.name}, F32 is required"
        )
    if not info.nbytes:
        raise FormatError(container.path, f"tensor {info.name!r} has no values")
    return np.asarray(container.tensor(info).read()["data"], np.float32).reshape(-1)


def _entry(container: Container, name: str, pair: _Pair) -> ImportanceEntry:
    if not name:
        raise FormatError(container.path, "an entry has no name; collect the matrix anew")
    if pair.sums is None or pair.counts is None:
        has, lacks = (COUNTS, SUMS) if pair.sums is None else (SUMS, COUNTS)
        raise FormatError(container.path, f"weight {name!r} has {has}, its {lacks} is missing")
    sums, counts = _values(container, pair.sums), _values(container, pair.counts)
    if sums.size % counts.size:
        raise FormatError(
            container.path,
            f"weight {name!r} has {sums.size} sums, they do not divide into {counts.size} counts",
        )
    bad = ~((counts >= 0) & (counts <= LARGEST_COUNT))
    if bad.any():
        raise FormatError(
            container.path,
            f"weight {name!r} has count {counts[bad][0]}, 0 to 2^53 is required",
        )
    whole = np.floor(counts.astype(np.float64) + 0.5).astype(np.int64)
    entry = ImportanceEntry(sums.reshape(counts.size, -1), whole)
    check_entry(container.path, name, entry)
    return entry


def write_importance(matrix: ImportanceMatrix, path: str | Path, form: str = "gguf") -> None:
    """Write `matrix` as llama-imatrix does, byte for byte; form: `gguf` or `dat`.

    Raises:
        UnsupportedError: a weight's name is longer than the 55 bytes that GGUF leaves.
        ValueError: `form` is neither.
    """
    if form not in ("gguf", "dat"):
        raise ValueError(f"form {form!r}, gguf or dat is required")
    raw = matrix.raw()
    if form == "dat":
        write_dat(raw, Path(path))
        return
    metadata = {
        TYPE: typed("imatrix"),
        DATASETS: MetadataValue(list(raw.datasets), ValueType.ARRAY, ValueType.STRING),
        CHUNK_COUNT: typed(np.uint32(raw.chunk_count)),
        CHUNK_SIZE: typed(np.uint32(raw.chunk_size)),
    }
    tensors: list[Tensor] = []
    for name in raw.names:
        entry = raw.entries[name]
        tensors.append(_stored(name + SUMS, entry.sums))
        tensors.append(_stored(name + COUNTS, entry.counts.astype(np.float32)[:, None]))
    write_gguf(Path(path), metadata, tensors)


def _stored(name: str, values: NDArray[np.float32]) -> Tensor:
    """Return a tensor of [matrices, columns]; GGUF drops a leading dimension of 1."""
    return tensor_from_array(name, values[0] if len(values) == 1 else values)


def merge_importance(
    matrices: Iterable[ImportanceMatrix], chunk_size: int | None = None
) -> ImportanceMatrix:
    """Return the sum of several matrices: sums and counts add, data sets follow each other.

    chunk_size: tokens per chunk of the result; None takes the first that a file tells. Files of the
    older form count chunks, of as many tokens.

    Raises:
        FormatError: two files disagree on the size of a weight, or sums leave float32's range.
    """
    given = list(matrices)
    size = chunk_size or next((m.chunk_size for m in given if m.chunk_size), DEFAULT_CHUNK_SIZE)
    merged: dict[str, ImportanceEntry] = {}
    with np.errstate(over="ignore"):
        for matrix in given:
            for name, entry in matrix.raw(size).entries.items():
                held = merged.get(name)
                merged[name] = entry if held is None else _added(matrix.path, name, held, entry)
                if not np.isfinite(merged[name].sums).all():
                    rule = f"weight {name!r}: sums leave float32's range here; leave this file out"
                    raise FormatError(matrix.path, rule)
    datasets = tuple(name for matrix in given for name in matrix.datasets)
    tokens = max((int(entry.counts.max()) for entry in merged.values()), default=0)
    return ImportanceMatrix(merged, datasets, tokens // size, size, "")


def _added(path: str, name: str, held: ImportanceEntry, entry: ImportanceEntry) -> ImportanceEntry:
    """Return the sum of two entries; one count for all matrices serves each of several."""
    matrices = len(entry.counts)
    if held.sums.size != entry.sums.size or len(held.counts) not in (1, matrices):
        raise FormatError(
            path,
            f"weight {name!r} has {entry.sums.size} sums and {matrices} counts, the files before "
            f"it have {held.sums.size} and {len(held.counts)}; merge files of one model",
        )
    sums = held.sums.reshape(matrices, -1) + entry.sums
    return ImportanceEntry(sums, held.counts + entry.counts)
