"""Parse a GGUF file: header, typed metadata and tensor table. Tensor data stays on disk.

    magic "GGUF" | u32 version | u64 tensors | u64 pairs
    pairs        string key, u32 type, value          (array: u32 element type, u64 n, elements)
    tensor table string name, u32 dims, u64 dim x n, u32 type, u64 offset into the data section
    padding to `general.alignment` | tensor data, each tensor aligned

Dimension 0 is the contiguous one, the reverse of a numpy shape. Strings are u64 length + bytes.
Versions 2 and 3 share this layout; big-endian files are told by the byte order of the version.

This is an own reader rather than gguf-py's because files are hostile (gguf-py allocates and
recurses by the file's own counts), because a vocabulary of 150,000 strings takes seconds there,
because it does not convert big-endian tensors, and because value types and array element types
must survive a copy exactly.

Source: docs/gguf.md and ggml/src/gguf.cpp of ggml.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.gguf.byte_order import swapped_part
from halfbyte.converters.gguf.ggml_types import (
    DEFAULT_ALIGNMENT,
    GGML_TYPES,
    MAX_NAME_BYTES,
    REMOVED_TYPES,
    VALUE_DTYPES,
    GgmlType,
    ValueType,
    encoding_of,
    numpy_dtype,
)
from halfbyte.converters.gguf.metadata_value import MetadataValue
from halfbyte.errors import FormatError
from halfbyte.ir.tensor import FilePart, Part, Tensor, rows_and_columns

MAGIC = b"GGUF"
MAX_DIMS = 4
MAX_NESTING = 4
MAX_STRING_BYTES = 1 << 30
MAX_STRINGS = 1 << 25
MAX_VALUES = 2**63 - 1
PAIR_BYTES = 8 + 1 + 4 + 1
TENSOR_BYTES = 8 + 1 + 4 + 4 + 8


@dataclass(frozen=True)
class TensorInfo:
    """One entry of the tensor table. shape: numpy order; offset: from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: GgmlType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Container:
    """A parsed file. `problems` lists what is tolerated but should not be there."""

    path: Path
    version: int
    big_endian: bool
    alignment: int
    metadata: Mapping[str, MetadataValue]
    tensors: tuple[TensorInfo, ...]
    problems: tuple[str, ...] = field(default=())

    def tensor(self, info: TensorInfo) -> Tensor:
        """Return a table entry as a lazy weight.

        Raises:
            UnsupportedError: a big-endian file with a type whose byte order is not known.
        """
        rows, columns = rows_and_columns(info.shape)
        plain = info.kind.dtype_name
        dtype: np.dtype[Any] = numpy_dtype(plain) if plain else np.dtype(np.uint8)
        width = columns if plain else info.kind.row_bytes(columns)
        part: Part = FilePart(self.path, info.offset, dtype, (rows, width))
        if self.big_endian:
            raw = FilePart(
                self.path, info.offset, np.dtype(np.uint8), (rows, width * dtype.itemsize)
            )
            part = swapped_part(raw, info.kind, dtype, str(self.path))
        return Tensor(info.name, info.shape, encoding_of(info.kind), {"data": part})


class _Cursor:
    """A position in the mapped file; every read is checked against the end first."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.size = len(buffer)
        self.position = 0
        self.order: Literal["<", ">"] = "<"

    def fail(self, rule: str, offset: int | None = None) -> NoReturn:
        raise FormatError(self.path, rule, self.position if offset is None else offset)

    @property
    def remaining(self) -> int:
        return self.size - self.position

    def take(self, count: int, what: str) -> int:
        """Return the position of the next `count` bytes and step over them."""
        if count > self.remaining:
            self.fail(f"{what} needs {count} bytes, {self.remaining} are left; the file is cut off")
        start = self.position
        self.position += count
        return start

    def unpack(self, code: str, what: str) -> Any:
        start = self.take(struct.calcsize(code), what)
        return struct.unpack_from(self.order + code, self.buffer, start)[0]

    def raw_string(self, what: str) -> bytes:
        start = self.position
        length = self.unpack("Q", f"length of {what}")
        if length > MAX_STRING_BYTES or length > self.remaining:
            rule = (
                f"{what} has {length} bytes, {self.remaining} are left (limit {MAX_STRING_BYTES})"
            )
            self.fail(rule, start)
        begin = self.take(length, what)
        return self.buffer[begin : begin + length]

    def identifier(self, what: str) -> str:
        """Return a key or a tensor name: UTF-8, not empty, no NUL."""
        start = self.position
        raw = self.raw_string(what)
        if not raw or b"\0" in raw:
            self.fail(f"{what} is empty or has a NUL byte", start)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} {raw[:40]!r} is not UTF-8", start)

    def value_type(self, what: str) -> ValueType:
        start = self.position
        number = self.unpack("I", f"type of {what}")
        try:
            return ValueType(number)
        except ValueError:
            self.fail(f"{what} has value type {number}, known are 0-12", start)

    def strings(self, count: int, what: str) -> list[str]:
        if count > MAX_STRINGS:
            self.fail(f"{what} has {count} strings, the limit is {MAX_STRINGS}")
        unpack = struct.Struct(self.order + "Q").unpack_from
        buffer, position, size = self.buffer, self.position, self.size
        found: list[str] = []
        for _ in range(count):
            end = position + 8
            if end > size:
                self.fail(f"{what} is cut off at string {len(found)} of {count}", position)
            length = unpack(buffer, position)[0]
            if length > size - end:
                self.fail(f"string {len(found)} of {what} has {length} bytes, too many", position)
            position = end + length
            found.append(buffer[end:position].decode("utf-8", "surrogateescape"))
        self.position = position
        return found

    def numbers(self, kind: ValueType, count: int, what: str) -> NDArray[Any]:
        code = "u1" if kind is ValueType.BOOL else VALUE_DTYPES[kind]
        dtype = np.dtype(code).newbyteorder(self.order)
        start = self.take(count * dtype.itemsize, what)
        found: NDArray[Any] = np.frombuffer(self.buffer, dtype, count, start)
        if kind is ValueType.BOOL:
            return np.asarray(found != 0)
        return found.astype(dtype.newbyteorder("="))

    def array(self, what: str, depth: int) -> MetadataValue:
        start = self.position
        if depth > MAX_NESTING:
            self.fail(f"{what} nests arrays deeper than {MAX_NESTING}", start)
        kind = self.value_type(f"elements of {what}")
        count = self.unpack("Q", f"length of {what}")
        least = {ValueType.STRING: 8, ValueType.ARRAY: 12}.get(kind) or _itemsize(kind)
        if count * least > self.remaining:
            self.fail(f"{what} has {count} elements, {self.remaining} bytes are left", start)
        values: Any
        if kind is ValueType.STRING:
            values = self.strings(count, what)
        elif kind is ValueType.ARRAY:
            values = [self.array(what, depth + 1) for _ in range(count)]
        else:
            values = self.numbers(kind, count, what)
        return MetadataValue(values, ValueType.ARRAY, kind)

    def value(self, what: str) -> MetadataValue:
        kind = self.value_type(what)
        if kind is ValueType.ARRAY:
            return self.array(what, 1)
        if kind is ValueType.STRING:
            raw = self.raw_string(what)
            return MetadataValue(raw.decode("utf-8", "surrogateescape"), kind)
        return MetadataValue(self.numbers(kind, 1, what)[0].item(), kind)


def _itemsize(kind: ValueType) -> int:
    return np.dtype(VALUE_DTYPES[kind]).itemsize


def _read_header(cursor: _Cursor) -> tuple[int, int, int]:
    """Return version, number of tensors and number of pairs; find the byte order."""
    if cursor.buffer[:4] != MAGIC:
        cursor.fail(f"starts with {cursor.buffer[:4]!r}, a GGUF file starts with {MAGIC!r}")
    cursor.position = 4
    version = cursor.unpack("I", "the version")
    if version and version & 0xFFFF == 0:
        cursor.order = ">"
        cursor.position = 4
        version = cursor.unpack("I", "the version")
    if version not in (2, 3):
        cursor.fail(f"GGUF version {version}, versions 2 and 3 are known; export it anew", 4)
    tensors = cursor.unpack("Q", "the number of tensors")
    pairs = cursor.unpack("Q", "the number of metadata pairs")
    if tensors * TENSOR_BYTES + pairs * PAIR_BYTES > cursor.remaining:
        rule = f"{tensors} tensors and {pairs} pairs announced, {cursor.remaining} bytes are left"
        cursor.fail(rule, 8)
    return version, tensors, pairs


def _read_pairs(cursor: _Cursor, count: int) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for index in range(count):
        start = cursor.position
        key = cursor.identifier(f"key {index}")
        if key in metadata:
            cursor.fail(f"key {key!r} appears twice", start)
        metadata[key] = cursor.value(f"key {key[:80]!r}")
    return metadata


def _alignment(cursor: _Cursor, metadata: Mapping[str, MetadataValue]) -> int:
    entry = metadata.get("general.alignment")
    if entry is None:
        return DEFAULT_ALIGNMENT
    value = entry.value
    if entry.type is not ValueType.UINT32 or value == 0 or value & (value - 1):
        found = f"{entry.type.name} {value!r}"
        cursor.fail(f"general.alignment is {found}, required is a UINT32 power of two")
    return int(value)


def _tensor_type(cursor: _Cursor, name: str) -> GgmlType:
    start = cursor.position
    number = cursor.unpack("I", f"type of tensor {name!r}")
    kind = GGML_TYPES.get(number)
    if kind is not None:
        return kind
    if number in REMOVED_TYPES:
        rule = f"tensor {name!r} has type {REMOVED_TYPES[number]}, which ggml removed"
        cursor.fail(f"{rule}; export it anew", start)
    cursor.fail(f"tensor {name!r} has type {number}, known are 0-{max(GGML_TYPES)}", start)


def _read_tensor(cursor: _Cursor, index: int) -> TensorInfo:
    """Read one table entry; its offset is still relative to the data section."""
    start = cursor.position
    name = cursor.identifier(f"name of tensor {index}")
    if len(name.encode()) > MAX_NAME_BYTES:
        cursor.fail(f"tensor name {name[:40]!r}... is longer than {MAX_NAME_BYTES} bytes", start)
    dims = cursor.unpack("I", f"dimensions of tensor {name!r}")
    if dims > MAX_DIMS:
        cursor.fail(f"tensor {name!r} has {dims} dimensions, at most {MAX_DIMS} are allowed", start)
    lengths = [cursor.unpack("Q", f"shape of tensor {name!r}") for _ in range(dims)]
    kind = _tensor_type(cursor, name)
    if math.prod(max(1, length) for length in lengths) > MAX_VALUES:
        cursor.fail(f"tensor {name!r} has shape {lengths}, more values than 64 bits count", start)
    columns = lengths[0] if lengths else 1
    if columns % kind.block:
        rule = (
            f"tensor {name!r} has rows of {columns}, {kind.name} needs a multiple of {kind.block}"
        )
        cursor.fail(rule, start)
    offset = cursor.unpack("Q", f"offset of tensor {name!r}")
    nbytes = math.prod(lengths[1:]) * kind.row_bytes(columns)
    return TensorInfo(name, tuple(reversed(lengths)), kind, offset, nbytes)


def _padded(length: int, alignment: int) -> int:
    return -(-length // alignment) * alignment


def _check_layout(cursor: _Cursor, tensors: list[TensorInfo], alignment: int) -> list[str]:
    """Refuse tensors that overlap, are not aligned or reach past the end; note loose packing."""
    data_start = _padded(cursor.position, alignment)
    problems: list[str] = []
    expected = 0
    for info in tensors:
        if info.offset % alignment:
            cursor.fail(f"tensor {info.name!r} starts at {info.offset}, not aligned to {alignment}")
        end = data_start + info.offset + info.nbytes
        if end > cursor.size:
            rule = f"tensor {info.name!r} ends at byte {end}, the file has {cursor.size}"
            cursor.fail(f"{rule}; it is cut off or its offset is wrong", data_start + info.offset)
        if info.offset != expected and not problems:
            problems.append(
                f"tensor {info.name!r} is not where the one before it ends: llama.cpp refuses this"
            )
        expected = info.offset + _padded(info.nbytes, alignment)
    previous = None
    for info in sorted((t for t in tensors if t.nbytes), key=lambda t: t.offset):
        if previous is not None and info.offset < previous.offset + previous.nbytes:
            cursor.fail(f"tensors {previous.name!r} and {info.name!r} overlap")
        previous = info
    return problems


def _absolute(info: TensorInfo, data_start: int) -> TensorInfo:
    return TensorInfo(info.name, info.shape, info.kind, data_start + info.offset, info.nbytes)


def _parse(cursor: _Cursor) -> Container:
    version, tensor_count, pair_count = _read_header(cursor)
    metadata = _read_pairs(cursor, pair_count)
    alignment = _alignment(cursor, metadata)
    tensors: list[TensorInfo] = []
    names: set[str] = set()
    problems: list[str] = []
    for index in range(tensor_count):
        start = cursor.position
        info = _read_tensor(cursor, index)
        if info.name in names:
            cursor.fail(f"tensor {info.name!r} appears twice", start)
        names.add(info.name)
        if len(info.name.encode()) == MAX_NAME_BYTES:
            problems.append(f"tensor name {info.name!r} has 64 bytes: llama.cpp takes 63")
        tensors.append(info)
    problems += _check_layout(cursor, tensors, alignment)
    data_start = _padded(cursor.position, alignment)
    return Container(
        cursor.path,
        version,
        cursor.order == ">",
        alignment,
        metadata,
        tuple(_absolute(info, data_start) for info in tensors),
        tuple(problems),
    )


def is_gguf(path: Path) -> bool:
    """Whether the file at `path` starts like a GGUF file."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(4) == MAGIC


def read_container(path: Path) -> Container:
    """Return the parsed file at `path`.

    Raises:
        FormatError: the file breaks a rule of the format.
    """
    with path.open("rb") as stream:
        if not stream.read(1):
            raise FormatError(path, "the file is empty; copy it again")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            return _parse(_Cursor(path, buffer))
