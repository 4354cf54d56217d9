"""torch checkpoints made without torch: the zip layout, with pickles put together by hand."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

STORAGE_TYPES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


def text(value: str) -> bytes:
    raw = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if 0 <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return pickle.LONG4 + struct.pack("<i", len(raw)) + raw


def named(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def storage(kind: str, key: str, count: int) -> bytes:
    fields = [text("storage"), named("torch", kind), text(key), text("cpu"), number(count)]
    return tuple_of(*fields) + pickle.BINPERSID


def tensor(stored: bytes, first: int, shape: Sequence[int], strides: Sequence[int]) -> bytes:
    arguments = tuple_of(
        stored,
        number(first),
        tuple_of(*map(number, shape)),
        tuple_of(*map(number, strides)),
        pickle.NEWFALSE,
        named("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,
    )
    return named("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def state_dict(items: Mapping[str, bytes]) -> bytes:
    body = b"".join(text(name) + value for name, value in items.items())
    return b"\x80\x02" + pickle.EMPTY_DICT + pickle.MARK + body + pickle.SETITEMS + pickle.STOP


def contiguous_strides(shape: Sequence[int]) -> list[int]:
    return [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]


def arrays_pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the pickle of a state dict in which each array has its own storage."""
    items = {}
    for index, (name, array) in enumerate(arrays.items()):
        stored = storage(STORAGE_TYPES[array.dtype.name], str(index), array.size)
        items[name] = tensor(stored, 0, array.shape, contiguous_strides(array.shape))
    return state_dict(items)


def write_zip(
    path: Path,
    content: bytes,
    storages: Mapping[str, bytes],
    *,
    extra: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Write the archive that torch.save would."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", b"little")
        for key, raw in storages.items():
            archive.writestr(f"archive/data/{key}", raw)
        for name, raw in (extra or {"archive/version": b"3\n"}).items():
            archive.writestr(name, raw)
    return path


def write_checkpoint(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write arrays as a checkpoint."""
    storages = {str(i): np.ascontiguousarray(a).tobytes() for i, a in enumerate(arrays.values())}
    return write_zip(path, arrays_pickle(arrays), storages)


def protocol_two(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)
