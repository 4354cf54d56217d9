"""ggml's TQ1_0 and TQ2_0: -1, 0 and 1 times a scale per 256 values, its largest magnitude.

    TQ1_0  qs[48] | qh[4] | d f16       five values of base 3 in a byte, in qh four
    TQ2_0  qs[64] | d f16               two bits each; code 3 means 2 * d and is never encoded

A byte of TQ1_0 holds a number n below 243 as ceil(256 n / 243), so that each digit falls out of
the byte times a power of 3 (the first value is the highest digit). Encoding gives llama.cpp's
bytes and takes no notice of importance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from halfbyte.ir.encodings import ggml_k_fields as k_fields
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.encodings.ggml_blocks import Fields, SmallBlock, halves, put_scale
from halfbyte.ir.encodings.ggml_search import Codes, Float
from halfbyte.kernels.layouts import LAYOUTS

BLOCK = 256
# Runs of bytes of TQ1_0: byte m of a run holds values m, m + length, ... of the run's values.
_RUNS = ((0, 32, 5), (32, 16, 5), (48, 4, 4))
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


@dataclass(frozen=True)
class _Ternary(SmallBlock):
    GROUP: ClassVar[int] = BLOCK
    ZERO: ClassVar[int] = 1
    ERROR_BOUND: ClassVar[float] = 0.5 + 2**-10

    def _scale(self, blocks: Array) -> Float:
        return k_fields.half(blocks, LAYOUTS[self.NAME].offsets["d"])[:, None]

    def _search(self, x: Float, importance: Float | None) -> tuple[Codes, Float, Fields]:
        largest = np.abs(x).max(axis=1, keepdims=True)
        inverse = np.where(largest != 0, np.float32(1) / largest, np.float32(0))
        steps = inverse * x
        # A subnormal scale has an infinite reciprocal; what ggml makes of that is code 1.
        usable = np.isfinite(inverse)
        up, down = steps >= np.float32(0.5), steps <= np.float32(-0.5)
        codes = 1 + (up & usable).astype(np.int32) - (down & usable)
        return codes, halves(largest), {}


@dataclass(frozen=True)
class TQ1_0(_Ternary):  # noqa: N801
    """Ternary, 1.69 bits."""

    NAME: ClassVar[str] = "TQ1_0"
    LEVELS: ClassVar[tuple[int, ...]] = (0, 1, 2)

    def _read(self, blocks: Array) -> tuple[Codes, Float, Fields]:
        pieces = []
        for start, length, digits in _RUNS:
            run = blocks[:, None, start : start + length] * _POWERS[:digits, None]
            pieces.append((run.astype(np.int32) * 3 >> 8).reshape(len(blocks), digits * length))
        return np.concatenate(pieces, axis=1), self._scale(blocks), {}

    def _write(self, blocks: Array, codes: Codes, scale: Float, found: Mapping[str, Array]) -> None:
        first = 0
        for start, length, digits in _RUNS:
            run = codes[:, first : first + digits * length].reshape(-1, digits, length)
            number = np.tensordot(run, 81 // _POWERS[:digits].astype(np.int32), (1, 0))
            blocks[:, start : start + length] = (number * 256 + 242) // 243
            first += digits * length
        put_scale(blocks, LAYOUTS["TQ1_0"].offsets["d"], scale)


@dataclass(frozen=True)
class TQ2_0(_Ternary):  # noqa: N801
    """Ternary, 2.06 bits; code 3 is 2 * d."""

    NAME: ClassVar[str] = "TQ2_0"
    LEVELS: ClassVar[tuple[int, ...]] = (0, 1, 2, 3)

    def _read(self, blocks: Array) -> tuple[Codes, Float, Fields]:
        return k_fields.two_bits(blocks[:, :64]), self._scale(blocks), {}

    def _write(self, blocks: Array, codes: Codes, scale: Float, found: Mapping[str, Array]) -> None:
        blocks[:, :64] = k_fields.put_two_bits(codes)
        put_scale(blocks, LAYOUTS["TQ2_0"].offsets["d"], scale)
