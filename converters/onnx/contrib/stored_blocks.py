"""Weights in blocks of n-bit codes, as onnxruntime stores them, read as Affine rows.

    B            uint8 [rows, blocks, block_size * bits / 8]   codes, low bits first, whole blocks
    scales       float [rows, blocks], or flat
    zero_points  uint8 [rows, ceil(blocks * bits / 8)] packed like the codes, or floats like scales

Nothing is copied: parts are cut out of the stored rows when somebody reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError
from halfbyte.ir.encodings.affine import Affine, unpack_bits
from halfbyte.ir.tensor import ArrayPart, Part, Tensor

Array = NDArray[Any]


def stored_rows(tensor: Tensor, rows: int, start: int, stop: int) -> Array:
    """Return rows [start, stop) of a tensor seen as [rows, rest], in its own dtype."""
    width = tensor.size // max(rows, 1)
    columns = max(tensor.columns, 1)
    if width % columns == 0:
        each = width // columns
        return tensor.decode(start * each, stop * each).reshape(stop - start, width)
    return tensor.numpy().reshape(rows, width)[start:stop]


@dataclass(frozen=True)
class RowPart:
    """Rows of a stored tensor cut to `columns` columns, in the same element type.

    The tensor is seen as [count, rest]; rows `first` to `first + rows` of that are meant.
    """

    source: Tensor
    rows: int
    columns: int
    dtype: np.dtype[Any]
    first: int
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape."""
        return self.rows, self.columns

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop)."""
        found = self._stored(start, stop)[:, : self.columns]
        return np.ascontiguousarray(found).view(self.dtype)

    def _stored(self, start: int, stop: int | None) -> Array:
        last = self.rows if stop is None else min(stop, self.rows)
        return stored_rows(self.source, self.count, self.first + start, self.first + last)


@dataclass(frozen=True)
class CodePart(RowPart):
    """Packed codes of `values` columns: the bytes of padding are cut, its bits cleared."""

    bits: int
    values: int

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop)."""
        found = super().read(start, stop)
        rest = self.values * self.bits % 8
        if rest and found.size and (found[:, -1] >> rest).any():
            found = found.copy()
            found[:, -1] &= (1 << rest) - 1
        return found


@dataclass(frozen=True)
class UnpackedPart(RowPart):
    """Packed zero points, one byte each when read."""

    bits: int

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop)."""
        packed = self._stored(start, stop)
        return np.ascontiguousarray(unpack_bits(packed, self.bits, self.columns))


def affine_from_blocks(
    name: str,
    shape: tuple[int, int],
    bits: int,
    block_size: int,
    codes: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    groups: Array | None = None,
    place: tuple[int, int] | None = None,
) -> Tensor:
    """Return a weight [rows, columns] over stored blocks.

    block_size: 0 for one scale a row. groups: [columns] group of each column. place: the first row
    and the number of all rows, where the tensors hold several weights one after the other.

    Raises:
        UnsupportedError: Affine has no such form.
        GraphError: a tensor holds too little for the sizes.
    """
    rows, columns = shape
    first, count = place or (0, rows)
    blocks = -(-columns // block_size) if block_size else 1
    require_room(codes, count, -(-columns * bits // 8))
    require_room(scales, count, blocks)
    if zero_points is not None:
        packed = getattr(zero_points.encoding, "dtype_name", "") == "uint8"
        require_room(zero_points, count, -(-blocks * bits // 8) if packed else blocks)
    byte, kind = np.dtype(np.uint8), scales.encoding
    scale_dtype = str(getattr(kind, "dtype_name", ""))
    scale_type = np.dtype(getattr(kind, "dtype", np.float32))
    width = -(-columns * bits // 8)
    zero: Literal["none", "uint8", "float"] = "none"
    parts: dict[str, Part] = {
        "codes": CodePart(codes, rows, width, byte, first, count, bits, columns),
        "scales": RowPart(scales, rows, blocks, scale_type, first, count),
    }
    if zero_points is not None and getattr(zero_points.encoding, "dtype_name", "") == "uint8":
        zero = "uint8"
        parts["zero_points"] = UnpackedPart(zero_points, rows, blocks, byte, first, count, bits)
    elif zero_points is not None:
        zero, dtype = "float", np.dtype(getattr(zero_points.encoding, "dtype", byte))
        parts["zero_points"] = RowPart(zero_points, rows, blocks, dtype, first, count)
    if groups is not None:
        parts["g_idx"] = ArrayPart(np.ascontiguousarray(groups[:columns], np.int32))
    encoding = Affine(bits, block_size, zero, scale_dtype, groups is not None)
    return Tensor(name, shape, encoding, parts)


def require_room(tensor: Tensor, rows: int, width: int) -> None:
    """Check that a tensor seen as [rows, rest] has at least `width` columns.

    Raises:
        GraphError: it has not.
    """
    if rows < 1 or width < 1 or tensor.size % rows or tensor.size // rows < width:
        found = f"has {tensor.size} elements, {rows} rows of at least {width} were required"
        raise GraphError(tensor.name, f"{found}; the file is damaged or its sizes are wrong")


def same_source(left: Tensor, right: Tensor) -> bool:
    """Whether two such weights read the same stored codes in the same way."""
    mine, other = left.parts.get("codes"), right.parts.get("codes")
    if not isinstance(mine, CodePart) or not isinstance(other, CodePart):
        return False
    return left.encoding == right.encoding and mine == other and left.shape == right.shape
