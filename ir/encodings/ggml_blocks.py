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
    Codebook,
    Grid,
    Parts,
    Scales,
    Unpacked,
)
from halfbyte.ir.encodings.ggml_block import GgmlBlock
from halfbyte.ir.encodings.ggml_search import Codes, Float
from halfbyte.ir.encodings.grid import (
    UNNAMED,
    require_codes,
    require_half_reach,
    shifted,
    spread,
    stored,
)
from halfbyte.kernels.layouts import LAYOUTS

HALF = np.dtype(np.float16)
Fields = dict[str, Array]


@dataclass(frozen=True)
class SmallBlock(GgmlBlock):
    """Base: a concrete type gives its constants, its fields' bytes and its encoder.

    LEVELS: the codes that exist, ascending. GROUP: values that share a scale. BOOK_SCALE: the type
    of the scales as `Codebook` says it, where SCALE_DTYPE only says what holds them.
    """

    GROUP: ClassVar[int]
    LEVELS: ClassVar[tuple[int, ...]]
    ZERO: ClassVar[int] = 0
    SCALE_DTYPE: ClassVar[str] = "float16"
    BOOK_SCALE: ClassVar[str] = ""

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
    def codebook(self) -> Codebook | None:
        """Return the points of the codes where they lie on no plain grid."""
        if self.grid is not None:
            return None
        return Codebook(
            tuple(map(float, self.LEVELS)), self.GROUP, self.BOOK_SCALE or self.SCALE_DTYPE
        )

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
            raise self._beyond_half()

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

    def _require_encodable(self, rows: Float, importance: Float | None) -> None:
        super()._require_encodable(rows, importance)
        require_half_reach(rows, self.name)

    def encode_reference(self, rows: Float, importance: Float | None = None) -> dict[str, Array]:
        """Return the same bytes as `encode`, by numpy alone."""
        self._require_encodable(rows, importance)
        if not rows.size:
            spec = self.part_specs(*rows.shape)["data"]
            return {"data": np.zeros(spec.shape, spec.dtype)}
        blocks, weight = self._in_blocks(rows, importance)
        with np.errstate(all="ignore"):
            codes, scale, found = self._search(blocks, weight)
            return self._assemble(codes, scale, found, rows.shape[0])

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
