"""Codes of 2 to 8 bits in the two shapes that ONNX graphs hold them in, without loss.

`nibbles`: what MatMulNBits and GatherBlockQuantized of 4 bits take: unsigned codes, 8 stands for
zero, two to a byte, low bits first. Wider codes are two such matrices, because onnxruntime's own
product of 8-bit codes in float32 unpacks the whole matrix at every call (17 times slower):

    code - 2^(bits - 1) = 16 * (high - 8) + (low - 8) + 8

Codes of 2, 3, 5 and 6 bits lie in planes of 4, 2 and 1 bits; a table of 256 entries, which a
runtime applies once when it loads the model, expands a plane to nibbles.

`signed`: what a blocked DequantizeLinear takes: int4 or int8 around zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.affine import pack_bits, unpack_bits

Codes = NDArray[np.int32]
Bytes = NDArray[np.uint8]

CODES, HIGH = "codes", "high"
CENTER = 8
BLOCK_SIZES = (256, 128, 64, 32, 16)  # of MatMulNBits; larger ones have been miscomputed


@dataclass(frozen=True)
class Plane:
    """Bits [start, start + bits) of every code, packed.

    `matrix` is the nibble matrix that the plane belongs to; there its bits are moved up by `shift`
    and `bias` is added.
    """

    name: str
    matrix: str
    bits: int
    start: int
    shift: int
    bias: int

    @property
    def is_plain(self) -> bool:
        """Whether the stored bytes are the nibble matrix."""
        return self.bits == 4

    def width(self, columns: int) -> int:
        """Return the bytes of a row."""
        return columns * self.bits // 8

    def table(self) -> Bytes:
        """Return [256, nibble bytes]: what each stored byte expands to."""
        every = np.arange(256, dtype=np.uint8).reshape(-1, 1)
        codes = unpack_bits(every, self.bits, 8 // self.bits)
        return pack_bits((codes << self.shift) + np.uint8(self.bias), 4)


def planes(bits: int) -> tuple[Plane, ...]:
    """Return the planes of codes of 2..8 bits."""
    low = Plane(CODES, CODES, 4, 0, 0, 0)
    found = {
        2: (Plane(CODES, CODES, 2, 0, 0, CENTER - 2),),
        3: (Plane(CODES, CODES, 2, 0, 0, 0), Plane(HIGH, CODES, 1, 2, 2, CENTER - 4)),
        4: (low,),
        5: (low, Plane(HIGH, HIGH, 1, 4, 0, CENTER - 1)),
        6: (low, Plane(HIGH, HIGH, 2, 4, 0, CENTER - 2)),
    }
    return found.get(bits, (low, Plane(HIGH, HIGH, 4, 4, 0, 0)))


def has_high_matrix(bits: int) -> bool:
    """Whether codes need a second nibble matrix."""
    return bits > 4


def _lifted(codes: Codes, bits: int) -> Codes:
    """Return 7-bit codes as 8-bit ones: both nibbles then have 8 in the middle."""
    return codes + 64 if bits == 7 else codes


def pack_plane(codes: Codes, bits: int, plane: Plane) -> Bytes:
    """Return one plane of unsigned codes [rows, columns] of `bits` bits: [rows, bytes]."""
    moved = (_lifted(codes, bits) >> plane.start) & ((1 << plane.bits) - 1)
    return pack_bits(moved.astype(np.uint8), plane.bits)


def join_planes(stored: dict[str, Bytes], bits: int, columns: int) -> Codes:
    """Return the codes [rows, columns] that the planes hold."""
    whole = np.zeros((next(iter(stored.values())).shape[0], columns), np.int32)
    for plane in planes(bits):
        part = unpack_bits(np.ascontiguousarray(stored[plane.name]), plane.bits, columns)
        whole |= part.astype(np.int32) << plane.start
    return whole - 64 if bits == 7 else whole


def signed_dtype(bits: int) -> str:
    """Return the dtype of codes around zero for DequantizeLinear."""
    return "int4" if bits <= 4 else "int8"


def block_size(columns: int, group: int) -> int:
    """Return the largest block of MatMulNBits that lies inside one group, or 0 if there is none.

    group: columns per scale; it divides the columns.
    """
    return next((size for size in BLOCK_SIZES if group % size == 0 and columns % size == 0), 0)
