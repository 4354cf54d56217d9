"""Constants as ONNX stores them: little-endian bytes by ranges of rows, sub-byte types packed.

Elements of less than a byte lie one after the other from the low bits up, without padding between
rows. A constant is never held whole: `jobs` gives its bytes piece by piece. Constants whose parts
are the same object, or views of one part through `ReshapedPart`, are stored once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedError
from halfbyte.ir.dtypes import BITS
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.part_views import ReshapedPart
from halfbyte.ir.tensor import CHUNK_BYTES, FilePart, Part, Tensor
from halfbyte.ir.transposed import TransposedPart

BLOCK_BYTES = 2 * CHUNK_BYTES  # of a matrix that is transposed while it is written
TILE = 128
Bytes = NDArray[np.uint8]


class Piece(NamedTuple):
    """Bytes [pieces, length] whose row i belongs at `offset + i * stride` of the constant."""

    offset: int
    stride: int
    raw: Bytes


Job = Callable[[], Piece]


def pack_elements(array: Array, bits: int) -> Bytes:
    """Return the elements' bytes in memory order; below 8 bits, the low `bits` of each, packed."""
    flat: Bytes = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if bits >= 8:
        return flat
    flat = np.bitwise_and(flat, np.uint8((1 << bits) - 1))
    if 8 % bits:
        spread = np.unpackbits(flat[:, None], axis=1, count=bits, bitorder="little")
        return np.packbits(spread.reshape(-1), bitorder="little")
    per_byte = 8 // bits
    padded = np.zeros(-(-flat.size // per_byte) * per_byte, np.uint8)
    padded[: flat.size] = flat
    groups = padded.reshape(-1, per_byte)
    packed: Bytes = groups[:, 0].copy()
    for place in range(1, per_byte):
        packed |= groups[:, place] << (bits * place)
    return packed


@dataclass(frozen=True)
class Initializer:
    """A dense constant under the name that it has in the file."""

    name: str
    tensor: Tensor

    @property
    def dtype(self) -> str:
        """Return the dtype name.

        Raises:
            UnsupportedError: the constant is still encoded.
        """
        encoding = self.tensor.encoding
        if not isinstance(encoding, Dense):
            advice = "lower the graph first"
            raise UnsupportedError(f"{encoding} in ONNX", f"constant {self.name!r}", advice=advice)
        return encoding.dtype_name

    @property
    def is_text(self) -> bool:
        """Whether the elements are strings, which are no raw bytes."""
        return self.dtype == "string"

    @property
    def nbytes(self) -> int:
        """Return the stored bytes; of strings, those of the text."""
        if self.is_text:
            return sum(len(text) for text in self.texts())
        return -(-self.tensor.size * BITS[self.dtype] // 8)

    @property
    def part(self) -> Part:
        """Return the one part, without views around it."""
        part = self.tensor.parts["data"]
        while isinstance(part, ReshapedPart):
            part = part.source
        return part

    @property
    def identity(self) -> object:
        """Return what two constants with the same stored bytes have in common."""
        part = self.part
        if isinstance(part, FilePart):
            return part.path, part.offset, self.nbytes, self.dtype
        return id(part), self.nbytes, self.dtype

    def texts(self) -> list[bytes]:
        """Return the elements of a text constant as UTF-8."""
        values = self.tensor.parts["data"].read().reshape(-1)
        return [str(text).encode("utf-8", "surrogateescape") for text in values]

    def raw(self) -> bytes:
        """Return all bytes of a small constant."""
        return pack_elements(self.tensor.parts["data"].read(), BITS[self.dtype]).tobytes()

    def jobs(self) -> Iterator[Job]:
        """Yield functions that compute the bytes, a few MB at a time."""
        part, bits = self.part, BITS[self.dtype]
        if not self.nbytes:
            return
        if isinstance(part, TransposedPart) and part.shape[1] * bits % 8 == 0:
            yield from _transposed(part.source, bits)
            return
        length = part.shape[0] if part.shape else 1
        row_bits = self.tensor.size // max(1, length) * bits
        unit = 8 // math.gcd(8, row_bits)
        step = -(-max(1, 8 * CHUNK_BYTES // max(1, row_bits)) // unit) * unit
        if isinstance(part, TransposedPart):
            step = length
        for start in range(0, length, step):
            yield partial(_contiguous, part, bits, start, min(start + step, length), row_bits)


def _contiguous(part: Part, bits: int, start: int, stop: int, row_bits: int) -> Piece:
    raw = pack_elements(part.read(start, stop), bits)
    return Piece(start * row_bits // 8, raw.size, raw.reshape(1, -1))


def _transposed(source: Part, bits: int) -> Iterator[Job]:
    """Read blocks of rows once; each fills a column strip of the transpose."""
    rows, columns = source.shape
    unit = 8 // math.gcd(8, bits)
    step = -(-max(1, BLOCK_BYTES // max(1, columns * source.dtype.itemsize)) // unit) * unit
    for start in range(0, rows, step):
        yield partial(_strip, source, bits, start, min(start + step, rows), rows)


def _strip(source: Part, bits: int, start: int, stop: int, rows: int) -> Piece:
    block = _turned(source.read(start, stop))
    raw = pack_elements(block, bits).reshape(len(block), -1)
    return Piece(start * bits // 8, rows * bits // 8, raw)


def _turned(block: Array) -> Array:
    """Return the transpose, copied tile by tile, so that both sides stay in the cache."""
    rows, columns = block.shape
    made = np.empty((columns, rows), block.dtype)
    for column in range(0, columns, TILE):
        for row in range(0, rows, TILE):
            tile = block[row : row + TILE, column : column + TILE]
            made[column : column + TILE, row : row + TILE] = tile.T
    return made
