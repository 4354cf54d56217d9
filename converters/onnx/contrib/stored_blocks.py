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
    """Rows of a stored tensor cut to `columns` columns, in the same element type."""

    source: Tensor
    rows: int
    columns: int
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape."""
        return self.rows, self.columns

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop)."""
        last = self.rows if stop is None else min(stop, self.rows)
        found = stored_rows(self.source, self.rows, start, last)[:, : self.columns]
        return np.ascontiguousarray(found).view(self.dtype)


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
        last = self.rows if stop is None else min(stop, self.rows)
        packed = stored_rows(self.source, self.rows, start, last)
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
) -> Tensor:
    """Return a weight [rows, columns] over stored blocks; groups: [columns] group of each column.

    Raises:
        UnsupportedError: Affine has no such form.
    """
    rows, columns = shape
    blocks = -(-columns // block_size)
    byte, kind = np.dtype(np.uint8), scales.encoding
    scale_dtype = str(getattr(kind, "dtype_name", ""))
    zero: Literal["none", "uint8", "float"] = "none"
    parts: dict[str, Part] = {
        "codes": CodePart(codes, rows, -(-columns * bits // 8), byte, bits, columns),
        "scales": RowPart(scales, rows, blocks, np.dtype(getattr(kind, "dtype", np.float32))),
    }
    if zero_points is not None:
        packed = getattr(zero_points.encoding, "dtype_name", "") == "uint8"
        zero = "uint8" if packed else "float"
        dtype = np.dtype(getattr(zero_points.encoding, "dtype", byte))
        parts["zero_points"] = (
            UnpackedPart(zero_points, rows, blocks, byte, bits)
            if packed
            else RowPart(zero_points, rows, blocks, dtype)
        )
    if groups is not None:
        parts["g_idx"] = ArrayPart(np.ascontiguousarray(groups[:columns], np.int32))
    encoding = Affine(bits, block_size, zero, scale_dtype, groups is not None)
    return Tensor(name, shape, encoding, parts)


def same_source(left: Tensor, right: Tensor) -> bool:
    """Whether two such weights read the same stored codes in the same way."""
    mine, other = left.parts.get("codes"), right.parts.get("codes")
    if not isinstance(mine, CodePart) or not isinstance(other, CodePart):
        return False
    return left.encoding == right.encoding and mine == other and left.shape == right.shape
