"""4-bit codes of uneven steps with the largest magnitude of each group: bitsandbytes' NF4 and FP4.

    codes   uint8 [rows, ceil(columns / 2)]               even column in the HIGH nibble
    scales  float32, bfloat16 or float16 [rows, groups]   largest magnitude of the group

    value = table[code] * scale, in float32

NF4's table holds quantiles of a normal distribution, ascending, -1 and 1 at its ends; bitsandbytes'
FP4 is its own 3-bit float with a sign (0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1), not E2M1.

`unpack` numbers the codes by ascending value. With importance, of 21 scales from 1.0 to 0.6 times
the largest magnitude the one whose weighted squared error is least.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.encodings.dense import FLOATS
from halfbyte.ir.encodings.encoding import (
    Array,
    Codebook,
    Encoding,
    Parts,
    PartSpec,
    Scales,
    Unpacked,
)
from halfbyte.ir.encodings.grid import (
    UNNAMED,
    group_count,
    require_codes,
    require_finite,
    spread,
    stored,
)
from halfbyte.ir.encodings.range_search import as_stored, best_range
from halfbyte.ir.encodings.shared import largest_per_group

Float = NDArray[np.float32]
# Code -> value, as the files' own `quant_map` has it.
TABLES: dict[str, Float] = {
    "nf4": np.array(
        [
            *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
            *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
            *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
            *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
            *(0.7229568362236023, 1.0),
        ],
        np.float32,
    ),
    "bnb-fp4": np.array(
        [sign * x for sign in (1, -1) for x in (0.0, 0.0625, 8, 12, 4, 6, 2, 3)], np.float32
    )
    / np.float32(12),
}
_ORDERS = {
    name: np.lexsort((~np.signbit(table), table)).astype(np.uint8) for name, table in TABLES.items()
}
_ERRORS = {"nf4": 0.153, "bnb-fp4": 0.167}
_NAME = re.compile(r"(?P<table>nf4|bnb-fp4)(-g(?P<group>[1-9][0-9]*))?(?P<scale>-bf16|-f16)?")
_SUFFIX = {"float32": "", "bfloat16": "-bf16", "float16": "-f16"}
_SCALES = {suffix: name for name, suffix in _SUFFIX.items()}
USUAL_GROUP = 64


@dataclass(frozen=True)
class Quantile4(Encoding):
    """`table` nf4 or bnb-fp4; `group_size` columns per scale.

    Names: `nf4` (groups of 64), `nf4-gN`, `bnb-fp4`, `bnb-fp4-gN`, each also with `-bf16` or `-f16`
    for the type of the scales.
    """

    table: str = "nf4"
    group_size: int = USUAL_GROUP
    scale_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.table not in TABLES or self.group_size < 1 or self.scale_dtype not in _SUFFIX:
            raise UnsupportedError(
                f"{self.table!r} with groups of {self.group_size}, scales {self.scale_dtype!r}",
                "encodings",
                ["nf4", "nf4-bf16", "bnb-fp4"],
            )

    @classmethod
    def from_name(cls, name: str) -> Quantile4 | None:
        """Return the encoding that `name` spells, or None."""
        match = _NAME.fullmatch(name)
        if match is None or match["group"] == str(USUAL_GROUP):
            return None
        group = int(match["group"] or USUAL_GROUP)
        return cls(match["table"], group, _SCALES[match["scale"] or ""])

    @classmethod
    def examples(cls) -> list[Encoding]:
        """Return the usual combinations."""
        names = ["nf4", "nf4-bf16", "nf4-g32", "bnb-fp4"]
        return [found for name in names if (found := cls.from_name(name)) is not None]

    @property
    def name(self) -> str:
        """Return the name that `from_name` reads."""
        group = "" if self.group_size == USUAL_GROUP else f"-g{self.group_size}"
        return f"{self.table}{group}{_SUFFIX[self.scale_dtype]}"

    @property
    def _scale(self) -> np.dtype[Any]:
        return FLOATS[self.scale_dtype]

    @property
    def bits_per_weight(self) -> float:
        """Return 4 and the bits of a scale for each group."""
        return 4 + 8.0 * self._scale.itemsize / self.group_size

    @property
    def block_shape(self) -> tuple[int, int]:
        """Return (1, group_size)."""
        return 1, self.group_size

    @property
    def levels(self) -> Float:
        """Return the 16 values, ascending."""
        return TABLES[self.table][_ORDERS[self.table]]

    @property
    def codebook(self) -> Codebook:
        """Return the 16 values; codes number them."""
        levels = tuple(float(level) for level in self.levels)
        return Codebook(levels, self.group_size, self.scale_dtype, indexed=True)

    @property
    def error_bound(self) -> float:
        """Return half the widest step, and what rounding of the scale may cut off."""
        return _ERRORS[self.table] + 2.0**-8

    def part_specs(self, rows: int, columns: int) -> dict[str, PartSpec]:
        """Return codes and scales."""
        groups = group_count(columns, self.group_size)
        return {
            "codes": PartSpec(np.dtype(np.uint8), (rows, -(-columns // 2))),
            "scales": PartSpec(self._scale, (rows, groups)),
        }

    def unpack(self, parts: Parts, columns: int) -> Unpacked:
        """Return the numbers of the values [rows, columns], by ascending value, and the scales."""
        rank = np.argsort(_ORDERS[self.table]).astype(np.int32)
        codes = unpack_high_first(np.asarray(parts["codes"]), columns)
        return Unpacked(rank[codes], self.unpack_scales(parts, columns))

    def unpack_scales(self, parts: Parts, columns: int) -> Scales:
        """Return the scales."""
        return Scales(np.asarray(parts["scales"]).astype(np.float32), self.group_size)

    def pack(self, unpacked: Unpacked) -> dict[str, Array]:
        """Return the parts that hold exactly these codes and scales.

        Raises:
            QuantizationError: the groups differ, or a code or scale does not fit.
        """
        codes = unpacked.codes
        require_codes(codes, 0, 15)
        packed = pack_high_first(_ORDERS[self.table][codes])
        return {"codes": packed, **self.pack_scales(unpacked.scales, codes.shape[1])}

    def pack_scales(self, scales: Scales, columns: int) -> dict[str, Array]:
        """Return the part `scales`."""
        same = scales.group_size == self.group_size or columns <= self.group_size
        if scales.group_of_column is not None or scales.zero_point is not None or not same:
            raise QuantizationError(
                UNNAMED, f"{self.name} needs groups of {self.group_size} columns in order"
            )
        if not np.isfinite(scales.scale).all():
            raise QuantizationError(UNNAMED, "a scale is NaN or infinite")
        return {"scales": stored(scales.scale, self._scale, "scales")}

    def fit(self, rows: Float, importance: Float | None = None) -> Scales:
        """Choose the scales as the module says.

        Raises:
            QuantizationError: a weight is not finite, or a scale leaves its dtype's range.
        """
        require_finite(rows)
        largest = largest_per_group(rows, self.group_size)

        def scales_of(factor: np.float32) -> Scales:
            kept = as_stored(largest * factor, self._scale, "a scale", self.table)
            return Scales(kept, self.group_size)

        def gap_of(scales: Scales) -> Float:
            scale = spread(scales.scale, scales, rows.shape[1])
            return self.levels[self.assign(rows, scales)] * scale - rows

        return best_range(scales_of, gap_of, importance)

    def assign(self, rows: Float, scales: Scales) -> NDArray[np.int32]:
        """Return the numbers of the nearest values; that of 0 where the scale is 0."""
        scale = spread(scales.scale, scales, rows.shape[1])
        steps = np.zeros(rows.shape, np.float32)
        with np.errstate(over="ignore"):
            np.divide(rows, scale, out=steps, where=scale != 0)
        levels = self.levels
        middles = (levels[1:] + levels[:-1]) / 2
        return np.searchsorted(middles, steps, side="right").astype(np.int32)

    def decode(self, parts: Parts, columns: int) -> Float:
        """Return float32 values [rows, columns]."""
        scales = self.unpack_scales(parts, columns)
        values = TABLES[self.table][unpack_high_first(np.asarray(parts["codes"]), columns)]
        values *= spread(scales.scale, scales, columns)
        return values


def unpack_high_first(packed: Array, columns: int) -> NDArray[np.uint8]:
    """Return nibbles [rows, columns] of bytes [rows, ceil(columns / 2)], high nibble first."""
    nibbles = np.empty((packed.shape[0], packed.shape[1], 2), np.uint8)
    np.right_shift(packed, 4, out=nibbles[..., 0])
    np.bitwise_and(packed, 15, out=nibbles[..., 1])
    flat: NDArray[np.uint8] = nibbles.reshape(packed.shape[0], 2 * packed.shape[1])[:, :columns]
    return flat


def pack_high_first(nibbles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the bytes that `unpack_high_first` reads; the last low nibble may be 0."""
    if nibbles.shape[1] % 2:
        nibbles = np.pad(nibbles, ((0, 0), (0, 1)))
    packed: NDArray[np.uint8] = (nibbles[:, ::2] << np.uint8(4)) | nibbles[:, 1::2]
    return packed
