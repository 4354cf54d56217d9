"""ggml's 2-bit codebook types IQ2_XXS, IQ2_XS and IQ2_S.

A point is 8 values of three levels, 8, 25 and 43 times their scale. Fields, in byte order:

    IQ2_XXS  d f16 | 8 x (4 index bytes, u32: 4 x 7 signs, 4 bits sc)   sc per 32
    IQ2_XS   d f16 | qs[32] u16: 9 bits index, 7 signs | scales[8]      sc per 16, a nibble each
    IQ2_S    d f16 | qs[32] | signs[32] | qh[8] | scales[8]             sc per 16; qh: 2 bits index
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.encodings.ggml_iq import (
    BLOCK,
    Fields,
    bit_fields,
    joined_fields,
    mean_square,
    put_words,
    words,
)
from halfbyte.ir.encodings.ggml_iq_signed import Refit, SignedPoints
from halfbyte.ir.encodings.ggml_k_fields import half, put_half
from halfbyte.ir.encodings.ggml_k_search import positive_search
from halfbyte.ir.encodings.ggml_search import Float
from halfbyte.kernels.layouts import LAYOUTS


def seven_signs(packed: Array) -> Array:
    """Return 8 signs for each 7-bit field [blocks, n]: the eighth makes the negatives even."""
    bits = bit_fields(packed, 1, 7).reshape(*packed.shape, 7)
    last = bits.sum(axis=2, keepdims=True) % 2
    negative: Array = np.concatenate([bits, last], axis=2).reshape(len(packed), BLOCK) == 1
    return negative


def packed_seven(negative: Array) -> Array:
    """Undo `seven_signs`: [blocks, 256] to [blocks, 32]."""
    firsts = negative.reshape(len(negative), BLOCK // 8, 8)[:, :, :7]
    return joined_fields(firsts.reshape(len(negative), 7 * BLOCK // 8), 1, 7)


@dataclass(frozen=True)
class _TwoBits(SignedPoints):
    STEP: ClassVar[float] = 1 / 8
    ENERGY: ClassVar[float] = 1
    DELTA: ClassVar[float] = 0.1
    TRIALS: ClassVar[int] = 9
    REFIT: ClassVar[Refit] = Refit.OFF_GRID
    FUDGE: ClassVar[float] = 1
    ERROR_BOUND: ClassVar[float] = 1.25


@dataclass(frozen=True)
class IQ2_XXS(_TwoBits):  # noqa: N801
    """256 points, scale per 32."""

    NAME = "IQ2_XXS"
    GROUP = 32
    NEEDS_IMPORTANCE = True
    EVEN_SIGNS = True
    TRIALS = 6
    REFIT = Refit.ALL
    NOTHING = 1e-15
    KEEPS_CODES = False

    def _first_scale(self, x: Float, weight: Float) -> tuple[Float, Float]:
        _, scale = positive_search(x, weight, self.points.base + 1)
        return scale, scale * np.float32(self.points.base)

    def _read(self, blocks: Array) -> Fields:
        at = LAYOUTS[self.NAME].offsets
        pairs = words(blocks, at["qs"], self.block_bytes, "<u4").reshape(len(blocks), 8, 2)
        return {
            "index": bit_fields(pairs[:, :, 0], 8, 4),
            "negative": seven_signs(bit_fields(pairs[:, :, 1], 7, 4)),
            "sc": (pairs[:, :, 1] >> np.uint32(28)).astype(np.int32),
            "d": half(blocks, at["d"]),
        }

    def _write(self, blocks: Array, found: Mapping[str, Array]) -> None:
        at = LAYOUTS[self.NAME].offsets
        signs = joined_fields(packed_seven(found["negative"]), 7, 4)
        upper = signs | (found["sc"].astype(np.uint32) << np.uint32(28))
        pairs = np.stack([joined_fields(found["index"], 8, 4), upper], axis=2)
        put_words(blocks, at["qs"], pairs.reshape(len(blocks), 16), "<u4")
        put_half(blocks, at["d"], found["d"])


@dataclass(frozen=True)
class IQ2_XS(_TwoBits):  # noqa: N801
    """512 points, scale per 16."""

    NAME = "IQ2_XS"
    GROUP = 16
    NEEDS_IMPORTANCE = True
    EVEN_SIGNS = True
    NOTHING = 1e-15
    KEEPS_CODES = False

    def _read(self, blocks: Array) -> Fields:
        at = LAYOUTS[self.NAME].offsets
        both = words(blocks, at["qs"], at["scales"], "<u2")
        return {
            "index": (both & np.uint32(511)).astype(np.int32),
            "negative": seven_signs(both >> np.uint32(9)),
            "sc": bit_fields(blocks[:, at["scales"] :], 4, 2),
            "d": half(blocks, at["d"]),
        }

    def _write(self, blocks: Array, found: Mapping[str, Array]) -> None:
        at = LAYOUTS[self.NAME].offsets
        signs = packed_seven(found["negative"]) << np.uint32(9)
        put_words(blocks, at["qs"], found["index"].astype(np.uint32) | signs, "<u2")
        put_words(blocks, at["scales"], joined_fields(found["sc"], 4, 2), "u1")
        put_half(blocks, at["d"], found["d"])


@dataclass(frozen=True)
class IQ2_S(_TwoBits):  # noqa: N801
    """1024 points, scale per 16, all signs stored."""

    NAME = "IQ2_S"
    GROUP = 16
    EVEN_SIGNS = False
    ENERGY = 2
    NOTHING = 1e-8
    FUDGE = 0.9875
    KEEPS_CODES = True

    def _plain_weight(self, x: Float) -> Float:
        weights: Float = np.float32(0.25) * mean_square(x, self.ENERGY)[:, None] + x * x
        return weights

    def _read(self, blocks: Array) -> Fields:
        at = LAYOUTS[self.NAME].offsets
        high = bit_fields(blocks[:, at["qh"] : at["scales"]], 2, 4)
        return {
            "index": blocks[:, at["qs"] : at["signs"]].astype(np.int32) | (high << 8),
            "negative": bit_fields(blocks[:, at["signs"] : at["qh"]], 1, 8) == 1,
            "sc": bit_fields(blocks[:, at["scales"] :], 4, 2),
            "d": half(blocks, at["d"]),
        }

    def _write(self, blocks: Array, found: Mapping[str, Array]) -> None:
        at = LAYOUTS[self.NAME].offsets
        put_words(blocks, at["qs"], found["index"] & 255, "u1")
        put_words(blocks, at["signs"], joined_fields(found["negative"], 1, 8), "u1")
        put_words(blocks, at["qh"], joined_fields(found["index"] >> 8, 2, 4), "u1")
        put_words(blocks, at["scales"], joined_fields(found["sc"], 4, 2), "u1")
        put_half(blocks, at["d"], found["d"])
