"""8-bit floats E4M3 (no infinities, largest 448) with a scale per row, block, tensor or group.

    codes   float8_e4m3fn [rows, columns]
    scales  float32, bfloat16 or uint8 (E8M0: 2^(e - 127)) [rows, groups]

    value = code * scale, in float32

Scales that rows share (`fp8-tensor`, `fp8-block128`) lie in the part once for each row, so that
rows can be read, moved and stacked alone; containers that store them once fold them when they
write.

The scale is the largest magnitude / 448, at least 2^-110; as E8M0 the least power of two that
brings it to 448 or below. Casts saturate: no code is ever NaN. Importance changes nothing.

`unpack` gives codes in units of 2^-9, the smallest step (integers of at most 229376), and the scale
in the same units. The second zero is kept in `Scales.fields["negative_zero"]` where it occurs; no
encoder writes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.encodings.dense import FLOATS
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
from halfbyte.ir.encodings.grid import (
    UNNAMED,
    group_count,
    require_finite,
    spread,
    stored,
)
from halfbyte.ir.encodings.power_scales import power_bytes, power_scales, powers_above
from halfbyte.ir.encodings.shared import largest_per_group, spread_over_rows

Float = NDArray[np.float32]
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
LARGEST = 448.0
UNIT = np.float32(2.0**-9)
SMALLEST_SCALE = np.float32(2.0**-110)
E8M0 = "e8m0"
_VALUES = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)
_NAN = np.isnan(_VALUES)
_UNITS = np.where(_NAN, 0, _VALUES / UNIT).astype(np.int32)
_LEVELS = tuple(float(unit) for unit in np.unique(_UNITS))
_NEGATIVE_ZERO = 0x80
_NAME = re.compile(
    r"fp8(?P<place>-tensor|-block(?P<block>[1-9][0-9]*)|-g(?P<group>[1-9][0-9]*))?"
    r"(?P<scale>-bf16|-ue8m0)?"
)
_SUFFIX = {"float32": "", "bfloat16": "-bf16", E8M0: "-ue8m0"}
_SCALES = {suffix: name for name, suffix in _SUFFIX.items()}
_MICROSCALED = "fp8-g32-ue8m0"


def _byte_table() -> NDArray[np.uint8]:
    table = np.full(2 * _UNITS.max() + 1, 0x7F, np.uint8)
    known = np.flatnonzero(~_NAN & (np.arange(256) != _NEGATIVE_ZERO))
    table[_UNITS[known] + _UNITS.max()] = known
    return table


_BYTES = _byte_table()  # by the value in units, from the lowest; that of NaN where there is none


def _bytes_of(units: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return the codes of values in units.

    Raises:
        QuantizationError: a value is none of E4M3.
    """
    reach = int(_UNITS.max())
    if units.size and (units.min() < -reach or units.max() > reach):
        raise QuantizationError(UNNAMED, f"a code is beyond the {LARGEST:g} of float8")
    codes: NDArray[np.uint8] = _BYTES[units + reach]
    if (codes == 0x7F).any():
        found = int(units[codes == 0x7F][0])
        raise QuantizationError(UNNAMED, f"its code {found} is none of the codebook of float8")
    return codes


@dataclass(frozen=True)
class Float8(Encoding):
    """`group_size` columns (0: the row) and `shared` rows (0: the matrix) have one scale.

    Names: `fp8` (a scale per row), `fp8-tensor`, `fp8-blockN` (N x N), `fp8-gN`, each also with
    `-bf16` or `-ue8m0` for the type of the scales; `mxfp8` is `fp8-g32-ue8m0`.
    """

    group_size: int = 0
    shared: int = 1
    scale_dtype: str = "float32"

    def __post_init__(self) -> None:
        square = self.shared > 1 and self.shared == self.group_size
        known = square or self.shared == 1 or (self.shared == 0 and not self.group_size)
        if not known or self.group_size < 0 or self.scale_dtype not in _SUFFIX:
            raise UnsupportedError(
                f"float8 with groups of {self.group_size} columns, {self.shared} rows, scales "
                f"{self.scale_dtype!r}",
                "encodings",
                ["fp8", "fp8-tensor", "fp8-block128", "mxfp8"],
            )

    @classmethod
    def from_name(cls, name: str) -> Float8 | None:
        """Return the encoding that `name` spells, or None."""
        if name == "mxfp8":
            return cls(32, 1, E8M0)
        match = _NAME.fullmatch(name)
        if match is None or name == _MICROSCALED:
            return None
        scale = _SCALES[match["scale"] or ""]
        if match["place"] == "-tensor":
            return cls(0, 0, scale)
        if match["block"]:
            return cls(int(match["block"]), int(match["block"]), scale)
        return cls(int(match["group"] or 0), 1, scale)

    @classmethod
    def examples(cls) -> list[Encoding]:
        """Return the usual combinations."""
        names = ["fp8", "fp8-bf16", "fp8-tensor", "fp8-block128", "fp8-block128-ue8m0"]
        names += ["fp8-g128", "mxfp8"]
        return [found for name in names if (found := cls.from_name(name)) is not None]

    @property
    def name(self) -> str:
        """Return the name that `from_name` reads."""
        if self.shared == 0:
            place = "-tensor"
        elif self.shared > 1:
            place = f"-block{self.group_size}"
        else:
            place = f"-g{self.group_size}" if self.group_size else ""
        name = f"fp8{place}{_SUFFIX[self.scale_dtype]}"
        return "mxfp8" if name == _MICROSCALED else name

    @property
    def bits_per_weight(self) -> float:
        """Return the bits per value; scales of whole rows count nothing."""
        if not self.group_size:
            return 8.0
        return 8.0 + 8.0 * self._scale.itemsize / self.group_size

    @property
    def _scale(self) -> np.dtype[Any]:
        return np.dtype(np.uint8) if self.scale_dtype == E8M0 else FLOATS[self.scale_dtype]

    @property
    def block_shape(self) -> tuple[int, int]:
        """Return (1, columns per scale), or (1, 1) for whole rows: any length is allowed."""
        return 1, self.group_size or 1

    @property
    def shared_rows(self) -> int:
        """Return how many rows have the same scales; 0 for all of a matrix."""
        return self.shared

    @property
    def codebook(self) -> Codebook:
        """Return the 253 numbers of E4M3, in units of 2^-9."""
        return Codebook(_LEVELS, self.group_size, self.scale_dtype)

    @property
    def span(self) -> Grid:
        """Return the grid of the integers that codes are in units of 2^-9."""
        dtype = "bfloat16" if self.scale_dtype == E8M0 else self.scale_dtype
        return Grid(int(_LEVELS[0]), int(_LEVELS[-1]), "fixed", 0, self.group_size, dtype)

    @property
    def error_bound(self) -> float:
        """Return half a step of a number just above a power of two."""
        return 1 / 16

    def part_specs(self, rows: int, columns: int) -> dict[str, PartSpec]:
        """Return codes and scales."""
        groups = group_count(columns, self.group_size)
        return {
            "codes": PartSpec(E4M3, (rows, columns)),
            "scales": PartSpec(self._scale, (rows, groups)),
        }

    def unpack(self, parts: Parts, columns: int) -> Unpacked:
        """Return codes [rows, columns] and the scales of a range of rows.

        Raises:
            QuantizationError: a code or a scale is NaN.
        """
        codes = np.ascontiguousarray(parts["codes"]).view(np.uint8)
        if (codes & 0x7F == 0x7F).any():
            raise QuantizationError(UNNAMED, "a float8 code is NaN; repair the source")
        second_zero = codes == _NEGATIVE_ZERO
        fields = {"negative_zero": second_zero} if second_zero.any() else None
        scales = self.unpack_scales(parts, columns)
        return Unpacked(_UNITS[codes], Scales(scales.scale, scales.group_size, None, fields=fields))

    def unpack_scales(self, parts: Parts, columns: int) -> Scales:
        """Return the scales from the part `scales`, in units of 2^-9."""
        scale = self._real(np.asarray(parts["scales"])) * UNIT
        return Scales(scale, self.group_size or max(columns, 1))

    def _real(self, scales: Array) -> Float:
        if self.scale_dtype == E8M0:
            return power_scales(scales)
        return scales.astype(np.float32)

    def pack(self, unpacked: Unpacked) -> dict[str, Array]:
        """Return the parts that hold exactly these codes and scales.

        Raises:
            QuantizationError: the groups differ, or a code or scale does not fit.
        """
        units, scales = unpacked.codes, unpacked.scales
        if scales.offset is not None or (scales.zero_point is not None and scales.zero_point.any()):
            raise QuantizationError(UNNAMED, f"{self.name} has no zero points")
        codes = _bytes_of(units)
        if scales.fields and "negative_zero" in scales.fields:
            codes = np.where(scales.fields["negative_zero"] & (codes == 0), 0x80, codes)
            codes = codes.astype(np.uint8)
        return {"codes": codes.view(E4M3), **self.pack_scales(scales, units.shape[1])}

    def pack_scales(self, scales: Scales, columns: int) -> dict[str, Array]:
        """Return the part `scales`."""
        step = self.group_size or max(columns, 1)
        groups = group_count(columns, self.group_size)
        same = scales.group_size == step or (scales.scale.shape[1] == groups == 1)
        if scales.group_of_column is not None or not same:
            raise QuantizationError(UNNAMED, f"{self.name} needs groups of {step} columns in order")
        real = scales.scale / UNIT
        if not np.isfinite(real).all():
            raise QuantizationError(UNNAMED, "a scale is NaN or infinite")
        if self.scale_dtype == E8M0:
            return {"scales": power_bytes(real, self.name)}
        return {"scales": stored(real, self._scale, "scales")}

    def measure(self, rows: Float) -> Float:
        """Return the largest magnitude of each group of columns."""
        largest: Float = largest_per_group(rows, self.group_size).max(axis=0, initial=0)
        return largest

    def fit(self, rows: Float, importance: Float | None = None) -> Scales:
        """Choose scales as the module says; the first row begins a block.

        Raises:
            QuantizationError: a weight is not finite.
        """
        require_finite(rows)
        largest = largest_per_group(rows, self.group_size)
        return self.fit_measured(rows, spread_over_rows(largest, self.shared))

    def fit_measured(self, rows: Float, measured: Float, importance: Float | None = None) -> Scales:
        """Choose scales for the largest magnitudes [rows, groups] of rows that share them."""
        require_finite(rows)
        if self.scale_dtype == E8M0:
            scale = powers_above(measured, LARGEST)
        else:
            wanted = np.maximum(measured / np.float32(LARGEST), SMALLEST_SCALE)
            scale = wanted.astype(self._scale).astype(np.float32)
        return Scales(scale * UNIT, self.group_size or max(rows.shape[1], 1))

    def assign(self, rows: Float, scales: Scales) -> NDArray[np.int32]:
        """Return the nearest codes, ties to even, at most 448 in magnitude."""
        scale = spread(scales.scale / UNIT, scales, rows.shape[1])
        steps = np.zeros(rows.shape, np.float32)
        with np.errstate(over="ignore"):
            np.divide(rows, scale, out=steps, where=scale != 0)
        np.clip(steps, -np.float32(LARGEST), np.float32(LARGEST), out=steps)
        return _UNITS[steps.astype(E4M3).view(np.uint8)]

    def decode(self, parts: Parts, columns: int) -> Float:
        """Return float32 values [rows, columns]; NaN codes give NaN."""
        scales = Scales(self._real(np.asarray(parts["scales"])), self.group_size or max(columns, 1))
        values: Float = _VALUES[np.ascontiguousarray(parts["codes"]).view(np.uint8)]
        if scales.scale.shape[1] == 1:
            values *= scales.scale
        else:
            values *= spread(scales.scale, scales, columns)
        return values
