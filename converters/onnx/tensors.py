"""TensorProto and SparseTensorProto as lazy tensors; weights stay in their file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.onnx.external_data import ExternalData, ExternalFiles
from halfbyte.converters.onnx.messages import Run, SparseTensorMessage, TensorMessage
from halfbyte.converters.onnx.packed_bits import packed_part, unpack_bits
from halfbyte.converters.onnx.protobuf import Buffer, mapped, numbers, run_length
from halfbyte.errors import FormatError
from halfbyte.ir.dtypes import BITS, ONNX_DTYPES, numpy_dtype
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.tensor import (
    ArrayPart,
    ComputedPart,
    FilePart,
    Part,
    Tensor,
    rows_and_columns,
    tensor_from_array,
)

EXTERNAL = 1
MAX_RANK = 32
MAX_ELEMENTS = 1 << 58
MAX_DENSIFIED = 1 << 30
EAGER_NUMBERS = 1 << 16
COMPLEX = ("complex64", "complex128")
OWN_FIELD = {
    "float32": "float_data",
    "complex64": "float_data",
    "float64": "double_data",
    "complex128": "double_data",
    "int64": "int64_data",
    "uint32": "uint64_data",
    "uint64": "uint64_data",
}


def bits_of(dtype: str) -> int:
    """Return the stored bits of one element."""
    return {"complex64": 64, "complex128": 128}.get(dtype) or BITS[dtype]


class TensorReader:
    """Turns the tensor messages of one file into tensors. `checksums`: SHA-1 by data file."""

    def __init__(self, buffer: Buffer) -> None:
        """Take the mapped file."""
        self.buffer = buffer
        self.files = ExternalFiles(buffer.path)
        self.checksums: dict[str, str] = {}

    def fail(self, message: TensorMessage | SparseTensorMessage, rule: str) -> NoReturn:
        """Raise the error for a broken rule of one tensor."""
        name = message.name if isinstance(message, TensorMessage) else "sparse"
        raise FormatError(self.buffer.path, f"tensor {name!r} {rule}", message.offset)

    def tensor(self, message: TensorMessage, name: str = "") -> Tensor:
        """Return a tensor whose values are read when somebody asks.

        Raises:
            FormatError: type, shape and stored bytes do not agree.
        """
        dtype = self.dtype(message)
        shape = self.shape(message, message.dims, dtype)
        name = name or message.name
        if message.segment is not None:
            self.fail(message, "is one segment of several; save it whole")
        if dtype == "string":
            return tensor_from_array(name, self._strings(message, shape))
        rows, columns = rows_and_columns(shape)
        part = self._part(message, dtype, shape, rows, columns)
        return Tensor(name, shape, Dense(dtype), {"data": part})

    def array(self, message: TensorMessage) -> NDArray[Any]:
        """Return the values of a tensor, copied."""
        return np.array(self.tensor(message).numpy())

    def dtype(self, message: TensorMessage) -> str:
        """Return the dtype name of a tensor message."""
        if message.data_type not in ONNX_DTYPES:
            self.fail(message, f"has element type {message.data_type}, known are 1 to 28")
        return ONNX_DTYPES[message.data_type]

    def shape(
        self, message: TensorMessage | SparseTensorMessage, dims: Sequence[int], dtype: str
    ) -> tuple[int, ...]:
        """Return checked dimensions."""
        if len(dims) > MAX_RANK:
            self.fail(message, f"has {len(dims)} dimensions, at most {MAX_RANK} are allowed")
        if any(dim < 0 for dim in dims):
            self.fail(message, f"has shape {list(dims)}, dimensions >= 0 were required")
        if math.prod(max(1, dim) for dim in dims) > MAX_ELEMENTS:
            self.fail(message, f"has shape {list(dims)}, more values than a file can hold")
        return tuple(dims)

    def _strings(self, message: TensorMessage, shape: tuple[int, ...]) -> NDArray[Any]:
        if message.raw_data is not None or message.external_data:
            self.fail(message, "holds strings as raw bytes, string_data was required")
        count = math.prod(shape)
        if len(message.string_data) != count:
            self.fail(message, f"has {len(message.string_data)} strings, its shape {count}")
        found = np.empty(count, object)
        found[:] = [
            self.buffer.take(span).decode("utf-8", "surrogateescape")
            for span in message.string_data
        ]
        return found.reshape(shape)

    def _part(
        self, message: TensorMessage, dtype: str, shape: tuple[int, ...], rows: int, columns: int
    ) -> Part:
        count = math.prod(shape)
        nbytes = -(-count * bits_of(dtype) // 8)
        if message.data_location == EXTERNAL:
            if message.raw_data is not None or message.runs:
                self.fail(message, "has data both here and in another file")
            place = self.files.locate(message.name, message.external_data, nbytes)
            if place.checksum:
                self.checksums[str(place.path)] = place.checksum
            return stored_part(place, dtype, rows, columns)
        if message.data_location:
            self.fail(message, f"has data location {message.data_location}, known are 0 and 1")
        if message.raw_data is not None:
            if message.runs:
                self.fail(message, "has raw data and numbers, one of them was required")
            offset, length = message.raw_data
            if length != nbytes:
                self.fail(
                    message, f"has {length} raw bytes, its shape {list(shape)} needs {nbytes}"
                )
            return stored_part(ExternalData(self.buffer.path, offset, nbytes), dtype, rows, columns)
        return self._typed_part(message, dtype, count, rows, columns)

    def _typed_part(
        self, message: TensorMessage, dtype: str, count: int, rows: int, columns: int
    ) -> Part:
        """Return the part of a tensor whose values are a protobuf list of numbers."""
        field = OWN_FIELD.get(dtype, "int32_data")
        runs = message.runs or {}
        if set(runs) - {field}:
            self.fail(message, f"of {dtype} has {', '.join(sorted(runs))}, {field} was required")
        run = runs.get(field, Run())
        needed = _numbers_for(dtype, count)
        found = run_length(self.buffer, run)
        if found != needed:
            self.fail(message, f"has {found} numbers in {field}, its shape needs {needed}")
        if run.width and len(run.spans) == 1 and not run.singles:
            place = ExternalData(self.buffer.path, run.spans[0].offset, run.spans[0].length)
            return stored_part(place, dtype, rows, columns)
        if found <= EAGER_NUMBERS:
            values = typed_values(numbers(self.buffer, run), dtype, count)
            return ArrayPart(values.reshape(rows, columns))
        return _decoded_part(self.buffer, run, dtype, rows, columns)

    def sparse(self, message: SparseTensorMessage, name: str = "") -> Tensor:
        """Return a sparse tensor as a dense one that is filled while it is read.

        Raises:
            FormatError: an index lies outside, stands twice, or the parts do not agree.
        """
        if message.values is None:
            self.fail(message, "has no values")
        stored = self.tensor(message.values)
        dtype = self.dtype(message.values)
        shape = self.shape(message, message.dims, dtype)
        values = stored.numpy().reshape(-1)
        count = math.prod(shape)
        if count * numpy_dtype(dtype).itemsize > MAX_DENSIFIED:
            self.fail(
                message, f"has shape {list(shape)}, more than {MAX_DENSIFIED} bytes when dense"
            )
        places = self._places(message, shape, len(values))
        order = np.argsort(places, kind="stable")
        places, values = places[order], np.array(values[order])
        if len(places) and (places[0] < 0 or places[-1] >= count or (np.diff(places) == 0).any()):
            self.fail(message, "has an index outside its shape or twice")
        rows, columns = rows_and_columns(shape)

        def read(start: int, stop: int) -> NDArray[Any]:
            empty = "" if dtype == "string" else 0
            dense = np.full(max(0, stop - start) * columns, empty, values.dtype)
            low, high = np.searchsorted(places, [start * columns, stop * columns])
            dense[places[low:high] - start * columns] = values[low:high]
            return dense.reshape(-1, columns)

        part = ComputedPart(values.dtype, (rows, columns), read)
        return Tensor(name or message.values.name, shape, Dense(dtype), {"data": part})

    def _places(
        self, message: SparseTensorMessage, shape: tuple[int, ...], count: int
    ) -> NDArray[np.int64]:
        """Return the flat index of each value."""
        if message.indices is None or self.dtype(message.indices) != "int64":
            self.fail(message, "has no int64 indices")
        found = self.tensor(message.indices).numpy()
        if found.shape == (count,):
            return np.asarray(found, np.int64)
        if found.shape != (count, len(shape)):
            self.fail(message, f"has indices {list(found.shape)} for {count} values")
        dims = np.array(shape, np.int64)
        if len(found) and ((found < 0) | (found >= dims)).any():
            self.fail(message, "has an index outside its shape or twice")
        strides = np.cumprod([1, *reversed(shape[1:])], dtype=np.int64)[::-1]
        return np.asarray(found @ strides[: len(shape)], np.int64)


def stored_part(place: ExternalData, dtype: str, rows: int, columns: int) -> Part:
    """Return rows x columns elements at a place of a file."""
    kind = numpy_dtype(dtype)
    bits = bits_of(dtype)
    if bits < 8:
        raw = FilePart(place.path, place.offset, np.dtype(np.uint8), (place.length,))
        return packed_part(raw, bits, kind, rows, columns)
    if dtype != "bool":
        return FilePart(place.path, place.offset, kind, (rows, columns))
    flags = FilePart(place.path, place.offset, np.dtype(np.uint8), (rows, columns))
    return ComputedPart(kind, (rows, columns), lambda start, stop: flags.read(start, stop) != 0)


def _numbers_for(dtype: str, count: int) -> int:
    bits = bits_of(dtype)
    if dtype in COMPLEX:
        return 2 * count
    return -(-count * bits // 8) if bits in (2, 4) else count


def typed_values(found: NDArray[Any], dtype: str, count: int) -> NDArray[Any]:
    """Return `count` elements from the numbers of a typed field."""
    kind, bits = numpy_dtype(dtype), bits_of(dtype)
    if dtype in ("float32", "float64", *COMPLEX):
        return np.ascontiguousarray(found).view(kind)
    if dtype == "bool":
        return np.asarray(found != 0)
    if bits in (2, 4):
        return unpack_bits(found.astype(np.uint8), bits)[:count].view(kind)
    if bits == 6:
        return (found & 0x3F).astype(np.uint8).view(kind)
    if kind.kind in "iu":
        return found.astype(kind)
    return found.astype(f"u{kind.itemsize}").view(kind)


def _decoded_part(buffer: Buffer, run: Run, dtype: str, rows: int, columns: int) -> Part:
    """Return a part that decodes a long list of numbers once, when it is first read."""
    path, spans, singles = buffer.path, list(run.spans), list(run.singles)

    @cache
    def decoded() -> NDArray[Any]:
        again = Run(0, run.width, spans, singles)
        with mapped(path) as data:
            found = numbers(Buffer(path, data), again)
        return typed_values(found, dtype, rows * columns).reshape(rows, columns)

    def read(start: int, stop: int) -> NDArray[Any]:
        return decoded()[start:stop]

    return ComputedPart(numpy_dtype(dtype), (rows, columns), read)
