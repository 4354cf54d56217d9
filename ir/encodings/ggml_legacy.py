"""ggml's 32-value block types Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0.

Part "data": [rows, row_bytes] uint8. A block, in byte order (f16 and u32 little-endian):

    (offsets stand in kernels/layouts.py)

    d   f16              scale
    m   f16              offset, Q4_1 and Q5_1 only
    qh  u32              bit i is bit 4 of code i, Q5_0 and Q5_1 only
    qs  16 bytes         byte j: code j low nibble, code j + 16 high (Q8_0: 32 signed bytes)

    value = d * (code - zero), or d * code + m

Encoding gives llama.cpp's bytes, with and without importance (Q8_0 takes no notice of it).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.encoding import (
    Array,
    Grid,
    Parts,
    Scales,
    Unpacked,
)
from halfbyte.ir.encodings.ggml_block import GgmlBlock
from halfbyte.ir.encodings.ggml_search import (
    Codes,
    Float,
    lowest_and_highest,
    scale_min_search,
    signed_extreme,
    symmetric_search,
)
from halfbyte.ir.encodings.grid import (
    UNNAMED,
    nearest_codes,
    require_codes,
    shifted,
    stored,
    stored_offset,
)
from halfbyte.kernels.layouts import LAYOUTS

BLOCK = 32
HALF = np.dtype(np.float16)


@dataclass(frozen=True)
class LegacyBlock(GgmlBlock):
    """Base: a concrete type gives its constants and its two searches."""

    BITS: ClassVar[int]
    HAS_OFFSET: ClassVar[bool] = False

    @property
    def grid(self) -> Grid:
        """Return the grid of the codes."""
        zero = self._zero
        low, high = (-128, 127) if self.BITS == 8 else (0, (1 << self.BITS) - 1)
        return Grid(low, high, "offset" if self.HAS_OFFSET else "fixed", zero, BLOCK, "float16")

    @property
    def _zero(self) -> int:
        return 0 if self.HAS_OFFSET or self.BITS == 8 else 1 << (self.BITS - 1)

    def unpack(self, parts: Parts, columns: int) -> Unpacked:
        """Return codes [rows, columns] and the float16 scales (and offsets) of each block."""
        data = np.asarray(parts["data"])
        blocks = data.reshape(data.shape[0], columns // BLOCK, self.block_bytes)
        at = LAYOUTS[self.NAME].offsets
        scale = _half_field(blocks, at["d"])
        offset = _half_field(blocks, at["m"]) if self.HAS_OFFSET else None
        codes = _codes_of(blocks, at)
        zero = np.full(scale.shape, self._zero, np.int32) if self._zero else None
        return Unpacked(codes.reshape(data.shape[0], columns), Scales(scale, BLOCK, zero, offset))

    def pack(self, unpacked: Unpacked) -> dict[str, Array]:
        """Return the blocks; zero points are moved to this type's where codes stay in range.

        Raises:
            QuantizationError: groups are not 32 wide, a code or a scale does not fit.
        """
        scales, columns = unpacked.scales, unpacked.codes.shape[1]
        self.part_specs(unpacked.codes.shape[0], columns)
        order = scales.group_of_column
        in_order = order is None or np.array_equal(order, np.arange(columns) // BLOCK)
        if not in_order or (scales.group_size != BLOCK and columns > BLOCK):
            raise QuantizationError(
                UNNAMED, f"{self.name} needs groups of {BLOCK} columns in order"
            )
        grid = self.grid
        offset = None
        if self.HAS_OFFSET:
            offset = stored_offset(scales, HALF)
            require_codes(unpacked.codes, grid.low, grid.high)
            codes = unpacked.codes
        else:
            codes = shifted(unpacked, self._zero, grid.low, grid.high).codes
        return self._assemble(codes, stored(scales.scale, HALF, "scales"), offset)

    def _assemble(self, codes: Codes, scale: Array, offset: Array | None) -> dict[str, Array]:
        rows, columns = codes.shape
        blocks = np.empty((rows, columns // BLOCK, self.block_bytes), np.uint8)
        at = LAYOUTS[self.NAME].offsets
        _put_half(blocks, at["d"], scale)
        if offset is not None:
            _put_half(blocks, at["m"], offset)
        _put_codes(blocks, codes.reshape(rows, columns // BLOCK, BLOCK), at)
        data = blocks.reshape(rows, columns // BLOCK * self.block_bytes)
        self.require_finite_scales(data)
        return {"data": data}

    def require_finite_scales(self, data: Array) -> None:
        """Check that no scale or offset is NaN or infinite, as llama.cpp does when it loads.

        Raises:
            QuantizationError: one is.
        """
        at = LAYOUTS[self.NAME].offsets
        blocks = data.reshape(data.shape[0], data.shape[1] // self.block_bytes, self.block_bytes)
        for field, meaning in (("d", "a scale"), ("m", "an offset")):
            if field in at and not np.isfinite(_half_field(blocks, at[field])).all():
                raise self._beyond_half(meaning)

    def assign(self, rows: Float, scales: Scales) -> Codes:
        """Return the nearest codes on the given grid."""
        grid = self.grid
        return nearest_codes(rows, scales, grid.low, grid.high)

    def encode_reference(self, rows: Float, importance: Float | None = None) -> dict[str, Array]:
        """Return the same bytes as `encode`, by numpy alone."""
        self._require_encodable(rows, importance)
        x = np.ascontiguousarray(rows.reshape(-1, BLOCK).T)
        with np.errstate(all="ignore"):
            if importance is None or self.BITS == 8:
                codes, scale, offset = self._plain(x)
            else:
                weight = _weights(rows, importance)
                codes, scale, offset = self._weighted(x, weight.reshape(-1, BLOCK).T)
            halves = [None if v is None else v.astype(HALF) for v in (scale, offset)]
        shape = (rows.shape[0], rows.shape[1] // BLOCK)
        per_block = [None if v is None else v.reshape(shape) for v in halves]
        assert per_block[0] is not None
        return self._assemble(codes.T.reshape(rows.shape), per_block[0], per_block[1])

    @abstractmethod
    def _plain(self, x: Float) -> tuple[Codes, Float, Float | None]:
        """Return codes, scale, offset for x [32, blocks]."""

    @abstractmethod
    def _weighted(self, x: Float, weight: Float) -> tuple[Codes, Float, Float | None]:
        """Return codes, scale, offset for x, weight [32, blocks]."""


@dataclass(frozen=True)
class _Symmetric(LegacyBlock):
    """Q4_0 and Q5_0: the value of largest magnitude lies on the lowest code."""

    def _plain(self, x: Float) -> tuple[Codes, Float, None]:
        nmax = 1 << (self.BITS - 1)
        scale = signed_extreme(x) / np.float32(-nmax)
        codes = _truncate(x * _reciprocal(scale) + np.float32(nmax + 0.5))
        return np.minimum(codes, 2 * nmax - 1), scale, None

    def _weighted(self, x: Float, weight: Float) -> tuple[Codes, Float, None]:
        codes, scale = symmetric_search(x, weight, 1 << (self.BITS - 1))
        return codes, scale, None


@dataclass(frozen=True)
class _Offset(LegacyBlock):
    """Q4_1 and Q5_1: codes run from the block's minimum to its maximum."""

    HAS_OFFSET: ClassVar[bool] = True

    def _plain(self, x: Float) -> tuple[Codes, Float, Float]:
        levels = (1 << self.BITS) - 1
        low, high = lowest_and_highest(x)
        scale = (high - low) / np.float32(levels)
        codes = _truncate((x - low) * _reciprocal(scale) + np.float32(0.5))
        return np.minimum(codes, levels), scale, low

    def _weighted(self, x: Float, weight: Float) -> tuple[Codes, Float, Float]:
        return scale_min_search(x, weight, (1 << self.BITS) - 1, -0.9, 0.05, 36)


@dataclass(frozen=True)
class Q4_0(_Symmetric):  # noqa: N801
    """4 bits, scale per 32."""

    NAME = "Q4_0"
    BITS = 4
    ERROR_BOUND = 1 / 8 + 2**-10  # an opposite extreme is one step beyond the last code


@dataclass(frozen=True)
class Q4_1(_Offset):  # noqa: N801
    """4 bits, scale and offset per 32."""

    NAME = "Q4_1"
    BITS = 4
    ERROR_BOUND = 1 / 15 + 2**-9  # half a step of twice the magnitude, scale and offset rounded


@dataclass(frozen=True)
class Q5_0(_Symmetric):  # noqa: N801
    """5 bits, scale per 32."""

    NAME = "Q5_0"
    BITS = 5
    ERROR_BOUND = 1 / 16 + 2**-10


@dataclass(frozen=True)
class Q5_1(_Offset):  # noqa: N801
    """5 bits, scale and offset per 32."""

    NAME = "Q5_1"
    BITS = 5
    ERROR_BOUND = 1 / 31 + 2**-9


@dataclass(frozen=True)
class Q8_0(LegacyBlock):  # noqa: N801
    """8 bits, scale per 32; files may hold code -128, which the encoder never writes."""

    NAME = "Q8_0"
    BITS = 8
    ERROR_BOUND = 0.5 / 127 + 2**-10

    def _plain(self, x: Float) -> tuple[Codes, Float, None]:
        scale = np.abs(x).max(axis=0) / np.float32(127)
        return _round_half_away(x * _reciprocal(scale)), scale, None

    def _weighted(self, x: Float, weight: Float) -> tuple[Codes, Float, None]:
        return self._plain(x)


def _half_field(blocks: Array, at: int) -> Float:
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")[..., 0].astype(np.float32)


def _put_half(blocks: Array, at: int, values: Array) -> None:
    blocks[..., at : at + 2] = values.astype("<f2")[..., None].view(np.uint8)


def _codes_of(blocks: Array, at: Mapping[str, int]) -> Codes:
    codes = blocks[..., at["qs"] :]
    if codes.shape[-1] == BLOCK:
        return np.ascontiguousarray(codes).view(np.int8).astype(np.int32)
    whole = np.concatenate([codes & 0x0F, codes >> 4], axis=-1).astype(np.int32)
    if "qh" in at:
        high = np.unpackbits(blocks[..., at["qh"] : at["qs"]], axis=-1, bitorder="little")
        whole |= high.astype(np.int32) << 4
    return whole


def _put_codes(blocks: Array, codes: Codes, at: Mapping[str, int]) -> None:
    target = blocks[..., at["qs"] :]
    if target.shape[-1] == BLOCK:
        target[...] = codes.astype(np.int8).view(np.uint8)
        return
    short = codes.astype(np.uint8)
    nibbles = short & 0x0F
    target[...] = nibbles[..., :16] | (nibbles[..., 16:] << 4)
    if "qh" in at:
        blocks[..., at["qh"] : at["qs"]] = np.packbits(short >> 4, axis=-1, bitorder="little")


def _reciprocal(scale: Float) -> Float:
    reciprocal: Float = np.where(scale != 0, np.float32(1) / scale, np.float32(0))
    return reciprocal


def _truncate(values: Float) -> Codes:
    # A subnormal scale has an infinite reciprocal; x86's conversion then yields 0 in the low byte.
    return np.where(np.isfinite(values), values, np.float32(0)).astype(np.int32)


def _round_half_away(values: Float) -> Codes:
    magnitude = np.abs(values)
    whole = np.floor(magnitude)
    with np.errstate(invalid="ignore"):
        whole += magnitude - whole >= np.float32(0.5)
    return _truncate(np.copysign(whole, values))


def _weights(rows: Float, importance: Float) -> Float:
    """Return importance * sqrt(mean square of the row + x^2), the row summed value by value."""
    squares = rows * rows
    columns = rows.shape[1]
    sums = np.add.accumulate(squares, axis=1)[:, -1:] if columns else squares
    mean = sums / np.float32(max(columns, 1))
    weights: Float = importance.astype(np.float32, copy=False) * np.sqrt(mean + squares)
    return weights
