"""ggml's MXFP4 and NVFP4: 4-bit floats E2M1 with a small scale for 32 or 16 of them.

    MXFP4  e u8 | qs[16]         32 values, scale 2^(e - 127)
    NVFP4  d[4] u8 | qs[32]      64 values, scale UE4M3 (exponent of 4 bits, mantissa of 3) per 16

`unpack` gives E2M1 values doubled (integers -12..12) and the scale halved. Their second zero, code
8, is kept in `Scales.fields["negative_zero"]` where it occurs; it decodes to +0 as in ggml, and no
encoder writes it. Importance changes nothing.

MXFP4 gives llama.cpp's bytes: the scale is the OCP standard's, 2^floor(log2(largest)) / 4, so that
values above 1.5 * 2^floor saturate. Below 2^-125, where upstream's conversion is undefined, the
exponent is 0.

NVFP4 as llama.cpp writes it has no scale for the whole tensor, so that the scale of each 16 values
must hold their magnitude: it is made for checkpoints that bring such a scale along. Where 16 values
are so small that upstream stores zeros only, although some are nearer to the smallest code than to
0, `encode` takes the smallest scale (2^-9); where their scale lies in 256..448, which upstream
stores as 448, it stores the nearest; values beyond what 448 reaches are refused. `compat=True`
gives upstream's bytes there too.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.encodings.ggml_block import GgmlBlock
from halfbyte.ir.encodings.ggml_blocks import (
    Fields,
    SmallBlock,
    nibble_pairs,
    put_nibble_pairs,
)
from halfbyte.ir.encodings.ggml_search import Codes, Float
from halfbyte.ir.encodings.grid import UNNAMED, require_finite, stored
from halfbyte.kernels.codebooks import E2M1_VALUES
from halfbyte.kernels.layouts import LAYOUTS

NEGATIVE_ZERO = 8
_DOUBLED = np.array(E2M1_VALUES, np.int32)
_LEVELS = tuple(sorted(set(E2M1_VALUES)))
_POSITIVE = _DOUBLED[:8]
_MIDDLES = ((_POSITIVE[1:] + _POSITIVE[:-1]) / 2).astype(np.float32)
_NAN_E8M0 = 255
# Upstream takes the exponent from a rounded log2: this many float32 below a power of two 2^k still
# count as it, by the exponent of |k| (and one exponent lower where k is a positive power of two).
_ROUNDED_UP = np.array([0, 1, 2, 5, 11, 22, 44], np.int32)
UE4M3_MAX = 448.0
_LARGEST_BYTE, _NAN_BYTE = 0x7E, 0x7F
_SATURATED = np.float32(UE4M3_MAX + 16)  # half a step further


@dataclass(frozen=True)
class _Fp4(SmallBlock):
    LEVELS: ClassVar[tuple[int, ...]] = _LEVELS
    NIBBLE_RUN: ClassVar[int]

    def _read(self, blocks: Array) -> tuple[Codes, Float, Fields]:
        indices = nibble_pairs(blocks[:, LAYOUTS[self.NAME].offsets["qs"] :], self.NIBBLE_RUN)
        second_zero = indices == NEGATIVE_ZERO
        found = {"negative_zero": second_zero} if second_zero.any() else {}
        return _DOUBLED[indices], self._scales(blocks), found

    def _write(self, blocks: Array, codes: Codes, scale: Float, found: Mapping[str, Array]) -> None:
        magnitude = np.searchsorted(_POSITIVE, np.abs(codes)).astype(np.int32)
        negative = codes < 0
        if "negative_zero" in found:
            negative = negative | ((codes == 0) & found["negative_zero"])
        indices = magnitude + NEGATIVE_ZERO * negative
        blocks[:, LAYOUTS[self.NAME].offsets["qs"] :] = put_nibble_pairs(indices, self.NIBBLE_RUN)
        self._put_scales(blocks, scale)

    def _require_encodable(self, rows: Float, importance: Float | None) -> None:
        GgmlBlock._require_encodable(self, rows, importance)  # scales are no float16

    @abstractmethod
    def _scales(self, blocks: Array) -> Float:
        """Return the scales [blocks, groups]."""

    @abstractmethod
    def _put_scales(self, blocks: Array, scale: Float) -> None:
        """Write the scales [blocks, groups] into blocks."""


def nearest_e2m1(x: Float, scale: Float) -> Codes:
    """Return the doubled E2M1 codes nearest to x [groups, n] on scales [groups]; ties towards 0.

    Differences of a value and its two neighbours are exact in float32, so comparing with the
    middles finds what upstream's search for the least |code * scale - x| finds.
    """
    magnitude = np.abs(x)
    index = np.zeros(x.shape, np.int32)
    for middle in _MIDDLES:
        index += magnitude > (middle * scale)[:, None]
    codes = np.where(x < 0, -_POSITIVE[index], _POSITIVE[index])
    return np.where(scale[:, None] == 0, 0, codes).astype(np.int32)


def e8m0_exponent(largest: Float) -> Codes:
    """Return the stored exponent for largest magnitudes: floor(log2) + 125, at least 0."""
    bits = np.ascontiguousarray(largest, np.float32).view(np.int32)
    exponent = (bits >> 23) - 127
    above = exponent + 1
    size = np.frexp(np.maximum(np.abs(above), 1).astype(np.float32))[1] - 1
    power = (above > 0) & (above == 1 << size)
    near = _ROUNDED_UP[size - (power & (size > 0))]
    rounded_up = (1 << 23) - (bits & 0x7FFFFF) <= near
    biased: Codes = np.maximum(exponent + rounded_up + 125, 0)
    return biased


@dataclass(frozen=True)
class MXFP4(_Fp4):
    """E2M1, power of two per 32."""

    NAME: ClassVar[str] = "MXFP4"
    GROUP: ClassVar[int] = 32
    SCALE_DTYPE: ClassVar[str] = "bfloat16"
    BOOK_SCALE: ClassVar[str] = "e8m0"
    NIBBLE_RUN: ClassVar[int] = 16
    ERROR_BOUND: ClassVar[float] = 0.25

    def _scales(self, blocks: Array) -> Float:
        scale: Float = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
        return scale

    def _put_scales(self, blocks: Array, scale: Float) -> None:
        mantissa, exponent = np.frexp(scale)
        if np.any(mantissa != 0.5) or np.any(exponent < -127):
            bad = scale[(mantissa != 0.5) | (exponent < -127)]
            raise QuantizationError(
                UNNAMED, f"its scale {float(bad[0])!r} is no power of two that MXFP4 stores"
            )
        blocks[:, :1] = exponent + 127

    def _search(self, x: Float, importance: Float | None) -> tuple[Codes, Float, Fields]:
        e = e8m0_exponent(np.abs(x).max(axis=1))
        scale = np.ldexp(np.float32(1), e - 128)
        return nearest_e2m1(x, scale), scale[:, None], {}

    def require_finite_scales(self, data: Array) -> None:
        """Check that no scale is NaN.

        Raises:
            QuantizationError: one is.
        """
        if (data.reshape(-1, self.block_bytes)[:, 0] == _NAN_E8M0).any():
            raise QuantizationError(UNNAMED, "a scale is NaN; repair the source")


def ue4m3_values() -> Float:
    """Return half of what the 256 scale bytes of NVFP4 mean; 0x7F, NaN elsewhere, means 0."""
    byte = np.arange(256)
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    fraction = np.where(exponent == 0, mantissa / 8, 1 + mantissa / 8)
    values: Float = np.ldexp(fraction, np.maximum(exponent, 1) - 8).astype(np.float32)
    values[0x7F] = 0
    return values


_UE4M3 = ue4m3_values()


def ue4m3_bytes(wanted: Float, compat: bool) -> Array:
    """Return the nearest scale byte, halves up; compat: that of 448 for all that round to 256."""
    bits = np.ascontiguousarray(wanted, np.float32).view(np.int32)
    rounded = ((bits + (1 << 19)) >> 20) - (120 << 3)  # exponent and 3 bits of mantissa
    subnormal = np.minimum((wanted * np.float32(512) + np.float32(0.5)).astype(np.int32), 7)
    byte = np.where(bits >> 23 <= 120, subnormal, np.minimum(rounded, _LARGEST_BYTE))
    if compat:
        byte = np.where((byte >= 15 << 3) & (bits >> 23 > 120), _LARGEST_BYTE, byte)
    return np.where(wanted > 0, byte, 0).astype(np.uint8)


@dataclass(frozen=True)
class NVFP4(_Fp4):
    """E2M1, scale UE4M3 per 16."""

    NAME: ClassVar[str] = "NVFP4"
    GROUP: ClassVar[int] = 16
    BOOK_SCALE: ClassVar[str] = "e4m3"
    NIBBLE_RUN: ClassVar[int] = 8
    ERROR_BOUND: ClassVar[float] = 0.2

    def encode(
        self, rows: Float, importance: Float | None = None, compat: bool = False
    ) -> dict[str, Array]:
        """Return the blocks of these rows; compat: upstream's own where those lose the values.

        Raises:
            QuantizationError: a weight is not finite, or a scale leaves UE4M3's range.
        """
        data = self._by_kernel(rows, importance, compat)
        if data is None:
            return self.encode_reference(rows, importance, compat)
        return {"data": data}

    def encode_reference(
        self, rows: Float, importance: Float | None = None, compat: bool = False
    ) -> dict[str, Array]:
        """Return the same bytes as `encode`, by numpy alone."""
        if not compat or not rows.size:
            return super().encode_reference(rows, importance)
        shape = self.part_specs(*rows.shape)["data"].shape
        require_finite(rows)
        x = np.ascontiguousarray(rows, np.float32).reshape(-1, self.block)
        return {"data": self._compatible(x).reshape(shape)}

    def _compatible(self, x: Float) -> Array:
        """Return upstream's blocks for x [blocks, 64], by its own search over all 16 codes."""
        groups = x.reshape(-1, self.GROUP)
        byte = ue4m3_bytes(np.abs(groups).max(axis=1) / np.float32(6), compat=True)
        scale = _UE4M3[byte]
        distance = np.abs(_DOUBLED.astype(np.float32)[:, None, None] * scale[:, None] - groups)
        codes = _DOUBLED[distance.argmin(axis=0)].reshape(x.shape)
        blocks = np.zeros((len(x), self.block_bytes), np.uint8)
        self._write(blocks, codes, scale.reshape(len(x), -1), {})
        return blocks

    def _scales(self, blocks: Array) -> Float:
        return _UE4M3[blocks[:, :4]]

    def _put_scales(self, blocks: Array, scale: Float) -> None:
        doubled = stored(scale, np.dtype(np.float16), "scales") * np.float32(2)
        byte = ue4m3_bytes(doubled, compat=False)
        wrong = _UE4M3[byte] != scale
        if wrong.any():
            raise QuantizationError(
                UNNAMED, f"its scale {float(doubled[wrong][0])!r} is none that NVFP4 stores"
            )
        blocks[:, :4] = byte

    def _search(self, x: Float, importance: Float | None) -> tuple[Codes, Float, Fields]:
        groups = x.reshape(-1, self.GROUP)
        largest = np.abs(groups).max(axis=1)
        wanted = largest / np.float32(6)
        if (wanted > _SATURATED).any():
            raise _out_of_range()
        byte = ue4m3_bytes(wanted, compat=False)
        scale = _UE4M3[np.where((byte == 0) & (largest > np.float32(2**-11)), 1, byte)]
        return nearest_e2m1(groups, scale).reshape(x.shape), scale.reshape(len(x), -1), {}

    def require_finite_scales(self, data: Array) -> None:
        """Check that every scale is in range; encoders mark others by the byte of NaN.

        Raises:
            QuantizationError: one is not.
        """
        if (data.reshape(-1, self.block_bytes)[:, :4] & _NAN_BYTE == _NAN_BYTE).any():
            raise _out_of_range()


def _out_of_range() -> QuantizationError:
    return QuantizationError(
        UNNAMED,
        f"a weight is beyond the {6 * UE4M3_MAX:g} that NVFP4 reaches without a scale for the "
        "tensor; choose MXFP4, float16 or bfloat16",
    )
