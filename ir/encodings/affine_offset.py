"""Integers of 2 to 8 bits with a scale and an offset per group of a row, as MLX has them.

    codes   uint8 [rows, ceil(columns * bits / 8)]   unsigned, least significant bits first
    scales  scale dtype [rows, groups]               may be negative
    biases  scale dtype [rows, groups]

    value = code * scale + bias, in float32

The scales are MLX's own choice: the end of larger magnitude is the bias, and the step is changed a
little so that 0 has a code. Codes are nearest on the scales as they are stored; MLX keeps those it
found before it rounded scales to 16 bits. With importance, of 21 ranges, 1.0 to 0.6 times the plain
one, the one whose weighted squared error is least.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.encodings.affine import SCALE_SUFFIX, pack_bits, unpack_bits
from halfbyte.ir.encodings.dense import FLOATS, float_limits
from halfbyte.ir.encodings.encoding import Array, Encoding, Grid, Parts, PartSpec, Scales, Unpacked
from halfbyte.ir.encodings.grid import (
    UNNAMED,
    group_count,
    nearest_codes,
    require_codes,
    require_finite,
    shifted,
    spread,
    stored,
    stored_offset,
    values_of,
)
from halfbyte.ir.encodings.range_search import as_stored, best_range

Float = NDArray[np.float32]
_NAME = re.compile(r"int(?P<bits>[2-8])-g(?P<group>[1-9][0-9]*)-bias(?P<scale>-bf16|-f32)?")
SMALLEST_SCALE = np.float32(1e-7)


@dataclass(frozen=True)
class AffineOffset(Encoding):
    """`bits` 2..8; `group_size` columns per scale and offset.

    Names: `int{bits}-g{group_size}-bias[-bf16|-f32]`.
    """

    bits: int = 4
    group_size: int = 64
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8 or self.group_size < 1 or self.scale_dtype not in SCALE_SUFFIX:
            raise UnsupportedError(
                f"codes of {self.bits} bits, groups of {self.group_size}, scales "
                f"{self.scale_dtype!r}",
                "encodings",
                ["bits 2..8", "scales float16 bfloat16 float32"],
            )

    @classmethod
    def from_name(cls, name: str) -> AffineOffset | None:
        """Return the encoding that `name` spells, or None."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        scales = {suffix: dtype for dtype, suffix in SCALE_SUFFIX.items()}
        return cls(int(match["bits"]), int(match["group"]), scales[match["scale"] or ""])

    @classmethod
    def examples(cls) -> list[Encoding]:
        """Return the usual combinations."""
        names = ["int4-g64-bias", "int4-g64-bias-bf16", "int4-g32-bias-f32", "int8-g64-bias"]
        names += ["int3-g64-bias", "int6-g64-bias-bf16", "int5-g32-bias-f32", "int2-g32-bias"]
        return [found for name in names if (found := cls.from_name(name)) is not None]

    @property
    def name(self) -> str:
        """Return the name that `from_name` reads."""
        return f"int{self.bits}-g{self.group_size}-bias{SCALE_SUFFIX[self.scale_dtype]}"

    @property
    def _scale(self) -> np.dtype[Any]:
        return FLOATS[self.scale_dtype]

    @property
    def bits_per_weight(self) -> float:
        """Return the bits per value, scales and offsets included."""
        return self.bits + 16.0 * self._scale.itemsize / self.group_size

    @property
    def block_shape(self) -> tuple[int, int]:
        """Return (1, group_size)."""
        return 1, self.group_size

    @property
    def levels(self) -> int:
        """Return the highest code."""
        return (1 << self.bits) - 1

    @property
    def grid(self) -> Grid:
        """Return the grid of the codes."""
        return Grid(0, self.levels, "offset", 0, self.group_size, self.scale_dtype)

    @property
    def error_bound(self) -> float:
        """Return the largest error of `encode` in units of the group's largest |value|."""
        return 3 / self.levels + 4 * float(float_limits(self._scale).eps)

    def part_specs(self, rows: int, columns: int) -> dict[str, PartSpec]:
        """Return codes, scales and biases."""
        groups = group_count(columns, self.group_size)
        return {
            "codes": PartSpec(np.dtype(np.uint8), (rows, -(-columns * self.bits // 8))),
            "scales": PartSpec(self._scale, (rows, groups)),
            "biases": PartSpec(self._scale, (rows, groups)),
        }

    def unpack(self, parts: Parts, columns: int) -> Unpacked:
        """Return codes [rows, columns] and the scales of a range of rows."""
        codes = unpack_bits(np.asarray(parts["codes"]), self.bits, columns)
        return Unpacked(codes.astype(np.int32), self.unpack_scales(parts, columns))

    def unpack_scales(self, parts: Parts, columns: int) -> Scales:
        """Return the scales from the parts `scales` and `biases`."""
        scale = np.asarray(parts["scales"]).astype(np.float32)
        offset = np.asarray(parts["biases"]).astype(np.float32)
        return Scales(scale, self.group_size, None, offset)

    def pack(self, unpacked: Unpacked) -> dict[str, Array]:
        """Return the parts; zero points are restated as offsets where that is exact.

        Raises:
            QuantizationError: the groups differ, or a code, scale or offset does not fit.
        """
        codes, scales = unpacked.codes, unpacked.scales
        if scales.offset is None and scales.zero_point is None and codes.min(initial=0) < 0:
            unpacked = shifted(unpacked, 1 << (self.bits - 1), 0, self.levels)
            codes, scales = unpacked.codes, unpacked.scales
        require_codes(codes, 0, self.levels)
        parts = {"codes": pack_bits(codes.astype(np.uint8), self.bits)}
        return {**parts, **self.pack_scales(scales, codes.shape[1])}

    def pack_scales(self, scales: Scales, columns: int) -> dict[str, Array]:
        """Return the parts `scales` and `biases`."""
        same = scales.group_size == self.group_size or columns <= self.group_size
        order = scales.group_of_column
        in_order = order is None or np.array_equal(order, np.arange(columns) // self.group_size)
        if not (same and in_order):
            raise QuantizationError(
                UNNAMED, f"{self.name} needs groups of {self.group_size} columns in order"
            )
        if not np.isfinite(scales.scale).all():
            raise QuantizationError(UNNAMED, "a scale is NaN or infinite")
        return {
            "scales": stored(scales.scale, self._scale, "scales"),
            "biases": stored_offset(scales, self._scale),
        }

    def fit(self, rows: Float, importance: Float | None = None) -> Scales:
        """Choose scales and offsets as the module says, exactly as they will be stored.

        Raises:
            QuantizationError: a weight is not finite, or a scale leaves its dtype's range.
        """
        require_finite(rows)
        starts = np.arange(0, rows.shape[1], self.group_size)
        low = np.minimum.reduceat(rows, starts, axis=1)
        high = np.maximum.reduceat(rows, starts, axis=1)

        def gap_of(scales: Scales) -> Float:
            return values_of(Unpacked(self.assign(rows, scales), scales)) - rows

        return best_range(lambda part: self._scales(low * part, high * part), gap_of, importance)

    def _scales(self, low: Float, high: Float) -> Scales:
        """Return the stored scales and offsets for ranges low..high [rows, groups]."""
        step = np.maximum((high - low) / np.float32(self.levels), SMALLEST_SCALE)
        from_low = np.abs(low) > np.abs(high)
        step = np.where(from_low, step, -step)
        edge = np.where(from_low, low, high)
        zero = np.rint(edge / step)
        placed = zero != 0
        np.divide(edge, zero, out=step, where=placed)
        offset = np.where(placed, edge, np.float32(0))
        return Scales(self._rounded(step), self.group_size, None, self._rounded(offset))

    def _rounded(self, values: Float) -> Float:
        wider = replace(self, scale_dtype="float32").name
        wider = f"a type with float32 scales, for example {wider}"
        return as_stored(values, self._scale, "a scale or offset", wider)

    def assign(self, rows: Float, scales: Scales) -> NDArray[np.int32]:
        """Return the nearest code of each value: a division, then ties to even."""
        return nearest_codes(rows, scales, 0, self.levels)

    def decode(self, parts: Parts, columns: int) -> Float:
        """Return float32 values [rows, columns]."""
        scales = self.unpack_scales(parts, columns)
        assert scales.offset is not None
        values = unpack_bits(np.asarray(parts["codes"]), self.bits, columns).astype(np.float32)
        values *= spread(scales.scale, scales, columns)
        values += spread(scales.offset, scales, columns)
        return values
