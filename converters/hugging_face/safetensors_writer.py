"""Writing safetensors: arrays are computed by row ranges in worker threads and written in order.

The order of the arrays (alignment falling, then name) and the header's bytes are those of the
safetensors package, so the same arrays give the same file from either.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from halfbyte.converters.format import Progress
from halfbyte.converters.hugging_face.safetensors import (
    CODES,
    DTYPES,
    MAX_HEADER_BYTES,
    METADATA_KEY,
)
from halfbyte.engine import ordered_map
from halfbyte.errors import HalfbyteError, UnsupportedError
from halfbyte.ir.encodings.encoding import Array

_ALIGNMENT = 8
_CODE_OF = {dtype: code for code, dtype in DTYPES.items()}
_ORDER = {code: index for index, code in enumerate(DTYPES)}

Job = Callable[[], Sequence[tuple[str, Array]]]
FinishMetadata = Callable[[Mapping[str, str]], dict[str, str]]


@dataclass(frozen=True)
class ArraySpec:
    """An array to be written: name, dtype and shape in the header."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def code(self) -> str:
        """Return the dtype's name in safetensors.

        Raises:
            UnsupportedError: safetensors has no such type.
        """
        code = _CODE_OF.get(self.dtype)
        if code is None:
            raise UnsupportedError(f"dtype {self.dtype.name}", f"array {self.name!r}", list(CODES))
        return code

    @property
    def nbytes(self) -> int:
        """Return the bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def header_bytes(specs: Sequence[ArraySpec], metadata: Mapping[str, str]) -> bytes:
    """Return length and header of a file that holds `specs` in this order.

    Raises:
        HalfbyteError: the header passes the 100 MB that readers accept.
    """
    header: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
    begin = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": spec.code,
            "shape": list(spec.shape),
            "data_offsets": [begin, begin + spec.nbytes],
        }
        begin += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise HalfbyteError(
            f"safetensors header: {len(text)} bytes, at most {MAX_HEADER_BYTES} are allowed; "
            "write shards"
        )
    return struct.pack("<Q", len(text)) + text


def in_file_order(specs: Iterable[ArraySpec]) -> list[ArraySpec]:
    """Return the arrays as they lie in the file: widest types first, then by name."""
    return sorted(specs, key=lambda spec: (-_ORDER[spec.code], spec.name))


class _Cursor:
    """Where the next bytes of one array go, and the hash of those written."""

    def __init__(self, offset: int, nbytes: int, hashed: bool) -> None:
        self.offset = offset
        self.end = offset + nbytes
        self.digest = hashlib.sha256() if hashed else None

    def write(self, stream: IO[bytes], raw: memoryview, position: int) -> int:
        """Write the next bytes; take and return the stream's position."""
        if position != self.offset:
            stream.seek(self.offset)
        stream.write(raw)
        self.offset += len(raw)
        if self.digest is not None:
            self.digest.update(raw)
        return self.offset


def raw_bytes(array: Array) -> memoryview:
    """Return the little-endian bytes of an array, without a copy where it is contiguous."""
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)


def write_safetensors(
    stream: IO[bytes],
    specs: Sequence[ArraySpec],
    metadata: Mapping[str, str],
    jobs: Iterable[Job],
    *,
    threads: int = 1,
    progress: Progress | None = None,
    finish: FinishMetadata | None = None,
) -> None:
    """Write a file; each job returns the next rows of some arrays, in the order of the rows.

    `finish` takes the SHA-256 of every array by name and returns the final metadata, which must be
    as long as `metadata`: so arrays are computed once and hashed on their way out.
    """
    ordered = in_file_order(specs)
    head = header_bytes(ordered, metadata)
    stream.write(head)
    cursors: dict[str, _Cursor] = {}
    position = len(head)
    for spec in ordered:
        cursors[spec.name] = _Cursor(position, spec.nbytes, finish is not None)
        position += spec.nbytes
    written = len(head)
    for chunks in ordered_map(_run, jobs, threads):
        for name, array in chunks:
            raw = raw_bytes(array)
            written = cursors[name].write(stream, raw, written)
            if progress is not None:
                progress(len(raw))
    unfinished = [name for name, cursor in cursors.items() if cursor.offset != cursor.end]
    assert not unfinished, f"arrays not filled exactly: {unfinished[:5]}"
    if finish is not None:
        digests = {n: c.digest.hexdigest() for n, c in cursors.items() if c.digest is not None}
        final = header_bytes(ordered, finish(digests))
        assert len(final) == len(head), "final metadata has another length"
        stream.seek(0)
        stream.write(final)


def _run(job: Job) -> Sequence[tuple[str, Array]]:
    return job()
