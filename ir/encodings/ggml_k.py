"""ggml's 256-value block types Q2_K, Q3_K, Q4_K, Q5_K and Q6_K: scales that are codes themselves.

Part "data": [rows, row_bytes] uint8; field offsets in kernels/layouts.py, bits in ggml_k_fields.py.
A block has one float16 scale d (and dmin), and for each group of 16 or 32 values a small integer
sc (and mn):

    value = d * sc * (code - zero), or d * sc * code - dmin * mn

`unpack` gives the products as scale and offset, which are exact in float32, and the integers that
they are made of in `Scales.fields`; `pack` needs those: many d and sc give one product.

Encoding gives llama.cpp's bytes, with and without importance.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings import ggml_k_fields as fields
from halfbyte.ir.encodings.encoding import (
    Array,
    Grid,
    Parts,
    Scales,
    Unpacked,
)
from halfbyte.ir.encodings.ggml_block import GgmlBlock
from halfbyte.ir.encodings.ggml_k_search import (
    grouped,
    largest_first,
    positive_search,
    rounded_again,
    signed_descent,
    spread_energy,
    stored_half,
    ungrouped,
)
from halfbyte.ir.encodings.ggml_search import (
    Codes,
    Float,
    nearest_int,
    ordered_sum,
    scale_min_search,
    signed_extreme,
    symmetric_search,
)
from halfbyte.ir.encodings.grid import (
    UNNAMED,
    nearest_codes,
    require_codes,
    require_half_reach,
)
from halfbyte.kernels.layouts import LAYOUTS

BLOCK = 256
NOTHING = np.float32(1e-15)  # a block whose scales are all smaller is stored as zeros
Fields = dict[str, Array]


@dataclass(frozen=True)
class KBlock(GgmlBlock):
    """Base: a concrete type gives its constants, its fields' bytes and its searches."""

    BITS: ClassVar[int]
    GROUP: ClassVar[int]
    ZERO: ClassVar[int] = 0
    HAS_MINIMUM: ClassVar[bool] = False
    SCALE_RANGE: ClassVar[tuple[int, int]]

    @property
    def grid(self) -> Grid:
        """Return the grid of the codes."""
        kind: Any = "offset" if self.HAS_MINIMUM else "fixed"
        high = (1 << self.BITS) - 1
        return Grid(0, high, kind, self.ZERO, self.GROUP, "float32", composed_scales=True)

    def unpack(self, parts: Parts, columns: int) -> Unpacked:
        """Return codes [rows, columns] and scales; `fields` d, sc (and dmin, mn) made them.

        fields: d, dmin: [rows, blocks] float32; sc, mn: [rows, groups] int32.
        """
        data = np.asarray(parts["data"])
        rows, blocks = data.shape[0], columns // BLOCK
        codes, found = self._read(np.ascontiguousarray(data.reshape(-1, self.block_bytes)))
        shaped = {
            name: array.reshape(rows, blocks * (1 if array.ndim == 1 else array.shape[1]))
            for name, array in found.items()
        }
        per_block = BLOCK // self.GROUP
        scale = np.repeat(shaped["d"], per_block, 1) * shaped["sc"].astype(np.float32)
        offset = None
        if self.HAS_MINIMUM:
            lift = np.repeat(shaped["dmin"], per_block, 1) * shaped["mn"].astype(np.float32)
            offset = -lift
        zero = np.full(scale.shape, self.ZERO, np.int32) if self.ZERO else None
        assert scale.shape == (rows, blocks * per_block)
        scales = Scales(scale, self.GROUP, zero, offset, fields=shaped)
        return Unpacked(codes.reshape(rows, columns), scales)

    def pack(self, unpacked: Unpacked) -> dict[str, Array]:
        """Return the blocks with the codes and the fields that the scales were made of.

        Raises:
            QuantizationError: the scales come from elsewhere, or a code does not fit.
        """
        rows, columns = unpacked.codes.shape
        self.part_specs(rows, columns)
        found = unpacked.scales.fields
        names = {"d", "sc", "dmin", "mn"} if self.HAS_MINIMUM else {"d", "sc"}
        if found is None or found.keys() != names or unpacked.scales.group_size != self.GROUP:
            raise QuantizationError(
                UNNAMED, f"its scales are not made of the fields of {self.name}; quantize it"
            )
        require_codes(unpacked.codes, self.grid.low, self.grid.high)
        require_codes(found["sc"], *self.SCALE_RANGE)
        blocks = rows * (columns // BLOCK)
        flat = {
            name: array.reshape(blocks, array.size // max(blocks, 1))
            for name, array in found.items()
        }
        return self._assemble(unpacked.codes.reshape(blocks, BLOCK), flat, rows)

    def _assemble(self, codes: Codes, found: Mapping[str, Array], rows: int) -> dict[str, Array]:
        data = np.zeros((len(codes), self.block_bytes), np.uint8)
        with np.errstate(over="ignore"):
            self._write(data, codes, found)
        self.require_finite_scales(data)
        return {"data": data.reshape(rows, len(data) // max(rows, 1) * self.block_bytes)}

    def require_finite_scales(self, data: Array) -> None:
        """Check that no scale is NaN or infinite, as llama.cpp does when it loads.

        Raises:
            QuantizationError: one is.
        """
        at = LAYOUTS[self.NAME].offsets
        blocks = data.reshape(-1, self.block_bytes)
        for name in ("d", "dmin"):
            if name in at and not np.isfinite(fields.half(blocks, at[name])).all():
                raise self._beyond_half()

    def assign(self, rows: Float, scales: Scales) -> Codes:
        """Return the nearest codes on the given grid."""
        return nearest_codes(rows, scales, self.grid.low, self.grid.high)

    def _require_encodable(self, rows: Float, importance: Float | None) -> None:
        super()._require_encodable(rows, importance)
        require_half_reach(rows, self.name)

    def encode_reference(self, rows: Float, importance: Float | None = None) -> dict[str, Array]:
        """Return the bytes of `encode`, by numpy alone."""
        self._require_encodable(rows, importance)
        if not rows.size:
            spec = self.part_specs(*rows.shape)["data"]
            return {"data": np.zeros(spec.shape, spec.dtype)}
        blocks, weight = self._in_blocks(rows, importance)
        with np.errstate(all="ignore"):
            codes, found = self._search(blocks, weight)
        return self._assemble(codes, found, rows.shape[0])

    @abstractmethod
    def _read(self, blocks: Array) -> tuple[Codes, Fields]:
        """Return codes [blocks, 256] and fields [blocks] or [blocks, groups]."""

    @abstractmethod
    def _write(self, blocks: Array, codes: Codes, found: Mapping[str, Array]) -> None:
        """Write codes and fields into zeroed blocks."""

    @abstractmethod
    def _search(self, x: Float, importance: Float | None) -> tuple[Codes, Fields]:
        """Return codes [blocks, 256] and fields for x, importance [blocks, 256]."""


@dataclass(frozen=True)
class _WithMinimum(KBlock):
    """Q2_K, Q4_K and Q5_K: codes run from a group's minimum upwards."""

    HAS_MINIMUM: ClassVar[bool] = True
    TRIALS: ClassVar[tuple[float, float, int]]

    @abstractmethod
    def _plain_weight(self, x: Float) -> Float:
        """Return the weights of x [group, groups] without importance."""

    def _search(self, x: Float, importance: Float | None) -> tuple[Codes, Fields]:
        values, levels = grouped(x, self.GROUP), (1 << self.BITS) - 1
        most = self.SCALE_RANGE[1]
        if importance is None:
            absolute = self.BITS == 2
            weight = self._plain_weight(values)
            codes, scale, low = scale_min_search(values, weight, levels, *self.TRIALS, absolute)
            d, sc = largest_first(scale.reshape(len(x), -1), most)
            dmin, mn = largest_first(-low.reshape(len(x), -1), most)
        else:
            weight = grouped(spread_energy(x, importance, 1 if self.BITS == 2 else 2), self.GROUP)
            codes, scale, low = scale_min_search(values, weight, levels, -0.9, 0.05, 36)
            total = ordered_sum(weight).reshape(len(x), -1).T
            d, sc = _searched(scale.reshape(len(x), -1), total, most)
            dmin, mn = _searched(-low.reshape(len(x), -1), total, most)
        sc, mn = self._as_stored(sc, mn, importance is not None)
        step = (stored_half(d)[:, None] * sc.astype(np.float32)).reshape(-1)
        lift = (stored_half(dmin)[:, None] * mn.astype(np.float32)).reshape(-1)
        codes = rounded_again(values, codes, step, lift, 0, levels)
        return ungrouped(codes), {"d": d, "sc": sc, "dmin": dmin, "mn": mn}

    @abstractmethod
    def _as_stored(self, sc: Codes, mn: Codes, searched: bool) -> tuple[Codes, Codes]:
        """Return the integers that a reader finds; those of negative scales exceed their bits."""


def _searched(values: Float, weight: Float, most: int) -> tuple[Float, Codes]:
    integers, d = positive_search(np.ascontiguousarray(values.T), weight, most)
    return d, np.ascontiguousarray(integers.T)


@dataclass(frozen=True)
class _Signed(KBlock):
    """Q3_K and Q6_K: codes lie on both sides of zero, scales may be negative."""

    def _finish(self, values: Float, codes: Codes, d: Float, sc: Codes) -> tuple[Codes, Fields]:
        step = (stored_half(d)[:, None] * sc.astype(np.float32)).reshape(-1)
        zero = np.zeros_like(step)
        codes = rounded_again(values, codes, step, zero, -self.ZERO, self.ZERO - 1)
        return ungrouped(codes), {"d": d, "sc": sc}


@dataclass(frozen=True)
class Q2_K(_WithMinimum):  # noqa: N801
    """2 bits, 4-bit scale and minimum per 16."""

    NAME = "Q2_K"
    BITS = 2
    GROUP = 16
    SCALE_RANGE = (0, 15)
    TRIALS = (-0.5, 0.1, 15)
    ERROR_BOUND = 1.0

    def _plain_weight(self, x: Float) -> Float:
        return np.abs(x)

    def _as_stored(self, sc: Codes, mn: Codes, searched: bool) -> tuple[Codes, Codes]:
        return fields.spilt_nibbles(sc, mn)

    def _read(self, blocks: Array) -> tuple[Codes, Fields]:
        at = LAYOUTS["Q2_K"].offsets
        packed = blocks[:, : at["qs"]].astype(np.int32)
        found = {"d": fields.half(blocks, at["d"]), "sc": packed & 15}
        found |= {"dmin": fields.half(blocks, at["dmin"]), "mn": packed >> 4}
        return fields.two_bits(blocks[:, at["qs"] : at["d"]]), found

    def _write(self, blocks: Array, codes: Codes, found: Mapping[str, Array]) -> None:
        at = LAYOUTS["Q2_K"].offsets
        require_codes(found["mn"], *self.SCALE_RANGE)
        blocks[:, : at["qs"]] = (found["sc"] | (found["mn"] << 4)).astype(np.uint8)
        blocks[:, at["qs"] : at["d"]] = fields.put_two_bits(codes)
        fields.put_half(blocks, at["d"], found["d"].reshape(-1))
        fields.put_half(blocks, at["dmin"], found["dmin"].reshape(-1))


@dataclass(frozen=True)
class Q3_K(_Signed):  # noqa: N801
    """3 bits, 6-bit signed scale per 16."""

    NAME = "Q3_K"
    BITS = 3
    GROUP = 16
    ZERO = 4
    SCALE_RANGE = (-32, 31)
    ERROR_BOUND = 0.5

    def _read(self, blocks: Array) -> tuple[Codes, Fields]:
        at = LAYOUTS["Q3_K"].offsets
        high = fields.single_bits(blocks[:, : at["qs"]])
        codes = fields.two_bits(blocks[:, at["qs"] : at["scales"]]) | (high << 2)
        sc = fields.sixteen_scales(blocks[:, at["scales"] : at["d"]]) - 32
        return codes, {"d": fields.half(blocks, at["d"]), "sc": sc}

    def _write(self, blocks: Array, codes: Codes, found: Mapping[str, Array]) -> None:
        at = LAYOUTS["Q3_K"].offsets
        blocks[:, : at["qs"]] = fields.put_single_bits(codes >> 2)
        blocks[:, at["qs"] : at["scales"]] = fields.put_two_bits(codes & 3)
        blocks[:, at["scales"] : at["d"]] = fields.put_sixteen_scales(found["sc"] + 32)
        fields.put_half(blocks, at["d"], found["d"].reshape(-1))

    def _search(self, x: Float, importance: Float | None) -> tuple[Codes, Fields]:
        values = grouped(x, self.GROUP)
        if importance is None:
            codes, scale = signed_descent(values, 4)
            per_block = scale.reshape(len(x), -1)
            extreme = signed_extreme(per_block.T)
            inverse = np.where(extreme != 0, np.float32(-32) / extreme, np.float32(0))
            sc = np.clip(nearest_int(inverse[:, None] * per_block), -32, 31)
            d = np.where(extreme != 0, np.float32(1) / inverse, np.float32(0))
            # Bytes of zero scales are zeros, and a stored 0 means -32.
            sc = np.where((extreme != 0)[:, None], sc, -32)
        else:
            weight = grouped(spread_energy(x, importance, 2), self.GROUP)
            codes, scale = symmetric_search(values, weight, 4)
            total = np.ascontiguousarray(ordered_sum(weight).reshape(len(x), -1).T)
            per_block = np.ascontiguousarray(scale.reshape(len(x), -1).T)
            stored, d = symmetric_search(per_block, total, 32)
            sc = np.ascontiguousarray(stored.T) - 32
        return self._finish(values, codes, d, sc)


@dataclass(frozen=True)
class _SixBitScales(_WithMinimum):
    """Q4_K and Q5_K: 6-bit scale and minimum per 32."""

    GROUP: ClassVar[int] = 32
    SCALE_RANGE: ClassVar[tuple[int, int]] = (0, 63)

    def _plain_weight(self, x: Float) -> Float:
        energy = ordered_sum(x * x) / np.float32(self.GROUP)
        weights: Float = np.sqrt(energy) + np.abs(x)
        return weights

    def _as_stored(self, sc: Codes, mn: Codes, searched: bool) -> tuple[Codes, Codes]:
        if self.BITS == 5 or not searched:
            return np.minimum(sc, 63), np.minimum(mn, 63)
        return fields.spilt_six_bits(sc), fields.spilt_six_bits(mn)

    def _read(self, blocks: Array) -> tuple[Codes, Fields]:
        at = LAYOUTS[self.NAME].offsets
        sc, mn = fields.scales_and_minimums(blocks[:, at["scales"] : at["scales"] + 12])
        found = {"d": fields.half(blocks, at["d"]), "sc": sc}
        found |= {"dmin": fields.half(blocks, at["dmin"]), "mn": mn}
        codes = fields.nibbles(blocks[:, at["qs"] :])
        if "qh" in at:
            codes |= fields.single_bits(blocks[:, at["qh"] : at["qs"]]) << 4
        return codes, found

    def _write(self, blocks: Array, codes: Codes, found: Mapping[str, Array]) -> None:
        at = LAYOUTS[self.NAME].offsets
        require_codes(found["mn"], *self.SCALE_RANGE)
        fields.put_half(blocks, at["d"], found["d"].reshape(-1))
        fields.put_half(blocks, at["dmin"], found["dmin"].reshape(-1))
        packed = fields.put_scales_and_minimums(found["sc"], found["mn"])
        blocks[:, at["scales"] : at["scales"] + 12] = packed
        blocks[:, at["qs"] :] = fields.put_nibbles(codes & 15)
        if "qh" in at:
            blocks[:, at["qh"] : at["qs"]] = fields.put_single_bits(codes >> 4)


@dataclass(frozen=True)
class Q4_K(_SixBitScales):  # noqa: N801
    """4 bits, 6-bit scale and minimum per 32."""

    NAME = "Q4_K"
    BITS = 4
    TRIALS = (-1.0, 0.1, 20)
    ERROR_BOUND = 0.3


@dataclass(frozen=True)
class Q5_K(_SixBitScales):  # noqa: N801
    """5 bits, 6-bit scale and minimum per 32."""

    NAME = "Q5_K"
    BITS = 5
    TRIALS = (-0.5, 0.1, 15)
    ERROR_BOUND = 0.15


@dataclass(frozen=True)
class Q6_K(_Signed):  # noqa: N801
    """6 bits, 8-bit signed scale per 16."""

    NAME = "Q6_K"
    BITS = 6
    GROUP = 16
    ZERO = 32
    SCALE_RANGE = (-128, 127)
    ERROR_BOUND = 0.07

    def _read(self, blocks: Array) -> tuple[Codes, Fields]:
        at = LAYOUTS["Q6_K"].offsets
        codes = fields.six_bits(blocks[:, : at["qh"]], blocks[:, at["qh"] : at["scales"]])
        packed = np.ascontiguousarray(blocks[:, at["scales"] : at["d"]])
        sc = packed.view(np.int8).astype(np.int32)
        return codes, {"d": fields.half(blocks, at["d"]), "sc": sc}

    def _write(self, blocks: Array, codes: Codes, found: Mapping[str, Array]) -> None:
        at = LAYOUTS["Q6_K"].offsets
        low, high = fields.put_six_bits(codes)
        blocks[:, : at["qh"]] = low
        blocks[:, at["qh"] : at["scales"]] = high
        blocks[:, at["scales"] : at["d"]] = found["sc"].astype(np.int8).view(np.uint8)
        fields.put_half(blocks, at["d"], found["d"].reshape(-1))

    def _search(self, x: Float, importance: Float | None) -> tuple[Codes, Fields]:
        values = grouped(x, self.GROUP)
        weight = values * values if importance is None else grouped(importance, self.GROUP)
        codes, scale = symmetric_search(values, weight, 32)
        per_block = scale.reshape(len(x), -1)
        extreme = signed_extreme(per_block.T)
        nothing = np.abs(extreme) < NOTHING
        inverse = np.where(nothing, np.float32(0), np.float32(-128) / extreme)
        sc = np.minimum(nearest_int(inverse[:, None] * per_block), 127)
        d = np.where(nothing, np.float32(0), np.float32(1) / inverse)
        sc = np.where(nothing[:, None], 0, sc)
        whole, found = self._finish(values, codes, d, sc)
        return np.where(nothing[:, None], 0, whole), found
