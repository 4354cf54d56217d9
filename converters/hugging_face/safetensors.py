"""Safetensors files: a checked header and lazily mapped arrays.

    0                 8                     8 + N
    | N: uint64 LE    | JSON header, N bytes | arrays, little endian, no gaps |

Header: {"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets": [begin, end]}}, with
offsets counted from byte 8 + N. Own reader because the safetensors package copies what it reads or
needs a framework, hides the offsets that mapping by row range needs, follows no rule for error
texts, and keeps only the last of two equal names. A path may be a link into a hub cache.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.tensor import FilePart, rows_and_columns

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 16
MAX_ARRAY_BYTES = 1 << 62
METADATA_KEY = "__metadata__"

# Ordered as safetensors sorts them when it writes: largest alignment last.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
CODES: dict[str, str] = {dtype.name: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One array of a file: numpy dtype, shape, first byte in the file, bytes."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class SafetensorsFile:
    """A file whose header has been checked; entries stand in the order of the header."""

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)

    def part(self, name: str) -> FilePart:
        """Return the array as a mapped part of shape [rows, columns]."""
        entry = self.entries[name]
        return FilePart(self.path, entry.offset, entry.dtype, rows_and_columns(entry.shape))

    def read_bytes(self, name: str) -> bytes:
        """Return the raw bytes of an array."""
        entry = self.entries[name]
        with self.path.open("rb") as stream:
            stream.seek(entry.offset)
            return stream.read(entry.nbytes)


class _DuplicateKeyError(ValueError):
    """An object names a key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(f"{key!r} stands twice in the header, once was required")
            seen.add(key)
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def parse_json(content: bytes, path: Path, what: str, offset: int | None = None) -> dict[str, Any]:
    """Return the object in strict JSON text: no key twice, no NaN, bounded nesting.

    Raises:
        FormatError: the text is anything else.
    """
    try:
        found = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except _DuplicateKeyError as error:
        raise FormatError(path, f"{what}: {error}", offset) from None
    except RecursionError:
        raise FormatError(path, f"{what} is nested too deeply", offset) from None
    except ValueError as error:
        raise FormatError(path, f"{what} is not JSON ({error}); it is damaged", offset) from None
    if not isinstance(found, dict):
        raise FormatError(
            path, f"{what} is a {type(found).__name__}, a JSON object was required", offset
        )
    return found


def looks_like_safetensors(path: Path) -> bool:
    """Whether the first bytes are a plausible header length followed by an opening brace."""
    try:
        with path.open("rb") as stream:
            start = stream.read(LENGTH_BYTES + 1)
    except OSError:
        return False
    if len(start) < LENGTH_BYTES + 1:
        return False
    return start[LENGTH_BYTES:] == b"{" and struct.unpack("<Q", start[:8])[0] <= MAX_HEADER_BYTES


def read_safetensors(path: Path) -> SafetensorsFile:
    """Return the checked header of the file at `path`; no array is read.

    Raises:
        FormatError: the file breaks a rule of the format.
        UnsupportedError: an array has a type that is unknown here.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(LENGTH_BYTES)
            length = _header_length(path, start, size)
            content = stream.read(length)
    except OSError as error:
        raise FormatError(path, f"cannot be read ({error.strerror})") from error
    if len(content) != length:
        raise FormatError(path, "the file shrank while it was read; try again", LENGTH_BYTES)
    header = parse_json(content, path, "header", LENGTH_BYTES)
    metadata = _metadata(path, header.pop(METADATA_KEY, {}))
    data_start = LENGTH_BYTES + length
    entries = {name: _entry(path, name, spec, data_start) for name, spec in header.items()}
    _check_tiling(path, entries, data_start, size)
    return SafetensorsFile(path, entries, metadata)


def _header_length(path: Path, start: bytes, size: int) -> int:
    if len(start) < LENGTH_BYTES:
        raise FormatError(path, f"the file has {size} bytes, at least {LENGTH_BYTES} were required")
    length = int(struct.unpack("<Q", start)[0])
    if length > MAX_HEADER_BYTES:
        raise FormatError(
            path, f"the header claims {length} bytes, at most {MAX_HEADER_BYTES} are allowed", 0
        )
    if LENGTH_BYTES + length > size:
        raise FormatError(
            path, f"the header claims {length} bytes, the file has {size}; it is truncated", 0
        )
    return length


def _metadata(path: Path, found: Any) -> dict[str, str]:
    valid = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    if not valid:
        raise FormatError(
            path, f"{METADATA_KEY} must be an object of strings; re-export the file", LENGTH_BYTES
        )
    return dict(found)


def _entry(path: Path, name: str, spec: Any, data_start: int) -> Entry:
    def reject(rule: str) -> NoReturn:
        raise FormatError(path, f"tensor {name!r} {rule}", LENGTH_BYTES)

    if not isinstance(spec, dict) or set(spec) != {"dtype", "shape", "data_offsets"}:
        reject("must have exactly dtype, shape and data_offsets")
    code = spec["dtype"]
    if not isinstance(code, str) or code not in DTYPES:
        raise UnsupportedError(f"dtype {code!r} of tensor {name!r}", str(path), list(DTYPES))
    shape = spec["shape"]
    if not _is_list_of_counts(shape) or len(shape) > MAX_DIMENSIONS:
        reject(f"has a shape that is not a list of at most {MAX_DIMENSIONS} counts")
    offsets = spec["data_offsets"]
    if not _is_list_of_counts(offsets) or len(offsets) != 2:
        reject("has data_offsets that are not two counts")
    begin, end = offsets
    if begin > end:
        reject(f"begins at {begin}, after its end {end}")
    dtype = DTYPES[code]
    if math.prod(max(1, dim) for dim in shape) * dtype.itemsize > MAX_ARRAY_BYTES:
        reject(f"has shape {shape}, too large for any file")
    required = math.prod(shape) * dtype.itemsize
    if end - begin != required:
        reject(f"holds {end - begin} bytes, {required} were required by {code} {shape}")
    return Entry(name, dtype, tuple(shape), data_start + begin, required)


def _is_list_of_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _in_file_order(entries: dict[str, Entry]) -> Iterator[Entry]:
    yield from sorted(entries.values(), key=lambda entry: (entry.offset, entry.nbytes))


def _check_tiling(path: Path, entries: dict[str, Entry], start: int, size: int) -> None:
    """Require that the arrays cover the rest of the file exactly once."""
    expected = start
    for entry in _in_file_order(entries):
        if entry.offset < expected:
            raise FormatError(
                path, f"tensor {entry.name!r} overlaps the one before it", entry.offset
            )
        if entry.offset > expected:
            gap = entry.offset - expected
            raise FormatError(path, f"{gap} unused bytes before tensor {entry.name!r}", expected)
        expected += entry.nbytes
    if expected > size:
        raise FormatError(
            path, f"the arrays end at byte {expected}, the file at {size}; it is truncated", size
        )
    if expected < size:
        rule = f"{size - expected} bytes follow the last array; copy the file again"
        raise FormatError(path, rule, expected)
