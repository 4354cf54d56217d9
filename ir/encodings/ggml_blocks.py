"""Base of ggml's block types whose codes take few distinct values: IQ4, ternary, FP4, 1 and 2 bits.

Part "data": [rows, row_bytes] uint8; field offsets in kernels/layouts.py. A type says how its
fields become codes and scales, and which codes exist:

    value = (code - zero) * scale

Codes of codebook types are the values of the codebook, so that the same line holds for them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings import ggml_k_fields as fields
from halfbyte.ir.encodings.encoding import (
    Array,
    Encoding,
    Grid,
    Parts,
    PartSpec,
    Scales,
    Unpacked,
)
from halfbyte.ir.encodings.ggml_search import Codes, Float
from halfbyte.ir.encodings.grid import (
    UNNAMED,
    require_codes,
    require_finite,
    require_half_reach,
    shifted,
    spread,
    stored,
    values_of,
)
from halfbyte.ir.encodings.kernel_choice import cpu_kernel
from halfbyte.kernels.layouts import LAYOUTS

HALF = np.dtype(np.float16)
Fields = dict[str, Array]


@dataclass(frozen=True)
class SmallBlock(Encoding):
    """Base: a concrete type gives its constants, its fields' bytes and its encoder.

    LEVELS: the codes that exist, ascending. GROUP: values that share a scale.
    """

    NAME: ClassVar[str]
    GROUP: ClassVar[int]
    LEVELS: ClassVar[tuple[int, ...]]
    ZERO: ClassVar[int] = 0
    SCALE_DTYPE: ClassVar[str] = "float16"
    ERROR_BOUND: ClassVar[float]

    @property
    def name(self) -> str:
        """Return ggml's name."""
        return self.NAME

    @property
    def block(self) -> int:
        """Return the values of a block."""
        return LAYOUTS[self.NAME].values

    @property
    def block_bytes(self) -> int:
        """Return the bytes of a block."""
        return LAYOUTS[self.NAME].bytes

    @property
    def bits_per_weight(self) -> float:
        """Return the bits per value, scales included."""
        return LAYOUTS[self.NAME].bits_per_weight

    @property
    def block_shape(self) -> tuple[int, int]:
        """Return (1, values of a block)."""
        return 1, self.block

    @property
    def span(self) -> Grid:
        """Return the grid that the codes lie on, whether or not all its codes exist."""
        low, high = self.LEVELS[0], self.LEVELS[-1]
        return Grid(low, high, "fixed", self.ZERO, self.GROUP, self.SCALE_DTYPE)

    @property
    def grid(self) -> Grid | None:
        """Return the grid of the codes, or None where codes are missing on it."""
        low, high = self.LEVELS[0], self.LEVELS[-1]
        return self.span if len(self.LEVELS) == high - low + 1 else None

    @property
    def error_bound(self) -> float:
        """Return the largest error of `encode` in units of the block's largest |value|."""
        return self.ERROR_BOUND

    def part_specs(self, rows: int, columns: int) -> dict[str, PartSpec]:
        """Return the one part `data` [rows, row_bytes] uint8."""
        if columns % self.block:
            raise QuantizationError(
                UNNAMED,
                f"rows of {columns} values do not divide into blocks of {self.block} "
                f"({self.name}); choose a type with blocks of 32, float16 or an affine type",
            )
        row_bytes = columns // self.block * self.block_bytes
        return {"data": PartSpec(np.dtype(np.uint8), (rows, row_bytes))}

    def unpack(self, parts: Parts, columns: int) -> Unpacked:
        """Return codes [rows, columns] and scales [rows, groups].

        fields: stored numbers that codes and scales do not tell, each with rows first.
        """
        data = np.asarray(parts["data"])
        rows, groups = data.shape[0], columns // self.GROUP
        codes, scale, found = self._read(np.ascontiguousarray(data.reshape(-1, self.block_bytes)))
        scale = scale.reshape(rows, groups)
        zero = np.full(scale.shape, self.ZERO, np.int32) if self.ZERO else None
        shaped = {
            name: array.reshape(rows, array.size // max(rows, 1)) for name, array in found.items()
        }
        scales = Scales(scale, self.GROUP, zero, fields=shaped or None)
        return Unpacked(codes.reshape(rows, columns), scales)

    def pack(self, unpacked: Unpacked) -> dict[str, Array]:
        """Return the blocks; zero points are moved to this type's where codes stay in range.

        Raises:
            QuantizationError: groups are not this type's, a code or a scale does not fit.
        """
        scales, (rows, columns) = unpacked.scales, unpacked.codes.shape
        self.part_specs(rows, columns)
        order = scales.group_of_column
        in_order = order is None or np.array_equal(order, np.arange(columns) // self.GROUP)
        if not in_order or (scales.group_size != self.GROUP and columns > self.GROUP):
            raise QuantizationError(
                UNNAMED, f"{self.name} needs groups of {self.GROUP} columns in order"
            )
        codes = shifted(unpacked, self.ZERO, self.LEVELS[0], self.LEVELS[-1]).codes
        self._require_levels(codes)
        count = rows * (columns // self.block)
        found = {
            name: np.asarray(array).reshape(count, array.size // max(count, 1))
            for name, array in (scales.fields or {}).items()
        }
        per_block = self.block // self.GROUP
        scale = np.ascontiguousarray(scales.scale, np.float32).reshape(count, per_block)
        return self._assemble(codes.reshape(count, self.block), scale, found, rows)

    def _require_levels(self, codes: Codes) -> None:
        if self.grid is not None or not codes.size:
            return
        present = np.unique(codes)
        missing = present[~np.isin(present, self.LEVELS)]
        if missing.size:
            raise QuantizationError(
                UNNAMED, f"its code {missing[0]} is none of the codebook of {self.name}"
            )

    def _assemble(
        self, codes: Codes, scale: Float, found: Mapping[str, Array], rows: int
    ) -> dict[str, Array]:
        data = np.zeros((len(codes), self.block_bytes), np.uint8)
        self._write(data, codes, scale, found)
        self.require_finite_scales(data)
        return {"data": data.reshape(rows, len(data) // max(rows, 1) * self.block_bytes)}

    def require_finite_scales(self, data: Array) -> None:
        """Check that no scale is NaN or infinite, as llama.cpp does when it loads.

        Raises:
            QuantizationError: one is.
        """
        blocks = data.reshape(-1, self.block_bytes)
        if not np.isfinite(fields.half(blocks, LAYOUTS[self.NAME].offsets["d"])).all():
            raise QuantizationError(
                UNNAMED,
                f"a scale leaves float16's range, {self.name} stores it as float16; "
                "keep the tensor in bfloat16 or float32",
            )

    def fit(self, rows: Float, importance: Float | None = None) -> Scales:
        """Return the scales that `encode` would store."""
        return self.unpack(self.encode(rows, importance), rows.shape[1]).scales

    def assign(self, rows: Float, scales: Scales) -> Codes:
        """Return the nearest codes; where the scale is 0 the one nearest to value 0."""
        scale = spread(scales.scale, scales, rows.shape[1])
        steps = np.zeros(rows.shape, np.float32)
        with np.errstate(over="ignore"):
            np.divide(rows, scale, out=steps, where=scale != 0)
        levels = np.array(self.LEVELS, np.int32)
        middles = (levels[1:] + levels[:-1]).astype(np.float32) / 2
        nearest: Codes = levels[np.searchsorted(middles, steps + np.float32(self.ZERO))]
        return nearest

    def encode(self, rows: Float, importance: Float | None = None) -> dict[str, Array]:
        """Return the blocks that llama.cpp's quantizer writes for these rows.

        Raises:
            QuantizationError: a weight is not finite, or a scale leaves its stored type's range.
        """
        data = self._by_kernel(rows, importance)
        return self.encode_reference(rows, importance) if data is None else {"data": data}

    def _require_in_reach(self, rows: Float) -> None:
        require_finite(rows)
        require_half_reach(rows, self.name)

    def _by_kernel(
        self, rows: Float, importance: Float | None, compat: bool = False
    ) -> Array | None:
        kernel = cpu_kernel("encode", self.name)
        if kernel is None:
            return None
        self.part_specs(*rows.shape)
        self._require_in_reach(rows)
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
        data: Array = kernel(self.name, np.ascontiguousarray(rows, np.float32), importance, compat)
        self.require_finite_scales(data)
        return data

    def encode_reference(self, rows: Float, importance: Float | None = None) -> dict[str, Array]:
        """Return the same bytes as `encode`, by numpy alone."""
        self.part_specs(*rows.shape)
        self._require_in_reach(rows)
        if not rows.size:
            spec = self.part_specs(*rows.shape)["data"]
            return {"data": np.zeros(spec.shape, spec.dtype)}
        blocks = np.ascontiguousarray(rows, np.float32).reshape(-1, self.block)
        weight = None
        if importance is not None:
            row = np.ascontiguousarray(importance, np.float32).reshape(1, -1, self.block)
            weight = np.broadcast_to(row, (rows.shape[0], *row.shape[1:])).reshape(-1, self.block)
        with np.errstate(all="ignore"):
            codes, scale, found = self._search(blocks, weight)
            return self._assemble(codes, scale, found, rows.shape[0])

    def decode(self, parts: Parts, columns: int) -> Float:
        """Return float32 values [rows, columns], bit for bit ggml's."""
        kernel = cpu_kernel("decode", self.name)
        if kernel is None:
            return self.decode_reference(parts, columns)
        decoded: Float = kernel(self.name, np.ascontiguousarray(parts["data"]), columns)
        return decoded

    def decode_reference(self, parts: Parts, columns: int) -> Float:
        """Return the same values as `decode`, by numpy alone."""
        return values_of(self.unpack(parts, columns))

    @abstractmethod
    def _read(self, blocks: Array) -> tuple[Codes, Float, Fields]:
        """Return codes [blocks, values], scales [blocks, groups] and further fields."""

    @abstractmethod
    def _write(self, blocks: Array, codes: Codes, scale: Float, found: Mapping[str, Array]) -> None:
        """Write codes and scales into zeroed blocks."""

    @abstractmethod
    def _search(self, x: Float, importance: Float | None) -> tuple[Codes, Float, Fields]:
        """Return what `_write` takes for x, importance [blocks, values].

        Scales need not be rounded to the stored type, `put_half` does.
        """


def put_scale(blocks: Array, at: int, scale: Float) -> None:
    """Write scales [blocks, 1] that float16 holds exactly.

    Raises:
        QuantizationError: one is not representable.
    """
    fields.put_half(blocks, at, stored(scale.reshape(-1), HALF, "scales"))


def halves(scale: Float) -> Float:
    """Return scales after float16."""
    return scale.astype(HALF).astype(np.float32)


def nibble_pairs(data: Array, width: int) -> Codes:
    """Return 4-bit codes: of each `width` bytes the low nibbles, then the high ones."""
    count, length = data.shape
    runs = data.reshape(count, length // width, 1, width) >> np.array([[0], [4]], np.uint8)
    return (runs & 15).reshape(count, 2 * length).astype(np.int32)


def put_nibble_pairs(codes: Codes, width: int) -> Array:
    """Return the bytes that `nibble_pairs` reads, [blocks, bytes]."""
    require_codes(codes, 0, 15)
    count, length = codes.shape
    runs = codes.astype(np.uint8).reshape(count, length // 2 // width, 2, width)
    packed: Array = runs[:, :, 0] | (runs[:, :, 1] << np.uint8(4))
    return packed.reshape(count, length // 2)
