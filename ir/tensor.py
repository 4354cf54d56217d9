"""A weight: name, logical shape, encoding and lazy storage.

Storage is a mapping part name -> `Part`. A part reads ranges of rows on request; nothing is
decoded or loaded before that. A tensor of shape [..., columns] has rows = product of the leading
dimensions (1 for vectors and scalars).
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import FormatError
from halfbyte.ir.dtypes import dtype_of
from halfbyte.ir.encodings.encoding import Array, Encoding
from halfbyte.ir.roles import Role, WeightKey

CHUNK_BYTES = 4 << 20


class Part(Protocol):
    """One stored array; `read` returns rows [start, stop) of its first axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the element type, in native byte order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape."""

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return elements [start, stop) along the first axis; all for a 0-d part."""


@dataclass(frozen=True)
class ArrayPart:
    """A part held in memory."""

    array: Array

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the element type."""
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape."""
        return self.array.shape

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return a view of rows [start, stop)."""
        return self.array if self.array.ndim == 0 else self.array[start:stop]


_Identity = tuple[Path, int, int, int]
_MAPS: weakref.WeakValueDictionary[_Identity, mmap.mmap] = weakref.WeakValueDictionary()


def _map_file(path: Path) -> mmap.mmap:
    """Return the whole file mapped. Parts share the map: a process has only some 65,000 of them."""
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        identity = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        found = _MAPS.get(identity)
        if found is None:
            found = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            _MAPS[identity] = found
        return found


@dataclass(frozen=True)
class FilePart:
    """A part inside a file, mapped on first use. The reader has checked that it lies inside."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    _map: list[Array] = field(default_factory=list, compare=False, repr=False)

    def _mapped(self) -> Array:
        if not self._map:
            if 0 in self.shape:
                self._map.append(np.empty(self.shape, self.dtype))
            else:
                count = math.prod(self.shape) * self.dtype.itemsize
                try:
                    raw = np.frombuffer(_map_file(self.path), np.uint8, count, self.offset)
                except (OSError, ValueError) as error:
                    rule = f"changed or removed after it was opened ({error}); open it again"
                    raise FormatError(self.path, rule, self.offset) from error
                self._map.append(raw.view(self.dtype).reshape(self.shape))
        return self._map[0]

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return a read-only view of rows [start, stop) of the mapped file."""
        mapped = self._mapped()
        return mapped if mapped.ndim == 0 else mapped[start:stop]


@dataclass(frozen=True)
class ComputedPart:
    """A part made on request by `function(start, stop)`; each call may compute anew."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    function: Callable[[int, int], Array]

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop)."""
        length = self.shape[0] if self.shape else 1
        return self.function(start, length if stop is None else min(stop, length))


@dataclass(frozen=True)
class RowOrderPart:
    """Rows of another part in the order `order` gives: row i is source row order[i]."""

    source: Part
    order: NDArray[np.int64]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the element type."""
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape."""
        return (len(self.order), *self.source.shape[1:])

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop) of the new order."""
        wanted = self.order[start:stop]
        if not len(wanted):
            return self.source.read(0, 0)
        low, high = int(wanted.min()), int(wanted.max()) + 1
        return self.source.read(low, high)[wanted - low]


def rows_and_columns(shape: Sequence[int]) -> tuple[int, int]:
    """Return (product of the leading dimensions, last dimension); scalars are 1 x 1."""
    if not shape:
        return 1, 1
    return math.prod(shape[:-1]), int(shape[-1])


@dataclass(frozen=True, eq=False)
class Tensor:
    """A weight as stored. `name` is the container's own; `role`, `layer`, `kind` say what it is."""

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    parts: Mapping[str, Part]
    role: Role | None = None
    layer: int | None = None
    kind: str = "weight"

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return rows_and_columns(self.shape)[0]

    @property
    def columns(self) -> int:
        """Return the length of a row."""
        return rows_and_columns(self.shape)[1]

    @property
    def size(self) -> int:
        """Return the number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the stored bytes."""
        return sum(math.prod(part.shape) * part.dtype.itemsize for part in self.parts.values())

    @property
    def key(self) -> WeightKey | None:
        """Return role, layer and kind, or None for a weight without a role."""
        return None if self.role is None else WeightKey(self.role, self.layer, self.kind)

    def read(self, start: int = 0, stop: int | None = None) -> dict[str, Array]:
        """Return the encoded parts of rows [start, stop); parts that all rows share come whole."""
        specs = self.encoding.part_specs(self.rows, self.columns)
        return {
            name: part.read(start, stop) if specs[name].per_row else part.read()
            for name, part in self.parts.items()
        }

    def decode(self, start: int = 0, stop: int | None = None) -> Array:
        """Return values [rows, columns]: float32 for quantized, own dtype for dense encodings."""
        return self.encoding.decode(self.read(start, stop), self.columns)

    def float32(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return values [rows, columns] as float32."""
        return np.asarray(self.decode(start, stop)).astype(np.float32, copy=False)

    def numpy(self) -> Array:
        """Return all values in the logical shape."""
        return self.decode().reshape(self.shape)

    def row_ranges(self, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) that cover all rows, each about `chunk_bytes` of float32."""
        block_rows = self.encoding.block_shape[0]
        step = max(1, chunk_bytes // max(1, 4 * self.columns) // block_rows) * block_rows
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)

    def take_rows(self, order: NDArray[np.int64]) -> Tensor:
        """Return the tensor with row i taken from row order[i]; values stay encoded.

        order: [rows] int64, a permutation.

        Raises:
            ValueError: a block of the encoding spans several rows.
        """
        if self.encoding.block_shape[0] != 1:
            raise ValueError(f"{self.encoding} spans rows: rows of {self.name} cannot move")
        if len(self.shape) < 2:
            values = self.decode().reshape(-1)[order].reshape(1, -1)
            return replace(self, parts={"data": ArrayPart(values)})
        specs = self.encoding.part_specs(self.rows, self.columns)
        parts = {
            name: RowOrderPart(part, order) if specs[name].per_row else part
            for name, part in self.parts.items()
        }
        return replace(self, parts=parts)

    def renamed(self, name: str) -> Tensor:
        """Return the same weight under another name."""
        return replace(self, name=name)

    def identified(self, key: WeightKey | None) -> Tensor:
        """Return the same weight with role, layer and kind of `key`."""
        if key is None:
            return replace(self, role=None, layer=None, kind="weight")
        return replace(self, role=key.role, layer=key.layer, kind=key.kind)


def tensor_from_array(name: str, array: Array) -> Tensor:
    """Return a dense tensor that holds `array` (kept, not copied) under `name`."""
    from halfbyte.ir.encodings.dense import Dense

    whole = np.ascontiguousarray(array)
    rows, columns = rows_and_columns(array.shape)
    part = ArrayPart(whole.reshape(rows, columns))
    return Tensor(name, tuple(array.shape), Dense(dtype_of(array)), {"data": part})
