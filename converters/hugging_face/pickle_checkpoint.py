"""pytorch_model.bin through a restricted unpickler; nothing of torch is imported or run.

The file is a zip archive of stored (uncompressed) entries: `NAME/data.pkl` describes the tensors,
`NAME/data/KEY` holds the bytes of each storage, which are mapped where they lie. Only the opcodes
and the names that a state dict needs are admitted, with stand-ins of our own. Python's own
unpickler class in pure Python is used because a hostile memo index makes the C one allocate.

Source: torch/serialization.py, torch/_utils.py (`_rebuild_tensor_v2`, `_rebuild_parameter`).
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from halfbyte.converters.hugging_face.safetensors import CODES, DTYPES, MAX_DIMENSIONS
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError
from halfbyte.ir.tensor import FilePart, Part, rows_and_columns
from halfbyte.ir.transposed import TransposedPart

MAX_PICKLE_BYTES = 32 << 20
MAX_ENTRIES = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
_TORCH_DTYPES = {"float": "float32", "double": "float64", "half": "float16", "long": "int64"} | {
    name: name for name in CODES
}
_OPCODES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP MEMOIZE BINPUT LONG_BINPUT PUT BINGET LONG_BINGET GET
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 INT LONG1 LONG4 LONG BINFLOAT BINUNICODE
    SHORT_BINUNICODE BINUNICODE8 UNICODE BINSTRING SHORT_BINSTRING EMPTY_TUPLE TUPLE TUPLE1 TUPLE2
    TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL
    REDUCE BUILD BINPERSID
"""


@dataclass(frozen=True)
class StoredArray:
    """A tensor of the checkpoint: logical shape and a part [rows, columns]."""

    shape: tuple[int, ...]
    part: Part


@dataclass(frozen=True)
class _DType:
    name: str


@dataclass(frozen=True)
class _Storage:
    offset: int
    nbytes: int
    dtype_name: str


class _StateDict(dict[str, Any]):
    """Stands in for collections.OrderedDict; its attributes are ignored."""


def read_pickle_checkpoint(path: Path) -> dict[str, StoredArray]:
    """Return the tensors of a zip checkpoint by name, mapped.

    Raises:
        FormatError: the archive or the pickle breaks a rule, or names a global outside the list.
        UnsupportedError: the file has torch's old layout, big-endian data or scattered strides.
    """
    with path.open("rb") as stream:
        start = stream.read(len(_LEGACY_MAGIC))
    if start == _LEGACY_MAGIC:
        raise UnsupportedError(
            "torch's layout from before version 1.6",
            str(path),
            ["zip checkpoints", "safetensors"],
            "load and save it again with torch, or convert it to safetensors",
        )
    if not start.startswith(_ZIP_MAGIC):
        raise FormatError(path, "neither a zip archive nor a torch checkpoint; it is damaged", 0)
    try:
        return _read_archive(path)
    except (zipfile.BadZipFile, NotImplementedError, struct.error, OverflowError) as error:
        raise FormatError(path, f"the zip archive is damaged ({error})") from None
    except (EOFError, RuntimeError, OSError, ValueError) as error:
        raise FormatError(path, f"the zip archive cannot be read ({error})") from None


def _read_archive(path: Path) -> dict[str, StoredArray]:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        if len(infos) > MAX_ENTRIES:
            raise FormatError(path, f"{len(infos)} entries, at most {MAX_ENTRIES} are allowed")
        pickles = [info for info in infos if info.filename.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise FormatError(path, f"{len(pickles)} entries NAME/data.pkl, one was required")
        root = pickles[0].filename.split("/")[0]
        entries = {info.filename: info for info in infos}
        if len(entries) != len(infos):
            raise FormatError(path, "an entry name stands twice in the archive")
        with path.open("rb") as stream:
            size = path.stat().st_size
            spans = {n: _span(path, stream, size, info) for n, info in entries.items()}
            _require_little_endian(path, stream, spans.get(f"{root}/byteorder"))
            content = _slice(path, stream, spans[pickles[0].filename])
    prefix = f"{root}/data/"
    storages = {n[len(prefix) :]: span for n, span in spans.items() if n.startswith(prefix)}
    return _state_dict(path, _Unpickler(path, content, storages).result())


def _require_little_endian(path: Path, stream: Any, span: tuple[int, int] | None) -> None:
    if span is not None and (span[1] > 16 or _slice(path, stream, span) != b"little"):
        raise UnsupportedError("a byte order other than little", str(path), ["little"])


def _span(path: Path, stream: Any, size: int, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Return (offset, bytes) of a stored entry, read from its local header."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise FormatError(path, f"entry {info.filename!r} is compressed; torch stores it plainly")
    stream.seek(info.header_offset)
    head = stream.read(30)
    if len(head) != 30 or head[:4] != _ZIP_MAGIC:
        raise FormatError(path, f"entry {info.filename!r} has no local header", info.header_offset)
    _, name_length, extra_length = _LOCAL_HEADER.unpack(head)
    offset = info.header_offset + 30 + name_length + extra_length
    if info.file_size != info.compress_size or offset + info.file_size > size:
        raise FormatError(path, f"entry {info.filename!r} ends behind the file's end", offset)
    return offset, info.file_size


def _slice(path: Path, stream: Any, span: tuple[int, int]) -> bytes:
    offset, length = span
    if length > MAX_PICKLE_BYTES:
        raise FormatError(path, f"data.pkl has {length} bytes, at most {MAX_PICKLE_BYTES}", offset)
    stream.seek(offset)
    return bytes(stream.read(length))


def _state_dict(path: Path, loaded: Any) -> dict[str, StoredArray]:
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise FormatError(path, f"holds a {type(loaded).__name__}, a dict of tensors was required")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, StoredArray):
            raise FormatError(
                path, f"entry {str(name)[:80]!r} is a {type(value).__name__}, not a tensor"
            )
    return dict(loaded)


class _Unpickler(pickle._Unpickler):
    """Builds dicts, lists, tuples, numbers, strings and tensors; refuses all else."""

    def __init__(self, path: Path, content: bytes, storages: Mapping[str, tuple[int, int]]) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self.path = path
        self.storages = storages

    def result(self) -> Any:
        """Return the unpickled object.

        Raises:
            FormatError: the pickle is damaged or asks for something that is not admitted.
        """
        try:
            return self.load()
        except HalfbyteError:
            raise
        except RecursionError:
            self.reject("the pickle is nested too deeply")
        except Exception as error:  # any exception here has the file as its cause
            self.reject(f"the pickle is damaged ({type(error).__name__}: {error})")

    def reject(self, rule: str) -> NoReturn:
        raise FormatError(self.path, rule)

    def find_class(self, module: str, name: str) -> Any:
        """Return our stand-in for an admitted global."""
        if (module, name) == ("collections", "OrderedDict"):
            return _empty_dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.rebuild
        if (module, name) == ("torch._utils", "_rebuild_tensor_v3"):
            return self.rebuild_untyped
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _first
        if (module, name) == ("torch", "Size"):
            return _first
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _DType(_STORAGES[name])
        if module == "torch" and name in _TORCH_DTYPES:
            return _DType(_TORCH_DTYPES[name])
        self.reject(
            f"the pickle names {f'{module}.{name}'[:80]!r}, which a state dict does not need; "
            "do not load this file"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the storage that ("storage", type, key, location, count) names."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            self.reject(f"persistent id {type(pid).__name__} is not a storage")
        _, dtype, key, _, count = pid
        if not isinstance(dtype, _DType) or type(count) is not int or not isinstance(key, str):
            self.reject("a storage has a wrong type, key or count")
        if key not in self.storages:
            self.reject(f"storage {key[:80]!r} is missing from the archive")
        offset, nbytes = self.storages[key]
        if not 0 <= count * _numpy(dtype.name).itemsize <= nbytes:
            self.reject(f"storage {key!r} claims {count} values, its entry has {nbytes} bytes")
        return _Storage(offset, nbytes, dtype.name)

    def rebuild(
        self, storage: Any, first: Any, shape: Any, strides: Any, *_ignored: Any
    ) -> StoredArray:
        """Return the tensor that starts at value `first` of a storage."""
        if not isinstance(storage, _Storage) or type(first) is not int or first < 0:
            self.reject("a tensor has a wrong storage or offset")
        for counts in (shape, strides):
            if not _is_counts(counts):
                self.reject("a tensor's shape or strides are not tuples of counts")
        if len(shape) != len(strides):
            self.reject("a tensor has not as many strides as dimensions")
        dtype = _numpy(storage.dtype_name)
        end = (first + math.prod(shape)) * dtype.itemsize
        if end > storage.nbytes:
            self.reject(f"a tensor ends at byte {end} of a storage of {storage.nbytes}")
        offset = storage.offset + first * dtype.itemsize
        if _is_contiguous(shape, strides):
            part = FilePart(self.path, offset, dtype, rows_and_columns(shape))
            return StoredArray(shape, part)
        if len(shape) == 2 and _is_contiguous(shape[::-1], strides[::-1]):
            part = FilePart(self.path, offset, dtype, shape[::-1])
            return StoredArray(shape, TransposedPart(part))
        raise UnsupportedError(
            f"a tensor of shape {shape} with strides {strides}",
            str(self.path),
            ["contiguous", "transposed"],
            "save contiguous tensors",
        )

    def rebuild_untyped(
        self,
        storage: Any,
        first: Any,
        shape: Any,
        strides: Any,
        _grad: Any,
        _hooks: Any,
        dtype: Any,
        *_ignored: Any,
    ) -> StoredArray:
        """Return a tensor of dtype `dtype` over a storage of bytes."""
        if not isinstance(storage, _Storage) or not isinstance(dtype, _DType):
            self.reject("a tensor has a wrong storage or dtype")
        typed = _Storage(storage.offset, storage.nbytes, dtype.name)
        return self.rebuild(typed, first, shape, strides)


def _is_counts(value: Any) -> bool:
    if not isinstance(value, tuple) or len(value) > MAX_DIMENSIONS:
        return False
    return all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _numpy(dtype_name: str) -> np.dtype[Any]:
    return DTYPES[CODES[dtype_name]]


def _empty_dict() -> _StateDict:
    return _StateDict()


def _first(value: Any, *_ignored: Any) -> Any:
    return value


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for dim, stride in zip(reversed(shape), reversed(strides), strict=True):
        if dim != 1 and stride != expected:
            return False
        expected *= max(1, dim)
    return True


def _set_item(unpickler: Any) -> None:
    value = unpickler.stack.pop()
    key = unpickler.stack.pop()
    _put(unpickler, unpickler.stack[-1], [key, value])


def _set_items(unpickler: Any) -> None:
    items = unpickler.pop_mark()
    _put(unpickler, unpickler.stack[-1], items)


def _dict(unpickler: Any) -> None:
    items = unpickler.pop_mark()
    found: dict[Any, Any] = {}
    _put(unpickler, found, items)
    unpickler.append(found)


def _put(unpickler: Any, target: Any, items: list[Any]) -> None:
    """Admit only strings and integers as keys: hashing a nested tuple may take for ever."""
    if not isinstance(target, dict):
        unpickler.reject("items are set on something that is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, int)):
            unpickler.reject("a dict has a key that is neither a name nor a number")
        target[key] = value


def _build(unpickler: Any) -> None:
    unpickler.stack.pop()
    if not isinstance(unpickler.stack[-1], _StateDict):
        unpickler.reject("state is set on something that is no state dict")


def _refuse(opcode: int) -> Callable[[Any], None]:
    def refuse(unpickler: Any) -> None:
        unpickler.reject(f"pickle opcode {bytes([opcode])!r} is not one that a state dict needs")

    return refuse


def _dispatch() -> dict[int, Callable[[Any], None]]:
    allowed = {getattr(pickle, name)[0] for name in _OPCODES.split()}
    table: dict[int, Callable[[Any], None]] = {}
    for opcode, load in pickle._Unpickler.dispatch.items():
        table[opcode] = load if opcode in allowed else _refuse(opcode)
    table[pickle.SETITEM[0]] = _set_item
    table[pickle.SETITEMS[0]] = _set_items
    table[pickle.DICT[0]] = _dict
    table[pickle.BUILD[0]] = _build
    return table


_Unpickler.dispatch = _dispatch()
