"""Parts over the words of compressed-tensors; old words hold whole codes only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.hugging_face.checkpoints.words import BYTE, WORD_BITS
from halfbyte.ir.encodings.affine import pack_bits
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.tensor import Part


def codes_in(bits: int) -> int:
    """Return the whole codes that a word holds."""
    return WORD_BITS // bits


def unpack_whole(words: Array, bits: int, columns: int) -> NDArray[np.uint8]:
    """Return codes [rows, columns] of words [rows, words] that hold whole codes."""
    unsigned = np.ascontiguousarray(words).view(np.uint32)
    shifts = np.arange(codes_in(bits), dtype=np.uint32) * np.uint32(bits)
    lanes = (unsigned[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    codes: NDArray[np.uint8] = lanes.reshape(len(words), -1)[:, :columns].astype(np.uint8)
    return codes


@dataclass(frozen=True)
class RowCodes:
    """Words of whole codes [rows, words] as a dense stream of bits."""

    source: Part
    bits: int
    columns: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return uint8."""
        return BYTE

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (rows, bytes of a row)."""
        return self.source.shape[0], -(-self.columns * self.bits // 8)

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop)."""
        codes = unpack_whole(self.source.read(start, stop), self.bits, self.columns)
        return pack_bits(codes, self.bits)
