"""Codes in 32-bit words: one dense stream of bits, lowest first, whatever the width of a code.

Four little-endian bytes make a word, so a row of words is a row of Affine's bytes, padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.affine import pack_bits, unpack_bits
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.tensor import Part

WORD_BITS = 32
WORD = np.dtype(np.int32)
BYTE = np.dtype(np.uint8)


def word_count(codes: int, bits: int) -> int:
    """Return the words that hold `codes` codes of `bits` bits."""
    return -(-codes * bits // WORD_BITS)


def as_words(packed: NDArray[np.uint8], words: int) -> NDArray[np.int32]:
    """Return rows of bytes [rows, width] as rows of `words` words, zeros behind the last byte."""
    if packed.shape[1] == 4 * words:
        return np.ascontiguousarray(packed).view(WORD)
    padded = np.zeros((len(packed), 4 * words), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view(WORD)


def pack_words(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Return [rows, words]: each row of codes [rows, columns] as one stream."""
    return as_words(pack_bits(codes, bits), word_count(codes.shape[1], bits))


def unpack_words(words: Array, bits: int, columns: int) -> NDArray[np.uint8]:
    """Return codes [rows, columns] of streams [rows, words]."""
    packed = np.ascontiguousarray(words).view(np.uint8)
    return unpack_bits(packed[:, : -(-columns * bits // 8)], bits, columns)


@dataclass(frozen=True)
class WordBytes:
    """The bytes of a part of 32-bit words [rows, words], the first `width` of each row."""

    source: Part
    width: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return uint8."""
        return BYTE

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (rows, width)."""
        return self.source.shape[0], self.width

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop)."""
        found = np.ascontiguousarray(self.source.read(start, stop))
        return np.ascontiguousarray(found.view(BYTE)[:, : self.width])


@dataclass(frozen=True)
class ByteWords:
    """Rows of bytes [rows, width] as words [rows, words]; the inverse of WordBytes."""

    source: Part
    words: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return int32."""
        return WORD

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (rows, words)."""
        return self.source.shape[0], self.words

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop)."""
        return as_words(self.source.read(start, stop), self.words)


@dataclass(frozen=True)
class ColumnCodes:
    """Small codes stored along the output axis, [groups, words], as bytes [outputs, groups].

    lift: added to every code within its bits.
    """

    source: Part
    bits: int
    outputs: int
    lift: int = 0

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
        first = start // WORD_BITS * WORD_BITS
        words = self.source.read()[:, first * self.bits // WORD_BITS : word_count(stop, self.bits)]
        codes = unpack_words(words, self.bits, stop - first)[:, start - first :]
        if self.lift:
            codes = (codes + np.uint8(self.lift)) & np.uint8((1 << self.bits) - 1)
        return np.ascontiguousarray(codes.T)
