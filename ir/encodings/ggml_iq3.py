"""ggml's 3-bit codebook types IQ3_XXS and IQ3_S.

A point is 4 values of eight levels. Fields, in byte order:

    IQ3_XXS  d f16 | qs[64] | 8 x u32: 4 x 7 signs, 4 bits sc            sc per 32
    IQ3_S    d f16 | qs[64] | qh[8]: bit 8 of index | signs[32] | scales[4]   sc per 32, a nibble

llama.cpp's encoder of IQ3_S skips a group of 32 zeros without moving on in qs and signs, so that
the groups after it decode to noise. `encode` writes them where they belong; `compat=True` gives
llama.cpp's bytes.
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
    put_words,
    words,
)
from halfbyte.ir.encodings.ggml_iq2 import packed_seven, seven_signs
from halfbyte.ir.encodings.ggml_iq_signed import Refit, SignedPoints
from halfbyte.ir.encodings.ggml_k_fields import half, put_half
from halfbyte.ir.encodings.ggml_search import Float
from halfbyte.kernels.layouts import LAYOUTS


@dataclass(frozen=True)
class _ThreeBits(SignedPoints):
    GROUP: ClassVar[int] = 32
    ENERGY: ClassVar[float] = 2
    DELTA: ClassVar[float] = 0.2
    ERROR_BOUND: ClassVar[float] = 1.1


@dataclass(frozen=True)
class IQ3_XXS(_ThreeBits):  # noqa: N801
    """256 points, scale per 32."""

    NAME = "IQ3_XXS"
    STEP = 1 / 4
    EVEN_SIGNS = True
    TRIALS = 15
    REFIT = Refit.OFF_GRID
    NOTHING = 1e-8
    FUDGE = 1.0125
    KEEPS_CODES = False

    def _read(self, blocks: Array) -> Fields:
        at = LAYOUTS[self.NAME].offsets
        both = words(blocks, at["scales"], self.block_bytes, "<u4")
        return {
            "index": blocks[:, at["qs"] : at["scales"]].astype(np.int32),
            "negative": seven_signs(bit_fields(both, 7, 4)),
            "sc": (both >> np.uint32(28)).astype(np.int32),
            "d": half(blocks, at["d"]),
        }

    def _write(self, blocks: Array, found: Mapping[str, Array]) -> None:
        at = LAYOUTS[self.NAME].offsets
        signs = joined_fields(packed_seven(found["negative"]), 7, 4)
        both = signs | (found["sc"].astype(np.uint32) << np.uint32(28))
        put_words(blocks, at["qs"], found["index"], "u1")
        put_words(blocks, at["scales"], both, "<u4")
        put_half(blocks, at["d"], found["d"])


@dataclass(frozen=True)
class IQ3_S(_ThreeBits):  # noqa: N801
    """512 points, scale per 32, all signs stored."""

    NAME = "IQ3_S"
    STEP = 1.0
    EVEN_SIGNS = False
    TRIALS = 9
    REFIT = Refit.ALL_IF_OFF_GRID
    NOTHING = 1e-45  # every value but 0
    FUDGE = 1.033
    KEEPS_CODES = True

    def encode(
        self, rows: Float, importance: Float | None = None, compat: bool = False
    ) -> dict[str, Array]:
        """Return the blocks of llama.cpp's quantizer; `compat` also copies its slip.

        Raises:
            QuantizationError: a weight is not finite, or a scale leaves float16's range.
        """
        parts = super().encode(rows, importance)
        return {"data": self._slipped(parts["data"], rows)} if compat else parts

    def encode_reference(
        self, rows: Float, importance: Float | None = None, compat: bool = False
    ) -> dict[str, Array]:
        """Return the bytes of `encode`, by numpy alone."""
        parts = super().encode_reference(rows, importance)
        return {"data": self._slipped(parts["data"], rows)} if compat else parts

    def _slipped(self, data: Array, rows: Float) -> Array:
        """Return the blocks with groups moved to where llama.cpp writes them."""
        at = LAYOUTS[self.NAME].offsets
        blocks = data.reshape(-1, self.block_bytes).copy()
        zero = (rows.reshape(-1, BLOCK // self.GROUP, self.GROUP) == 0).all(axis=2)
        # Bytes of zero groups are zeros, so moving these behind the others is all that happens.
        order = np.argsort(zero, axis=1, kind="stable")[:, :, None]
        for start, stop in ((at["qs"], at["qh"]), (at["signs"], at["scales"])):
            width = (stop - start) // zero.shape[1]
            pieces = blocks[:, start:stop].reshape(len(blocks), zero.shape[1], width)
            moved = np.take_along_axis(pieces, order, axis=1)
            blocks[:, start:stop] = moved.reshape(len(blocks), stop - start)
        slipped: Array = blocks.reshape(data.shape)
        return slipped

    def _read(self, blocks: Array) -> Fields:
        at = LAYOUTS[self.NAME].offsets
        high = bit_fields(blocks[:, at["qh"] : at["signs"]], 1, 8)
        return {
            "index": blocks[:, at["qs"] : at["qh"]].astype(np.int32) | (high << 8),
            "negative": bit_fields(blocks[:, at["signs"] : at["scales"]], 1, 8) == 1,
            "sc": bit_fields(blocks[:, at["scales"] :], 4, 2),
            "d": half(blocks, at["d"]),
        }

    def _write(self, blocks: Array, found: Mapping[str, Array]) -> None:
        at = LAYOUTS[self.NAME].offsets
        put_words(blocks, at["qs"], found["index"] & 255, "u1")
        put_words(blocks, at["qh"], joined_fields(found["index"] >> 8, 1, 8), "u1")
        put_words(blocks, at["signs"], joined_fields(found["negative"], 1, 8), "u1")
        put_words(blocks, at["scales"], joined_fields(found["sc"], 4, 2), "u1")
        put_half(blocks, at["d"], found["d"])
