"""Parts over the words of compressed-tensors; old words hold whole codes only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.hugging_face.checkpoints.words import BYTE, WORD_BITS, unpack_words
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


@dataclass(frozen=True)
class ColumnZeros:
    """Zero points [groups, words] packed along the outputs, as bytes [outputs, groups]."""

    source: Part
    bits: int
    outputs: int
    dense: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return uint8."""
        return BYTE

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (outputs, groups)."""
        return self.outputs, self.source.shape[0]

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return outputs [start, stop)."""
        stop = self.outputs if stop is None else min(stop, self.outputs)
        unpack = unpack_words if self.dense else unpack_whole
        # Words and codes share a border at every `unit` outputs, in either packing.
        unit = WORD_BITS if self.dense else codes_in(self.bits)
        step = self.bits if self.dense else 1
        first, last = start // unit, -(-stop // unit)
        words = self.source.read()[:, first * step : last * step]
        codes = unpack(words, self.bits, min(stop, last * unit) - first * unit)
        return np.ascontiguousarray(codes[:, start - first * unit :].T)
