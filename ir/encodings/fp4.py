"""4-bit floats E2M1 with small scales in parts of their own: mxfp4 and nvfp4.

    mxfp4   codes         uint8 [rows, columns / 2]     even column in the low nibble
            scales        uint8 [rows, columns / 32]    E8M0: 2^(e - 127)
    nvfp4   codes         uint8 [rows, columns / 2]
            scales        float8_e4m3fn [rows, columns / 16]
            tensor_scales float32 [rows, 1]             one number for all rows of a matrix

    value = code * scale, with nvfp4's scale = scales * tensor_scales in float32

`unpack` gives E2M1 values doubled (integers -12..12) and the scale halved, as for ggml's MXFP4 and
NVFP4, whose blocks hold the same values. The second zero is kept in
`Scales.fields["negative_zero"]` where it occurs, nvfp4's factors in `block_scale` and
`tensor_scale`.

Codes are nearest, ties to the even code. Of the scales tried, the one of least squared error,
weighted with importance:

- mxfp4: 2^floor(log2(largest)) / 4 as the OCP standard has it, where values above 1.5 of the power
  saturate, and twice that; with importance also a half and a quarter.
- nvfp4: those that bring the largest value to 6 and to 4 ("four over six"); with importance every
  E4M3 number around and between. The tensor's scale is a power of two, so that its reciprocal,
  which some containers store, is exact, and so is the change to another one; it leaves room for
  the largest value at 4. Groups of zeros have scale 1 beside it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.encoding import (
    Array,
    Codebook,
    Encoding,
    Grid,
    Parts,
    PartSpec,
    Scales,
    Unpacked,
)
from halfbyte.ir.encodings.ggml_search import ordered_sum
from halfbyte.ir.encodings.grid import UNNAMED, require_finite, stored
from halfbyte.ir.encodings.power_scales import power_bytes, power_scales, powers_above
from halfbyte.ir.encodings.shared import largest_per_group, spread_over_rows
from halfbyte.kernels.codebooks import E2M1_VALUES

Float = NDArray[np.float32]
Codes = NDArray[np.int32]
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
NEGATIVE_ZERO = 8
_DOUBLED = np.array(E2M1_VALUES, np.int32)
_LEVELS = tuple(float(level) for level in sorted(set(E2M1_VALUES)))
_POSITIVE = _DOUBLED[:8].astype(np.float32)
_SIGNED = np.concatenate([_POSITIVE, -_POSITIVE])
_NO_CODE = 255
_NIBBLE = np.full(27, _NO_CODE, np.uint8)  # by code + 13; the ends stand for all beyond
_NIBBLE[_DOUBLED + 13] = np.arange(16)
_NIBBLE[13] = 0
_REACH, _ROOMY = 6.0, 4.0
_LARGEST_BYTE = 0x7E


def nearest_doubled(steps: Float) -> Float:
    """Return doubled E2M1 values nearest to `steps` (doubled too); ties to the even code."""
    magnitude = np.abs(steps)
    # Values are 1 apart below 4, 2 apart below 8, 4 apart above; even multiples have even codes.
    apart = np.float32(1) + (magnitude >= 4)
    apart += np.float32(2) * (magnitude >= 8)
    nearest = np.divide(steps, apart, out=magnitude)
    np.rint(nearest, out=nearest)
    nearest *= apart
    found: Float = np.clip(nearest, np.float32(-12), np.float32(12), out=nearest)
    return found


def e4m3_bytes(values: Float) -> NDArray[np.uint8]:
    """Return the bytes of E4M3 numbers nearest to values >= 0, from 2^-9 to 448."""
    clipped = np.clip(values, np.float32(2.0**-9), np.float32(448))
    return clipped.astype(E4M3).view(np.uint8)


@dataclass(frozen=True)
class Float4(Encoding):
    """Base: a type gives its constants and the parts that hold its scales."""

    NAME: ClassVar[str]
    GROUP: ClassVar[int]
    SCALE: ClassVar[str]
    ERROR_BOUND: ClassVar[float]

    @property
    def name(self) -> str:
        """Return the name."""
        return self.NAME

    @property
    def block_shape(self) -> tuple[int, int]:
        """Return (1, values per scale)."""
        return 1, self.GROUP

    @property
    def bits_per_weight(self) -> float:
        """Return 4 and a byte for each group."""
        return 4 + 8 / self.GROUP

    @property
    def codebook(self) -> Codebook:
        """Return the E2M1 values, doubled."""
        return Codebook(_LEVELS, self.GROUP, self.SCALE)

    @property
    def error_bound(self) -> float:
        """Return the largest error in units of the largest value of a group."""
        return self.ERROR_BOUND

    def part_specs(self, rows: int, columns: int) -> dict[str, PartSpec]:
        """Return codes and scales."""
        if columns % self.GROUP:
            raise QuantizationError(
                UNNAMED,
                f"rows of {columns} values do not divide into groups of {self.GROUP} "
                f"({self.name}); choose float16 or an affine type",
            )
        return {
            "codes": PartSpec(np.dtype(np.uint8), (rows, columns // 2)),
            **self._scale_specs(rows, columns // self.GROUP),
        }

    @abstractmethod
    def _scale_specs(self, rows: int, groups: int) -> dict[str, PartSpec]:
        """Return the specs of the parts that hold scales."""

    def unpack(self, parts: Parts, columns: int) -> Unpacked:
        """Return codes [rows, columns], doubled, and the scales, halved.

        Raises:
            QuantizationError: a scale is NaN.
        """
        nibbles = unpack_low_first(np.asarray(parts["codes"]))
        scales = self.unpack_scales(parts, columns)
        second_zero = nibbles == NEGATIVE_ZERO
        if second_zero.any():
            fields = {**(scales.fields or {}), "negative_zero": second_zero}
            scales = replace(scales, fields=fields)
        return Unpacked(_DOUBLED[nibbles], scales)

    def pack(self, unpacked: Unpacked) -> dict[str, Array]:
        """Return the parts that hold exactly these codes and scales.

        Raises:
            QuantizationError: the groups differ, or a code or scale does not fit.
        """
        codes, scales = unpacked.codes, unpacked.scales
        if scales.offset is not None or (scales.zero_point is not None and scales.zero_point.any()):
            raise QuantizationError(UNNAMED, f"{self.name} has no zero points")
        nibbles = _NIBBLE[np.clip(codes, -13, 13) + 13]
        missing = nibbles == _NO_CODE
        if missing.any():
            raise QuantizationError(
                UNNAMED, f"its code {codes[missing][0]} is none of the codebook of {self.name}"
            )
        if scales.fields and "negative_zero" in scales.fields:
            second = np.asarray(scales.fields["negative_zero"]).reshape(codes.shape)
            nibbles = np.where(second & (codes == 0), np.uint8(NEGATIVE_ZERO), nibbles)
        return {"codes": pack_low_first(nibbles), **self.pack_scales(scales, codes.shape[1])}

    def _require_groups(self, scales: Scales, columns: int) -> None:
        self.part_specs(1, columns)
        same = scales.group_size == self.GROUP or columns <= self.GROUP
        if scales.group_of_column is not None or not same:
            raise QuantizationError(
                UNNAMED, f"{self.name} needs groups of {self.GROUP} columns in order"
            )
        if not np.isfinite(scales.scale).all():
            raise QuantizationError(UNNAMED, "a scale is NaN or infinite")

    def assign(self, rows: Float, scales: Scales) -> Codes:
        """Return the nearest codes, ties to the even one; 0 where the scale is 0."""
        steps = _divided(self._grouped(rows), scales.scale[..., None])
        return nearest_doubled(steps).astype(np.int32).reshape(rows.shape)

    def _grouped(self, rows: Float) -> Float:
        return rows.reshape(len(rows), rows.shape[1] // self.GROUP, self.GROUP)

    def _best(
        self, rows: Float, candidates: list[Float], importance: Float | None
    ) -> NDArray[np.intp]:
        """Return which of the scales [rows, groups] each group errs least with.

        The first of equals. Errors are in units of the group's first candidate, so that squares
        stay in range.
        """
        grouped = self._grouped(rows)
        weight = None
        if importance is not None:
            weight = importance.astype(np.float32).reshape(1, -1, self.GROUP)
        errors = []
        for scale in candidates:
            steps = _divided(grouped, scale[..., None] / np.float32(2))
            gap = (nearest_doubled(steps) - steps) * _divided(scale, candidates[0])[..., None]
            squares = gap * gap if weight is None else gap * gap * weight
            errors.append(ordered_sum(squares.reshape(-1, self.GROUP).T).reshape(scale.shape))
        best: NDArray[np.intp] = np.argmin(np.stack(errors), axis=0)
        return best

    def decode(self, parts: Parts, columns: int) -> Float:
        """Return float32 values [rows, columns]; a NaN scale gives NaN."""
        scale = self._scale_values(parts) / np.float32(2)
        codes = self._grouped(_SIGNED[unpack_low_first(np.asarray(parts["codes"]))])
        values: Float = (codes * scale[..., None]).reshape(len(codes), columns)
        return values

    @abstractmethod
    def _scale_values(self, parts: Parts) -> Float:
        """Return the scales [rows, groups]."""


def _divided(values: Float, scale: Float) -> Float:
    """Return values / scale, 0 where the scale is 0."""
    out = np.zeros(np.broadcast_shapes(values.shape, scale.shape), np.float32)
    with np.errstate(over="ignore"):
        if scale.all():
            return np.divide(values, scale, out=out)
        np.divide(values, scale, out=out, where=scale != 0)
    return out


def unpack_low_first(packed: Array) -> NDArray[np.uint8]:
    """Return nibbles [rows, columns] of bytes [rows, columns / 2], low nibble first."""
    nibbles = np.empty((packed.shape[0], packed.shape[1], 2), np.uint8)
    np.bitwise_and(packed, 15, out=nibbles[..., 0])
    np.right_shift(packed, 4, out=nibbles[..., 1])
    return nibbles.reshape(packed.shape[0], 2 * packed.shape[1])


def pack_low_first(nibbles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the bytes that `unpack_low_first` reads."""
    packed: NDArray[np.uint8] = nibbles[:, ::2] | (nibbles[:, 1::2] << np.uint8(4))
    return packed


@dataclass(frozen=True)
class MicroFloat4(Float4):
    """E2M1, power of two per 32: the OCP standard's MXFP4."""

    NAME: ClassVar[str] = "mxfp4"
    GROUP: ClassVar[int] = 32
    SCALE: ClassVar[str] = "e8m0"
    ERROR_BOUND: ClassVar[float] = 0.25

    @property
    def span(self) -> Grid:
        """Return the grid of the doubled values."""
        return Grid(-12, 12, "fixed", 0, self.GROUP, "bfloat16")

    def _scale_specs(self, rows: int, groups: int) -> dict[str, PartSpec]:
        return {"scales": PartSpec(np.dtype(np.uint8), (rows, groups))}

    def _scale_values(self, parts: Parts) -> Float:
        return power_scales(np.asarray(parts["scales"]))

    def unpack_scales(self, parts: Parts, columns: int) -> Scales:
        """Return the scales, halved.

        Raises:
            QuantizationError: one is NaN.
        """
        scale = self._scale_values(parts)
        if np.isnan(scale).any():
            raise QuantizationError(UNNAMED, "a scale is NaN; repair the source")
        return Scales(scale / np.float32(2), self.GROUP)

    def pack_scales(self, scales: Scales, columns: int) -> dict[str, Array]:
        """Return the part `scales`."""
        self._require_groups(scales, columns)
        return {"scales": power_bytes(scales.scale * np.float32(2), self.name)}

    def fit(self, rows: Float, importance: Float | None = None) -> Scales:
        """Choose the scales as the module says.

        Raises:
            QuantizationError: a weight is not finite.
        """
        self.part_specs(*rows.shape)
        require_finite(rows)
        exponent = np.frexp(largest_per_group(rows, self.GROUP))[1] - 3
        shifts = (0, 1) if importance is None else (0, 1, -1, -2)
        tried = [np.clip(exponent + shift, -125, 125) for shift in shifts]
        candidates = [np.ldexp(np.float32(1), power) for power in tried]
        best = self._best(rows, candidates, importance)
        scale = np.take_along_axis(np.stack(candidates), best[None], axis=0)[0]
        return Scales(scale / np.float32(2), self.GROUP)


@dataclass(frozen=True)
class ScaledFloat4(Float4):
    """E2M1, scale E4M3 per 16 and one float32 for the matrix: NVIDIA's NVFP4."""

    NAME: ClassVar[str] = "nvfp4"
    GROUP: ClassVar[int] = 16
    SCALE: ClassVar[str] = "e4m3*float32"
    ERROR_BOUND: ClassVar[float] = 0.2

    @property
    def shared_rows(self) -> int:
        """Return 0: all rows of a matrix have one tensor scale."""
        return 0

    @property
    def span(self) -> Grid:
        """Return the grid of the doubled values."""
        return Grid(-12, 12, "fixed", 0, self.GROUP, "float32")

    def _scale_specs(self, rows: int, groups: int) -> dict[str, PartSpec]:
        return {
            "scales": PartSpec(E4M3, (rows, groups)),
            "tensor_scales": PartSpec(np.dtype(np.float32), (rows, 1)),
        }

    def _scale_values(self, parts: Parts) -> Float:
        block = np.asarray(parts["scales"]).astype(np.float32)
        product: Float = block * np.asarray(parts["tensor_scales"])
        return product

    def unpack_scales(self, parts: Parts, columns: int) -> Scales:
        """Return the scales, halved; fields: the factors that they are products of.

        Raises:
            QuantizationError: one is NaN or infinite.
        """
        scale = self._scale_values(parts)
        if not np.isfinite(scale).all():
            raise QuantizationError(UNNAMED, "a scale is NaN or infinite; repair the source")
        block = np.asarray(parts["scales"]).astype(np.float32)
        fields = _factors(block, np.asarray(parts["tensor_scales"]))
        return Scales(scale / np.float32(2), self.GROUP, fields=fields)

    def pack_scales(self, scales: Scales, columns: int) -> dict[str, Array]:
        """Return the parts `scales` and `tensor_scales`; without such fields the latter are 1.

        Raises:
            QuantizationError: a scale is no such product.
        """
        self._require_groups(scales, columns)
        fields = scales.fields or {}
        tensor = np.ones((len(scales.scale), 1), np.float32)
        if "tensor_scale" in fields and scales.scale.size:
            tensor = np.ascontiguousarray(fields["tensor_scale"][:, :1], np.float32)
        block = fields.get("block_scale")
        wanted = scales.scale * np.float32(2)
        if block is None or not np.array_equal(block * tensor, wanted):
            block = _divided(wanted, tensor)
        return {
            "scales": stored(np.asarray(block, np.float32), E4M3, "scales"),
            "tensor_scales": tensor,
        }

    def measure(self, rows: Float) -> Float:
        """Return the largest magnitude [1]."""
        largest: Float = np.abs(rows).max(initial=0).reshape(1).astype(np.float32)
        return largest

    def fit(self, rows: Float, importance: Float | None = None) -> Scales:
        """Choose the scales as the module says, the rows being a whole matrix.

        Raises:
            QuantizationError: a weight is not finite.
        """
        self.part_specs(*rows.shape)
        require_finite(rows)
        return self.fit_measured(rows, spread_over_rows(largest_per_group(rows, 0), 0), importance)

    def fit_measured(self, rows: Float, measured: Float, importance: Float | None = None) -> Scales:
        """Choose the scales of rows whose matrix has the largest magnitude `measured` [rows, 1]."""
        require_finite(rows)
        tensor = powers_above(measured, 448 * _ROOMY)
        largest = largest_per_group(rows, self.GROUP) / tensor
        to_six = e4m3_bytes(largest / np.float32(_REACH))
        if importance is None:
            tried = [to_six, e4m3_bytes(largest / np.float32(_ROOMY))]
        else:
            steps = range(-2, 8)
            tried = [np.clip(to_six.astype(np.int32) + s, 1, _LARGEST_BYTE) for s in steps]
        blocks = [byte.astype(np.uint8).view(E4M3).astype(np.float32) for byte in tried]
        best = self._best(rows, [block * tensor for block in blocks], importance)
        block = np.take_along_axis(np.stack(blocks), best[None], axis=0)[0]
        block = np.where(largest == 0, np.float32(1), block)
        half = block * tensor / np.float32(2)
        return Scales(half, self.GROUP, fields=_factors(block, tensor))


def _factors(block: Float, tensor: Float) -> dict[str, Array]:
    """Return the fields, both [rows, groups] as scales are."""
    return {"block_scale": block, "tensor_scale": np.broadcast_to(tensor, block.shape)}
