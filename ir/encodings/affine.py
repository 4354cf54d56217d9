"""Integers of 2 to 8 bits with a scale, and maybe a zero point, per group of a row.

    codes        uint8 [rows, ceil(columns * bits / 8)]   unsigned, least significant bits first
    scales       scale dtype [rows, groups]
    zero_points  uint8 or scale dtype [rows, groups]      only if zero_point is not `none`
    g_idx        int32 [columns]                          only with act_order: group of each column

    value = (code - zero_point) * scale, in float32; without zero points it is 2^(bits - 1)

Group g covers columns g * group_size up to the next group; the last group of a row may be short;
group_size 0 is one group for the whole row. Each row's codes start on a byte.

Scale choice (`fit`), rounded to the stored dtype before codes are chosen:

- symmetric, up to 6 bits: the value of largest magnitude lies on the lowest code, so the scale may
  be negative (as in ggml and AutoRound). Against |max| / (2^(bits-1) - 1) this measured 0.31 (2
  bits), 0.58 (3), 0.77 (4), 0.88 (5), 0.94 (6) times the squared error on Gaussian groups of 128.
- symmetric, 7 and 8 bits: |max| / (2^(bits-1) - 1), always positive; the other choice gains 1.5 %
  at 8 bits, not worth a negative scale to the int8 kernels of other tools.
- with zero points: (max - min) / (2^bits - 1) over a range that includes 0.
- with importance: of 21 ranges, 1.0 to 0.6 times the plain one, the one whose weighted squared
  error is least.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.encodings.dense import FLOATS, float_limits
from halfbyte.ir.encodings.encoding import Array, Encoding, Grid, Parts, PartSpec, Scales, Unpacked
from halfbyte.ir.encodings.grid import (
    UNNAMED,
    fractional_zero,
    group_count,
    nearest_codes,
    require_codes,
    require_finite,
    shifted,
    spread,
    stored,
    values_of,
)
from halfbyte.ir.encodings.kernel_choice import cpu_kernel
from halfbyte.ir.encodings.range_search import as_stored, best_range

ZeroPoint = Literal["none", "uint8", "float"]
Float = NDArray[np.float32]

SCALE_SUFFIX = {"float16": "", "bfloat16": "-bf16", "float32": "-f32"}
ZERO_SUFFIX = {"none": "", "uint8": "-asym", "float": "-fzp"}
_NAME = re.compile(
    r"int(?P<bits>[2-8])(-g(?P<group>[1-9][0-9]*))?(?P<zero>-asym|-fzp)?"
    r"(?P<scale>-bf16|-f32)?(?P<order>-act-?order)?"
)
WIDEST_SIGNED_EXTREME = 6


@dataclass(frozen=True)
class Affine(Encoding):
    """`bits` 2..8; `group_size` columns per scale (0: the row); `zero_point` none, uint8, float.

    Names: `int{bits}[-g{group_size}][-asym|-fzp][-bf16|-f32][-actorder]`; `-act-order` is read too.
    """

    bits: int = 8
    group_size: int = 0
    zero_point: ZeroPoint = "none"
    scale_dtype: str = "float16"
    act_order: bool = False

    def __post_init__(self) -> None:
        valid = (
            2 <= self.bits <= 8
            and self.group_size >= 0
            and self.zero_point in ZERO_SUFFIX
            and self.scale_dtype in SCALE_SUFFIX
        )
        if not valid:
            raise UnsupportedError(
                f"affine encoding of {self.bits} bits, group size {self.group_size}, zero point "
                f"{self.zero_point!r}, scale {self.scale_dtype!r}",
                "encodings",
                ["bits 2..8", "zero points none uint8 float", "scales float16 bfloat16 float32"],
            )

    @classmethod
    def from_name(cls, name: str) -> Affine | None:
        """Return the encoding that `name` spells, or None."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        zeros = {suffix: kind for kind, suffix in ZERO_SUFFIX.items()}
        scales = {suffix: dtype for dtype, suffix in SCALE_SUFFIX.items()}
        zero: Any = zeros[match["zero"] or ""]
        group = int(match["group"] or 0)
        scale = scales[match["scale"] or ""]
        return cls(int(match["bits"]), group, zero, scale, match["order"] is not None)

    @classmethod
    def examples(cls) -> list[Encoding]:
        """Return the usual combinations."""
        names = [f"int{bits}{group}" for bits in range(2, 9) for group in ("", "-g32", "-g128")]
        names += ["int5-g32-f32", "int4-g32-asym", "int4-g128-asym", "int8-g32-f32", "int8-asym"]
        names += ["int4-g32-fzp-f32", "int5-g32-fzp-f32", "int3-g64-asym-bf16"]
        names += ["int4-g32-f32", "int4-g128-bf16", "int4-g128-actorder", "int4-g32-asym-actorder"]
        return [found for name in names if (found := cls.from_name(name)) is not None]

    @property
    def name(self) -> str:
        """Return the name that `from_name` reads."""
        group = f"-g{self.group_size}" if self.group_size else ""
        order = "-actorder" if self.act_order else ""
        zero, scale = ZERO_SUFFIX[self.zero_point], SCALE_SUFFIX[self.scale_dtype]
        return f"int{self.bits}{group}{zero}{scale}{order}"

    @property
    def symmetric(self) -> bool:
        """Whether code 2^(bits - 1) is 0 in every group."""
        return self.zero_point == "none"

    @property
    def bits_per_weight(self) -> float:
        """Return the bits per value; scales of whole rows count nothing."""
        if not self.group_size:
            return float(self.bits)
        return self.bits + 8.0 * self._group_bytes / self.group_size

    @property
    def _group_bytes(self) -> int:
        zero_bytes = {"none": 0, "uint8": 1, "float": self._scale.itemsize}
        return self._scale.itemsize + zero_bytes[self.zero_point]

    @property
    def _scale(self) -> np.dtype[Any]:
        return FLOATS[self.scale_dtype]

    @property
    def block_shape(self) -> tuple[int, int]:
        """Return (1, group_size), or (1, 1) for whole rows: any length is allowed."""
        return 1, self.group_size or 1

    @property
    def levels(self) -> int:
        """Return the highest code."""
        return (1 << self.bits) - 1

    @property
    def grid(self) -> Grid:
        """Return the grid of the codes."""
        kinds: dict[str, Literal["fixed", "integer", "float"]]
        kinds = {"none": "fixed", "uint8": "integer", "float": "float"}
        zero = 1 << (self.bits - 1) if self.symmetric else 0
        kind = kinds[self.zero_point]
        return Grid(0, self.levels, kind, zero, self.group_size, self.scale_dtype, self.act_order)

    @property
    def error_bound(self) -> float:
        """Return the largest error of `encode` in units of the group's largest |value|."""
        rounding = float(float_limits(self._scale).eps)
        if not self.symmetric:
            fraction = 4 * self.levels * rounding if self.zero_point == "float" else 0.0
            return (2 + fraction) / self.levels + 2 * rounding
        half = 1 << (self.bits - 1)
        if self.bits <= WIDEST_SIGNED_EXTREME:
            return 1 / half + rounding
        return 0.5 / (half - 1) + rounding

    def part_specs(self, rows: int, columns: int) -> dict[str, PartSpec]:
        """Return codes, scales and, where they exist, zero_points and g_idx."""
        groups = group_count(columns, self.group_size)
        byte = np.dtype(np.uint8)
        specs = {
            "codes": PartSpec(byte, (rows, -(-columns * self.bits // 8))),
            "scales": PartSpec(self._scale, (rows, groups)),
        }
        if not self.symmetric:
            dtype = byte if self.zero_point == "uint8" else self._scale
            specs["zero_points"] = PartSpec(dtype, (rows, groups))
        if self.act_order:
            specs["g_idx"] = PartSpec(np.dtype(np.int32), (columns,), per_row=False)
        return specs

    def unpack(self, parts: Parts, columns: int) -> Unpacked:
        """Return codes [rows, columns] and the scales of a range of rows."""
        codes = unpack_bits(np.asarray(parts["codes"]), self.bits, columns)
        return Unpacked(codes.astype(np.int32), self.unpack_scales(parts, columns))

    def unpack_scales(self, parts: Parts, columns: int) -> Scales:
        """Return the scales from the parts `scales`, `zero_points` and `g_idx`."""
        scale = np.asarray(parts["scales"]).astype(np.float32)
        zero: Any
        if self.symmetric:
            zero = np.full(scale.shape, 1 << (self.bits - 1), np.int32)
        else:
            dtype = np.int32 if self.zero_point == "uint8" else np.float32
            zero = np.asarray(parts["zero_points"]).astype(dtype)
        order = np.asarray(parts["g_idx"]) if self.act_order else None
        return Scales(scale, self.group_size or max(columns, 1), zero, None, order)

    def pack(self, unpacked: Unpacked) -> dict[str, Array]:
        """Return the parts; zero points are restated in this encoding's kind where that is exact.

        Raises:
            QuantizationError: the groups differ, or a code, scale or zero point does not fit.
        """
        codes, scales = unpacked.codes, unpacked.scales
        if self.symmetric:
            codes = shifted(unpacked, 1 << (self.bits - 1), 0, self.levels).codes
        elif scales.zero_point is None and scales.offset is None:
            unpacked = shifted(unpacked, 1 << (self.bits - 1), 0, self.levels)
            codes, scales = unpacked.codes, unpacked.scales
        require_codes(codes, 0, self.levels)
        parts = {"codes": pack_bits(codes.astype(np.uint8), self.bits)}
        return {**parts, **self.pack_scales(scales, codes.shape[1])}

    def pack_scales(self, scales: Scales, columns: int) -> dict[str, Array]:
        """Return the parts `scales`, `zero_points` and `g_idx`."""
        step = self.group_size or max(columns, 1)
        groups = group_count(columns, self.group_size)
        given = scales.group_of_column
        same = scales.group_size == step or (scales.scale.shape[1] == groups == 1)
        if given is not None and not self.act_order:
            if not np.array_equal(given, np.arange(columns) // step):
                raise QuantizationError(UNNAMED, f"{self.name} cannot keep the order of its groups")
        elif given is None and not same:
            found = f"its groups of {scales.group_size} columns"
            raise QuantizationError(UNNAMED, f"{found} are not the {step} of {self.name}")
        parts = {"scales": stored(scales.scale, self._scale, "scales")}
        if not np.isfinite(scales.scale).all():
            raise QuantizationError(UNNAMED, "a scale is NaN or infinite")
        if not self.symmetric:
            parts["zero_points"] = self._stored_zeros(scales)
        if self.act_order:
            order = np.arange(columns) // step if given is None else given
            parts["g_idx"] = order.astype(np.int32)
        return parts

    def _stored_zeros(self, scales: Scales) -> Array:
        zero: Any = scales.zero_point
        if scales.offset is not None:
            zero = fractional_zero(scales.offset, scales.scale)
            whole = np.rint(zero)
            if self.zero_point == "uint8" and np.array_equal(-whole * scales.scale, scales.offset):
                zero = whole
        assert zero is not None
        if self.zero_point == "float":
            return stored(zero.astype(np.float32), self._scale, "zero points")
        if zero.dtype.kind == "f" and not np.array_equal(zero, np.rint(zero)):
            raise QuantizationError(UNNAMED, "its zero points are fractions of a code")
        require_codes(zero, 0, 255)
        return np.asarray(zero).astype(np.uint8)

    def fit(self, rows: Float, importance: Float | None = None) -> Scales:
        """Choose scales and zero points as the module says, exactly as they will be stored.

        Raises:
            QuantizationError: a weight is not finite, or a scale leaves its dtype's range.
        """
        require_finite(rows)
        step = self.group_size or max(rows.shape[1], 1)
        groups = group_count(rows.shape[1], self.group_size)
        blocks = _padded(rows, groups * step).reshape(rows.shape[0], groups, step)
        low, high = blocks.min(axis=2, initial=0), blocks.max(axis=2, initial=0)
        order = (np.arange(rows.shape[1]) // step).astype(np.int32) if self.act_order else None

        def scales_of(factor: np.float32) -> Scales:
            return replace(self._scales(low * factor, high * factor, step), group_of_column=order)

        def gap_of(scales: Scales) -> Float:
            return values_of(Unpacked(self.assign(rows, scales), scales)) - rows

        return best_range(scales_of, gap_of, importance)

    def _scales(self, low: Float, high: Float, step: int) -> Scales:
        """Return the stored scales for ranges low..high (low <= 0 <= high) [rows, groups]."""
        half = 1 << (self.bits - 1)
        if not self.symmetric:
            scale = self._rounded_scale((high - low) / np.float32(self.levels))
            return Scales(scale, step, self._zeros(low, scale))
        if self.bits <= WIDEST_SIGNED_EXTREME:
            extreme = np.where(-low >= high, low, high)
            scale = extreme / np.float32(-half)
        else:
            scale = np.maximum(-low, high) / np.float32(half - 1)
        return Scales(self._rounded_scale(scale), step, np.full(scale.shape, half, np.int32))

    def _rounded_scale(self, scale: Float) -> Float:
        wider = replace(self, scale_dtype="float32").name
        wider = f"a type with float32 scales, for example {wider}"
        return as_stored(scale, self._scale, "a scale", wider)

    def _zeros(self, low: Float, scale: Float) -> NDArray[Any]:
        zero = np.zeros(scale.shape, np.float32)
        with np.errstate(over="ignore"):
            np.divide(-low, scale, out=zero, where=scale != 0)
        if self.zero_point == "uint8":
            return np.clip(np.rint(zero), 0, self.levels).astype(np.int32)
        clipped = np.clip(zero, 0, self.levels)
        return clipped.astype(self._scale).astype(np.float32)

    def assign(self, rows: Float, scales: Scales) -> NDArray[np.int32]:
        """Return the nearest code of each value: a division, then ties to even."""
        return nearest_codes(rows, scales, 0, self.levels)

    def decode(self, parts: Parts, columns: int) -> Float:
        """Return float32 values [rows, columns]."""
        kernel = cpu_kernel("decode", "affine")
        if kernel is None:
            return self.decode_reference(parts, columns)
        small = {name: np.ascontiguousarray(parts[name]) for name in parts if name != "codes"}
        data = np.ascontiguousarray(parts["codes"])
        decoded: Float = kernel(
            "affine", data, columns, bits=self.bits, group_size=self.group_size, **small
        )
        return decoded

    def decode_reference(self, parts: Parts, columns: int) -> Float:
        """Return the same values as `decode`, by numpy alone."""
        codes = unpack_bits(np.asarray(parts["codes"]), self.bits, columns)
        scales = self.unpack_scales(parts, columns)
        zero = scales.zero_point
        assert zero is not None
        values = codes.astype(np.float32)
        values -= spread(zero.astype(np.float32), scales, columns)
        values *= spread(scales.scale, scales, columns)
        return values


def _padded(rows: Float, columns: int) -> Float:
    if rows.shape[1] == columns:
        return rows
    padded = np.zeros((rows.shape[0], columns), np.float32)
    padded[:, : rows.shape[1]] = rows
    return padded


def pack_bits(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return [rows, ceil(columns * bits / 8)]: each row a stream, least significant bits first."""
    rows, columns = codes.shape
    if bits == 8:
        return codes
    padded = np.zeros((rows, -(-columns // 8), 8), np.uint8)
    padded.reshape(rows, padded.shape[1] * 8)[:, :columns] = codes
    # Eight codes fill `bits` bytes, the low ones of a little-endian word.
    words = np.zeros(padded.shape[:2], "<u8")
    for lane in range(8):
        words |= padded[..., lane].astype("<u8") << np.uint64(lane * bits)
    stream = words.view(np.uint8).reshape(padded.shape)[..., :bits]
    packed: NDArray[np.uint8] = stream.reshape(rows, padded.shape[1] * bits)
    return np.ascontiguousarray(packed[:, : -(-columns * bits // 8)])


def unpack_bits(packed: NDArray[np.uint8], bits: int, columns: int) -> NDArray[np.uint8]:
    """Return codes [rows, columns]; the inverse of `pack_bits`."""
    if bits == 8:
        return packed
    rows, eights = packed.shape[0], -(-columns // 8)
    stream = np.zeros((rows, eights * bits), np.uint8)
    stream[:, : packed.shape[1]] = packed
    padded = np.zeros((rows, eights, 8), np.uint8)
    padded[..., :bits] = stream.reshape(rows, eights, bits)
    words = padded.view("<u8")[..., 0]
    codes = np.empty((rows, eights, 8), np.uint8)
    for lane in range(8):
        codes[..., lane] = (words >> np.uint64(lane * bits)) & np.uint64((1 << bits) - 1)
    flat: NDArray[np.uint8] = codes.reshape(rows, eights * 8)
    return flat[:, :columns]
