"""ggml's IQ4_NL and IQ4_XS: 4-bit indices into one list of 16 values, spaced wider far from zero.

    IQ4_NL  d f16 | qs[16]                                     value d * v[q]
    IQ4_XS  d f16 | scales_h u16 | scales_l[4] | qs[128]       value d * (sc - 32) * v[q]

IQ4_XS has 256 values in a block, and for each 32 of them sc of 6 bits: the low four as nibbles of
scales_l, the high two in scales_h. `unpack` gives v[q] as code. Encoding gives llama.cpp's bytes,
with and without importance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings import ggml_k_fields as k_fields
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.encodings.ggml_blocks import (
    Fields,
    SmallBlock,
    halves,
    nibble_pairs,
    put_nibble_pairs,
    put_scale,
)
from halfbyte.ir.encodings.ggml_search import (
    ZERO_BLOCK,
    Codes,
    Float,
    nearest_int,
    ordered_sum,
    signed_extreme,
)
from halfbyte.ir.encodings.grid import UNNAMED, require_codes
from halfbyte.kernels.codebooks import IQ4_VALUES
from halfbyte.kernels.layouts import LAYOUTS

GROUP = 32
TRIALS = 7
_VALUES = np.array(IQ4_VALUES, np.int32)
_MIDDLES = ((_VALUES[1:] + _VALUES[:-1]) / 2).astype(np.float32)


def nearest_index(steps: Float) -> Codes:
    """Return the index of the nearest value, the upper one of two equally near; NaN gives 15."""
    return np.searchsorted(_MIDDLES, steps, side="right").astype(np.int32)


def scale_search(x: Float, weight: Float) -> Float:
    """Return the scale of least weighted squared error for x, weight [32, groups].

    Tries sixteen scales around the one that puts the extreme value on the codebook's end.
    """

    def sums(inverse: Float) -> tuple[Float, Float]:
        step = _VALUES[nearest_index(inverse * x)].astype(np.float32)
        return ordered_sum((weight * step) * x), ordered_sum((weight * step) * step)

    extreme = signed_extreme(x)
    sum_qx, sum_q2 = sums(np.float32(1) / (-extreme / np.float32(_VALUES[0])))
    scale = np.where(sum_q2 > 0, sum_qx / sum_q2, np.float32(0))
    best = scale * sum_qx
    for trial in range(-TRIALS, TRIALS + 1):
        sum_qx, sum_q2 = sums(np.float32(trial + _VALUES[0]) / extreme)
        better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
        scale = np.where(better, sum_qx / sum_q2, scale)
        best = np.where(better, scale * sum_qx, best)
    return np.where(np.abs(extreme) < ZERO_BLOCK, np.float32(0), scale)


def _group_scales(x: Float, importance: Float | None) -> Float:
    """Return the searched scales [blocks, groups] for x, importance [blocks, values]."""
    columns = np.ascontiguousarray(x.reshape(-1, GROUP).T)
    if importance is None:
        weight = columns * columns
    else:
        energy = ordered_sum((x * x).T) * (np.float32(2) / np.float32(x.shape[1]))
        spread = importance * np.sqrt(energy[:, None] + x * x)
        weight = np.ascontiguousarray(spread.reshape(-1, GROUP).T)
    return scale_search(columns, weight).reshape(len(x), -1)


def _reciprocal(scale: Float) -> Float:
    reciprocal: Float = np.where(scale != 0, np.float32(1) / scale, np.float32(0))
    return reciprocal


@dataclass(frozen=True)
class _Iq4(SmallBlock):
    GROUP: ClassVar[int] = GROUP
    LEVELS: ClassVar[tuple[int, ...]] = IQ4_VALUES

    def _codes(self, blocks: Array) -> Codes:
        return _VALUES[nibble_pairs(blocks[:, LAYOUTS[self.NAME].offsets["qs"] :], 16)]

    def _put_codes(self, blocks: Array, codes: Codes) -> None:
        indices = np.searchsorted(_VALUES, codes).astype(np.int32)
        blocks[:, LAYOUTS[self.NAME].offsets["qs"] :] = put_nibble_pairs(indices, 16)


@dataclass(frozen=True)
class IQ4_NL(_Iq4):  # noqa: N801
    """4-bit indices, scale per 32."""

    NAME: ClassVar[str] = "IQ4_NL"
    ERROR_BOUND: ClassVar[float] = 0.2  # the far end of the other sign is 14 steps beyond 113

    def _read(self, blocks: Array) -> tuple[Codes, Float, Fields]:
        d = k_fields.half(blocks, LAYOUTS["IQ4_NL"].offsets["d"])
        return self._codes(blocks), d[:, None], {}

    def _write(self, blocks: Array, codes: Codes, scale: Float, found: Mapping[str, Array]) -> None:
        put_scale(blocks, LAYOUTS["IQ4_NL"].offsets["d"], scale)
        self._put_codes(blocks, codes)

    def _search(self, x: Float, importance: Float | None) -> tuple[Codes, Float, Fields]:
        scale = _group_scales(x, importance)
        return _VALUES[nearest_index(_reciprocal(scale) * x)], halves(scale), {}


@dataclass(frozen=True)
class IQ4_XS(_Iq4):  # noqa: N801
    """4-bit indices, 6-bit signed scale per 32."""

    NAME: ClassVar[str] = "IQ4_XS"
    SCALE_DTYPE: ClassVar[str] = "float32"
    BOOK_SCALE: ClassVar[str] = "composed"
    ERROR_BOUND: ClassVar[float] = 0.25

    def _read(self, blocks: Array) -> tuple[Codes, Float, Fields]:
        at = LAYOUTS["IQ4_XS"].offsets
        d = k_fields.half(blocks, at["d"])[:, None]
        high = np.ascontiguousarray(blocks[:, at["scales_h"] : at["scales_l"]]).view("<u2")
        tops = (high >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
        low = nibble_pairs(blocks[:, at["scales_l"] : at["qs"]], 1)
        sc = (low | (tops.astype(np.int32) << 4)) - 32
        return self._codes(blocks), d * sc.astype(np.float32), {"d": d, "sc": sc}

    def _write(self, blocks: Array, codes: Codes, scale: Float, found: Mapping[str, Array]) -> None:
        if not {"d", "sc"} <= found.keys():
            raise QuantizationError(
                UNNAMED,
                "its scales are not the products that IQ4_XS stores; use `encode`, or scales that "
                "`fit` or `unpack` of IQ4_XS gave",
            )
        at = LAYOUTS["IQ4_XS"].offsets
        require_codes(found["sc"], -32, 31)
        sc = (found["sc"] + 32).astype(np.uint16)
        k_fields.put_half(blocks, at["d"], found["d"].reshape(-1))
        tops = np.bitwise_or.reduce((sc >> 4) << np.arange(0, 16, 2, dtype=np.uint16), axis=1)
        blocks[:, at["scales_h"] : at["scales_l"]] = tops.astype("<u2")[:, None].view(np.uint8)
        blocks[:, at["scales_l"] : at["qs"]] = put_nibble_pairs((sc & 15).astype(np.int32), 1)
        self._put_codes(blocks, codes)

    def _search(self, x: Float, importance: Float | None) -> tuple[Codes, Float, Fields]:
        scale = _group_scales(x, importance)
        d = -signed_extreme(np.ascontiguousarray(scale.T)) / np.float32(32)
        sc = np.clip(nearest_int(_reciprocal(d)[:, None] * scale), -32, 31)
        step = d[:, None] * sc.astype(np.float32)
        indices = nearest_index(np.repeat(_reciprocal(step), GROUP, axis=1) * x)
        return _VALUES[indices], step, {"d": d, "sc": sc}
