"""ggml's Q1_0 and Q2_0: one and two bits, least significant first along the row.

    Q1_0  d f16 | qs[16]      128 values, bit 1 means d, bit 0 means -d; d is the mean magnitude
    Q2_0  d f16 | qs[16]      64 values, value (q - 1) * d; code 3 is never encoded

Encoding gives llama.cpp's bytes and takes no notice of importance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from halfbyte.ir.encodings import ggml_k_fields as k_fields
from halfbyte.ir.encodings.affine import pack_bits, unpack_bits
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.encodings.ggml_blocks import Fields, SmallBlock, halves, put_scale
from halfbyte.ir.encodings.ggml_search import Codes, Float, ordered_sum


@dataclass(frozen=True)
class Q1_0(SmallBlock):  # noqa: N801
    """Signs, scale per 128."""

    NAME: ClassVar[str] = "Q1_0"
    GROUP: ClassVar[int] = 128
    LEVELS: ClassVar[tuple[int, ...]] = (-1, 1)
    ERROR_BOUND: ClassVar[float] = 1.0

    def _read(self, blocks: Array) -> tuple[Codes, Float, Fields]:
        bits = unpack_bits(blocks[:, 2:], 1, self.GROUP).astype(np.int32)
        return 2 * bits - 1, k_fields.half(blocks, 0)[:, None], {}

    def _write(self, blocks: Array, codes: Codes, scale: Float, found: Mapping[str, Array]) -> None:
        put_scale(blocks, 0, scale)
        blocks[:, 2:] = pack_bits((codes > 0).astype(np.uint8), 1)

    def _search(self, x: Float, importance: Float | None) -> tuple[Codes, Float, Fields]:
        mean = ordered_sum(np.abs(x).T) / np.float32(self.GROUP)
        return np.where(x >= 0, 1, -1).astype(np.int32), halves(mean)[:, None], {}


@dataclass(frozen=True)
class Q2_0(SmallBlock):  # noqa: N801
    """Two bits, scale per 64: the largest magnitude, so that codes are -1, 0 and 1 times it."""

    NAME: ClassVar[str] = "Q2_0"
    GROUP: ClassVar[int] = 64
    ZERO: ClassVar[int] = 1
    LEVELS: ClassVar[tuple[int, ...]] = (0, 1, 2, 3)
    ERROR_BOUND: ClassVar[float] = 0.5 + 2**-10

    def _read(self, blocks: Array) -> tuple[Codes, Float, Fields]:
        codes = unpack_bits(blocks[:, 2:], 2, self.GROUP).astype(np.int32)
        return codes, k_fields.half(blocks, 0)[:, None], {}

    def _write(self, blocks: Array, codes: Codes, scale: Float, found: Mapping[str, Array]) -> None:
        put_scale(blocks, 0, scale)
        blocks[:, 2:] = pack_bits(codes.astype(np.uint8), 2)

    def _search(self, x: Float, importance: Float | None) -> tuple[Codes, Float, Fields]:
        largest = np.abs(x).max(axis=1, keepdims=True)
        inverse = np.where(largest != 0, np.float32(1) / largest, np.float32(0))
        steps = inverse * x
        up, down = steps >= np.float32(0.5), steps <= np.float32(-0.5)
        # A subnormal scale has an infinite reciprocal; what ggml makes of that is code 0.
        codes = np.where(np.isfinite(inverse), 1 + up.astype(np.int32) - down, 0)
        return codes.astype(np.int32), halves(largest), {}
