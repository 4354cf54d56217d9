"""Where the fields of ggml's 256-value blocks lie: codes, sub-block scales and minimums to bytes.

Arrays are [blocks, ...]. Functions come in pairs, one reading and one writing a block's bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int32]


def half(blocks: Bytes, at: int) -> NDArray[np.float32]:
    """Return the float16 field at byte `at` of each block, [blocks] float32."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")[:, 0].astype(np.float32)


def put_half(blocks: Bytes, at: int, values: NDArray[Any]) -> None:
    """Write values [blocks] as float16 at byte `at`."""
    blocks[:, at : at + 2] = values.astype("<f2")[:, None].view(np.uint8)


def two_bits(data: Bytes) -> Codes:
    """Return 256 codes of 2 bits: byte 32 h + l holds codes 128 h + l, + 32, + 64, + 96."""
    halves = data.reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    return (halves & 3).reshape(-1, 256).astype(np.int32)


def put_two_bits(codes: Codes) -> Bytes:
    """Return the 64 bytes per block that `two_bits` reads."""
    quarters = codes.astype(np.uint8).reshape(-1, 2, 4, 32)
    shifted = quarters << np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    packed: Bytes = np.bitwise_or.reduce(shifted, axis=2).reshape(-1, 64)
    return packed


def nibbles(data: Bytes) -> Codes:
    """Return 256 codes of 4 bits: byte 32 g + l holds codes 64 g + l (low) and 64 g + 32 + l."""
    quarters = data.reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    return (quarters & 15).reshape(-1, 256).astype(np.int32)


def put_nibbles(codes: Codes) -> Bytes:
    """Return the 128 bytes per block that `nibbles` reads."""
    pairs = codes.astype(np.uint8).reshape(-1, 4, 2, 32)
    packed: Bytes = pairs[:, :, 0] | (pairs[:, :, 1] << np.uint8(4))
    return packed.reshape(-1, 128)


def single_bits(data: Bytes) -> Codes:
    """Return 256 bits: bit i / 32 of byte i % 32."""
    bits = data.reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    return (bits & 1).reshape(-1, 256).astype(np.int32)


def put_single_bits(bits: Codes) -> Bytes:
    """Return the 32 bytes per block that `single_bits` reads."""
    shifted = bits.astype(np.uint8).reshape(-1, 8, 32) << np.arange(8, dtype=np.uint8)[:, None]
    packed: Bytes = np.bitwise_or.reduce(shifted, axis=1)
    return packed


def six_bits(low: Bytes, high: Bytes) -> Codes:
    """Return 256 codes of 6 bits.

    Per half h: byte 64 h + l of `low` holds the low nibbles of codes l and l + 64, byte 64 h + 32
    + l those of l + 32 and l + 96; byte 32 h + l of `high` the top 2 bits of all four.
    """
    rows = low.reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    bottom = (rows & 15).reshape(-1, 2, 128)
    tops = high.reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    top = (tops & 3).reshape(-1, 2, 128)
    return (bottom | (top << 4)).reshape(-1, 256).astype(np.int32)


def put_six_bits(codes: Codes) -> tuple[Bytes, Bytes]:
    """Return the 128 low and 64 high bytes per block that `six_bits` reads."""
    short = codes.astype(np.uint8).reshape(-1, 2, 128)
    bottom = short & 15
    low: Bytes = bottom[:, :, :64] | (bottom[:, :, 64:] << np.uint8(4))
    tops = (short >> 4).reshape(-1, 2, 4, 32)
    high = tops << np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    packed: Bytes = np.bitwise_or.reduce(high, axis=2)
    return low.reshape(-1, 128), packed.reshape(-1, 64)


def scales_and_minimums(packed: Bytes) -> tuple[Codes, Codes]:
    """Return 8 scales and 8 minimums of 6 bits from the 12 bytes of Q4_K and Q5_K."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    minimum = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scale.astype(np.int32), minimum.astype(np.int32)


def put_scales_and_minimums(scale: Codes, minimum: Codes) -> Bytes:
    """Return the 12 bytes that `scales_and_minimums` reads."""
    sc, mn = scale.astype(np.uint8), minimum.astype(np.uint8)
    first = sc[:, :4] | ((sc[:, 4:] >> 4) << 6)
    second = mn[:, :4] | ((mn[:, 4:] >> 4) << 6)
    third = (sc[:, 4:] & 15) | ((mn[:, 4:] & 15) << 4)
    return np.concatenate([first, second, third], axis=1)


def spilt_nibbles(scale: Codes, minimum: Codes) -> tuple[Codes, Codes]:
    """Return the nibbles of bytes that hold both: a scale beyond 4 bits spills upwards."""
    byte = (scale | (minimum << 4)) & 0xFF
    return byte & 15, byte >> 4


def spilt_six_bits(values: Codes) -> Codes:
    """Return 8 integers as `scales_and_minimums` reads what ggml wrote: [blocks, 8].

    One beyond 6 bits among the first four spills into the top bits of the later four.
    """
    byte = (values[:, :4] | ((values[:, 4:] >> 4) << 6)) & 0xFF
    return np.concatenate([byte & 63, (values[:, 4:] & 15) | ((byte >> 6) << 4)], axis=1)


def sixteen_scales(packed: Bytes) -> Codes:
    """Return 16 scales of 6 bits, 0..63, from the 12 bytes of Q3_K."""
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    top = packed[:, None, 8:] >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 4, 1)
    whole: Codes = (low | ((top & 3).reshape(-1, 16) << 4)).astype(np.int32)
    return whole


def put_sixteen_scales(scale: Codes) -> Bytes:
    """Return the 12 bytes that `sixteen_scales` reads."""
    short = scale.astype(np.uint8)
    low = (short[:, :8] & 15) | ((short[:, 8:] & 15) << 4)
    tops = (short >> 4).reshape(-1, 4, 4) << np.array([0, 2, 4, 6], np.uint8).reshape(1, 4, 1)
    return np.concatenate([low, np.bitwise_or.reduce(tops, axis=1)], axis=1)
