"""Write a GGUF file: version 3, little-endian, tensors in table order, streamed by ranges of rows.

The layout depends on the metadata and the tensors only, never on the number of threads.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from halfbyte.converters.format import Progress
from halfbyte.converters.gguf.ggml_types import (
    DEFAULT_ALIGNMENT,
    MAX_NAME_BYTES,
    GgmlType,
    ValueType,
    ggml_type_of,
)
from halfbyte.converters.gguf.metadata_value import MetadataValue, pack_pair, pack_string
from halfbyte.engine import ordered_map
from halfbyte.errors import UnsupportedError
from halfbyte.files import EarlySync, atomic_file
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.tensor import Tensor

VERSION = 3
CHUNK_BYTES = 4 << 20
MAX_DIMS = 4


@dataclass(frozen=True)
class _Range:
    tensor: Tensor
    start: int
    stop: int
    padding: int


def alignment_of(metadata: Mapping[str, MetadataValue]) -> int:
    """Return the alignment that the metadata fixes.

    Raises:
        UnsupportedError: it is no power of two of type u32.
    """
    entry = metadata.get("general.alignment")
    if entry is None:
        return DEFAULT_ALIGNMENT
    value = entry.value
    if entry.type is not ValueType.UINT32 or value <= 0 or value & (value - 1):
        raise UnsupportedError(
            f"alignment {value!r}", "general.alignment", ["powers of two as u32"]
        )
    return int(value)


def stored_type(tensor: Tensor) -> GgmlType:
    """Return the type that holds a tensor as it is.

    Raises:
        UnsupportedError: GGUF has none for its encoding, its shape or its name.
    """
    where = f"tensor {tensor.name!r}"
    kind = ggml_type_of(tensor.encoding)
    if kind is None:
        advice = "choose another type with --type"
        raise UnsupportedError(f"{tensor.encoding} in GGUF", where, advice=advice)
    if len(tensor.shape) > MAX_DIMS:
        raise UnsupportedError(f"{len(tensor.shape)} dimensions in GGUF", where, ["1 to 4"])
    if not 0 < len(tensor.name.encode()) < MAX_NAME_BYTES or "\0" in tensor.name:
        raise UnsupportedError("this name in GGUF", where, ["1 to 63 bytes without NUL"])
    if tensor.columns % kind.block:
        what = f"{kind.name} with rows of {tensor.columns}"
        raise UnsupportedError(what, where, [f"multiples of {kind.block}"])
    return kind


def stored_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's data, without padding."""
    return tensor.rows * stored_type(tensor).row_bytes(tensor.columns)


def _padding(length: int, alignment: int) -> int:
    return -length % alignment


def header_bytes(
    metadata: Mapping[str, MetadataValue], tensors: Sequence[Tensor], alignment: int
) -> bytes:
    """Return everything before the tensors' data, padding included."""
    pieces = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    pieces += [pack_pair(key, entry) for key, entry in metadata.items()]
    offset = 0
    for tensor in tensors:
        dims = tuple(reversed(tensor.shape))
        pieces.append(pack_string(tensor.name))
        pieces.append(struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        pieces.append(struct.pack("<IQ", stored_type(tensor).id, offset))
        length = stored_bytes(tensor)
        offset += length + _padding(length, alignment)
    whole = b"".join(pieces)
    return whole + bytes(_padding(len(whole), alignment)) if tensors else whole


def _ranges(tensors: Sequence[Tensor], alignment: int) -> Iterator[_Range]:
    for tensor in tensors:
        length = stored_bytes(tensor)
        if not length:
            continue
        step = max(1, CHUNK_BYTES // (length // tensor.rows))
        for start in range(0, tensor.rows, step):
            stop = min(start + step, tensor.rows)
            last = stop == tensor.rows
            yield _Range(tensor, start, stop, _padding(length, alignment) if last else 0)


def _little_endian(data: Array) -> Array:
    """Return the bytes of an array in memory order, least significant byte first."""
    contiguous = np.ascontiguousarray(data)
    width = contiguous.dtype.itemsize
    flat = contiguous.reshape(-1).view(np.uint8)
    if width > 1 and sys.byteorder == "big":  # pragma: no cover
        flat = np.ascontiguousarray(flat.reshape(-1, width)[:, ::-1]).reshape(-1)
    return flat


def _encoded(piece: _Range) -> tuple[Array, int]:
    data = piece.tensor.read(piece.start, piece.stop)["data"]
    return _little_endian(data), piece.padding


def write_gguf(
    path: Path,
    metadata: Mapping[str, MetadataValue],
    tensors: Sequence[Tensor],
    threads: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write metadata and tensors, encoded as they are, in the order given.

    `progress` is called with the number of bytes of each piece written.

    Raises:
        UnsupportedError: GGUF cannot hold a tensor's encoding, shape or name.
    """
    with atomic_file(path) as stream:
        write_stream(stream, metadata, tensors, threads, progress)


def write_stream(
    stream: IO[bytes],
    metadata: Mapping[str, MetadataValue],
    tensors: Sequence[Tensor],
    threads: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write a whole file to a stream; see `write_gguf`."""
    alignment = alignment_of(metadata)
    stream.write(header_bytes(metadata, tensors, alignment))
    _write_data(stream, tensors, alignment, threads, progress)


def file_bytes(metadata: Mapping[str, MetadataValue], tensors: Sequence[Tensor]) -> int:
    """Return the size of the file that `write_gguf` would write.

    Raises:
        UnsupportedError: GGUF cannot hold a tensor's encoding, shape or name.
    """
    alignment = alignment_of(metadata)
    lengths = [stored_bytes(tensor) for tensor in tensors]
    data = sum(length + _padding(length, alignment) for length in lengths)
    return len(header_bytes(metadata, tensors, alignment)) + data


def _write_data(
    stream: IO[bytes],
    tensors: Sequence[Tensor],
    alignment: int,
    threads: int,
    progress: Progress | None,
) -> None:
    early = EarlySync(stream)
    try:
        for data, padding in ordered_map(_encoded, _ranges(tensors, alignment), threads):
            stream.write(data.data)
            if padding:
                stream.write(bytes(padding))
            early.wrote(data.nbytes)
            if progress is not None:
                progress(data.nbytes)
    finally:
        early.finish()
