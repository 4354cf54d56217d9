"""The older file form of importance matrices (`.dat`), little-endian, without a magic.

    i32 entries | entry x n | optional: i32 chunks, then optional: i32 length, path of the data set
    entry         i32 length, name | i32 calls | i32 values, float32 x values

Values are means of squares times the calls (chunks); a matrix without a token holds 1 x calls.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.gguf.importance import (
    DEFAULT_CHUNK_SIZE,
    ImportanceEntry,
    ImportanceMatrix,
    check_entry,
)
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.files import atomic_file

LEAST_ENTRY_BYTES = 4 + 1 + 4 + 4 + 4
MAX_NAME_BYTES = 1 << 12
MAX_PATH_BYTES = 1 << 16
INT32_MAX = 2**31 - 1


class _Cursor:
    """A position in the mapped file; every length is checked against the end first."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.position = 0

    @property
    def remaining(self) -> int:
        return len(self.buffer) - self.position

    def fail(self, rule: str, offset: int | None = None) -> NoReturn:
        raise FormatError(self.path, rule, self.position if offset is None else offset)

    def number(self, what: str, least: int) -> int:
        if self.remaining < 4:
            self.fail(f"{what} needs 4 bytes, {self.remaining} are left; the file is cut off")
        found: int = struct.unpack_from("<i", self.buffer, self.position)[0]
        if found < least:
            self.fail(f"{what} is {found}, at least {least} is required")
        self.position += 4
        return found

    def text(self, what: str, least: int, limit: int) -> bytes:
        start = self.position
        length = self.number(f"length of {what}", least)
        if length > limit or length > self.remaining:
            self.fail(
                f"{what} has {length} bytes, {self.remaining} are left (limit {limit})", start
            )
        begin = self.position
        self.position += length
        return self.buffer[begin : self.position]

    def floats(self, count: int, what: str) -> NDArray[np.float32]:
        if count * 4 > self.remaining:
            self.fail(f"{what} has {count} values, {self.remaining} bytes are left; it is cut off")
        found = np.frombuffer(self.buffer, "<f4", count, self.position)
        self.position += count * 4
        return found


def read_dat(path: Path) -> ImportanceMatrix:
    """Return the matrix at `path`; its entries are pages of the file.

    Raises:
        FormatError: the file breaks a rule of the form.
    """
    with path.open("rb") as stream:
        if not stream.read(1):
            raise FormatError(path, "the file is empty; copy it again")
        cursor = _Cursor(path, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    count = cursor.number("the number of entries", 1)
    if count * LEAST_ENTRY_BYTES > cursor.remaining:
        rule = f"announces {count} entries, {cursor.remaining} bytes are left"
        cursor.fail(f"{rule}; it is no importance matrix, or is cut off", 0)
    entries: dict[str, ImportanceEntry] = {}
    for index in range(count):
        start = cursor.position
        name, entry = _read_entry(cursor, index)
        if name in entries:
            cursor.fail(f"weight {name!r} appears twice", start)
        entries[name] = entry
    chunks, datasets = _read_end(cursor)
    return ImportanceMatrix(entries, datasets, chunks, 0, str(path), per_call=True)


def _read_entry(cursor: _Cursor, index: int) -> tuple[str, ImportanceEntry]:
    start = cursor.position
    raw = cursor.text(f"the name of entry {index}", 1, MAX_NAME_BYTES)
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        cursor.fail(f"the name of entry {index}, {raw[:40]!r}, is not UTF-8", start)
    if "\0" in name:
        cursor.fail(f"the name of entry {index} has a NUL byte", start)
    calls = cursor.number(f"calls of weight {name!r}", 0)
    length = cursor.number(f"length of weight {name!r}", 1)
    values = cursor.floats(length, f"weight {name!r}")
    entry = ImportanceEntry(values.reshape(1, -1), np.array([calls], np.int64))
    check_entry(cursor.path, name, entry)
    return name, entry


def _read_end(cursor: _Cursor) -> tuple[int, tuple[str, ...]]:
    """Return the number of chunks and the data set; the oldest files have neither."""
    if not cursor.remaining:
        return 0, ()
    chunks = cursor.number("the number of chunks", 0)
    if not cursor.remaining:
        return chunks, ()
    raw = cursor.text("the data set's path", 0, MAX_PATH_BYTES)
    if cursor.remaining:
        cursor.fail(f"{cursor.remaining} bytes follow the end, none are allowed; copy it again")
    return chunks, (raw.decode("utf-8", "surrogateescape"),) if raw else ()


def write_dat(matrix: ImportanceMatrix, path: Path) -> None:
    """Write a matrix of token counts; weights that saw no token at all are left out.

    Raises:
        UnsupportedError: a number is beyond the form's 32 bits.
    """
    size = matrix.chunk_size or DEFAULT_CHUNK_SIZE
    stored = [name for name in matrix.names if matrix.entries[name].counts.any()]
    with atomic_file(path) as stream:
        stream.write(struct.pack("<i", len(stored)))
        for name in stored:
            entry = matrix.entries[name]
            calls = -(-int(entry.counts.max()) // size)
            raw = name.encode("utf-8", "surrogateescape")
            if max(calls, entry.sums.size) > INT32_MAX:
                raise UnsupportedError("a length beyond 31 bits", f"{path}: weight {name!r}")
            stream.write(struct.pack("<i", len(raw)) + raw)
            stream.write(struct.pack("<ii", calls, entry.sums.size))
            stream.write(_values(entry, calls).astype("<f4").tobytes())
        dataset = matrix.datasets[-1].encode("utf-8", "surrogateescape") if matrix.datasets else b""
        stream.write(struct.pack("<ii", matrix.chunk_count, len(dataset)) + dataset)


def _values(entry: ImportanceEntry, calls: int) -> NDArray[np.float32]:
    """Return means times calls in float32; ones for matrices without a token."""
    counts = entry.counts.astype(np.float32)[:, None]
    seen = counts > 0
    means = np.where(seen, entry.sums / np.where(seen, counts, np.float32(1)), np.float32(1))
    scaled: NDArray[np.float32] = means * np.float32(calls)
    return scaled
