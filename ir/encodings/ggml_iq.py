"""What ggml's IQ block types share: 256 values, indices of codebook points, scales in two steps.

Part "data": [rows, row_bytes] uint8; field offsets in kernels/layouts.py. A block has one float16
scale d, and for each group of 16 or 32 values a small integer sc:

    value = code * scale, scale = d * (2 sc + 1) * STEP

A code is the integer that a point's level means, with its sign; in the 1-bit types it is
8 level + 1 or 8 level - 1. All scales are exact in float32. `Scales.fields` holds d and sc, which
`pack` needs.

Encoding gives llama.cpp's bytes, with and without importance.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.encoding import Array, Parts, Scales, Unpacked
from halfbyte.ir.encodings.ggml_block import GgmlBlock
from halfbyte.ir.encodings.ggml_iq_points import Points, points_of
from halfbyte.ir.encodings.ggml_k_fields import half
from halfbyte.ir.encodings.ggml_search import Codes, Float, nearest_int, ordered_sum
from halfbyte.ir.encodings.grid import (
    UNNAMED,
    require_codes,
    require_finite,
    require_half_reach,
    spread,
)
from halfbyte.kernels.layouts import LAYOUTS

BLOCK = 256
LARGEST = np.float32(1e18)  # the squares of larger weights leave float32
CHUNK = 256  # blocks that the reference searches at once
Fields = dict[str, Array]


@dataclass(frozen=True)
class IQBlock(GgmlBlock):
    """Base: a concrete type gives its constants, its fields' bytes and its search.

    Fields of blocks: index [blocks, points], negative (bool: [blocks, 256], or [blocks, points]
    for the shift of the 1-bit types), d [blocks], sc [blocks, groups].
    """

    GROUP: ClassVar[int]
    STEP: ClassVar[float]
    HIGHEST_SCALE: ClassVar[int] = 15
    NEEDS_IMPORTANCE: ClassVar[bool] = False

    @property
    def needs_importance(self) -> bool:
        """Whether `encode` refuses to work without importance, as llama.cpp does."""
        return self.NEEDS_IMPORTANCE

    @property
    def points(self) -> Points:
        """Return the codebook's points."""
        return points_of(self.NAME)

    def unpack(self, parts: Parts, columns: int) -> Unpacked:
        """Return codes [rows, columns] and scales; `fields` d and sc made them.

        fields: d: [rows, blocks] float32; sc: [rows, groups] int32.
        """
        data = np.asarray(parts["data"])
        rows, blocks = data.shape[0], columns // BLOCK
        found = self._read(np.ascontiguousarray(data.reshape(-1, self.block_bytes)))
        per_block = BLOCK // self.GROUP
        d = found["d"].reshape(rows, blocks)
        sc = found["sc"].reshape(rows, blocks * per_block)
        factors = (2 * sc + 1).astype(np.float32) * np.float32(self.STEP)
        scale = np.repeat(d, per_block, 1) * factors
        codes = self._codes(found["index"], found["negative"]).reshape(rows, columns)
        return Unpacked(codes, Scales(scale, self.GROUP, fields={"d": d, "sc": sc}))

    def pack(self, unpacked: Unpacked) -> dict[str, Array]:
        """Return the blocks with the codes and the fields that the scales were made of.

        Raises:
            QuantizationError: the scales come from elsewhere, or codes are no point.
        """
        rows, columns = unpacked.codes.shape
        self.part_specs(rows, columns)
        fields = unpacked.scales.fields
        if fields is None or set(fields) != {"d", "sc"}:
            raise QuantizationError(
                UNNAMED, f"its scales are not made of the fields of {self.name}; quantize it"
            )
        require_codes(fields["sc"], 0, self.HIGHEST_SCALE)
        blocks = rows * (columns // BLOCK)
        found = self._points_and_signs(unpacked.codes.reshape(blocks, BLOCK))
        found["d"] = fields["d"].reshape(blocks)
        found["sc"] = fields["sc"].reshape(blocks, BLOCK // self.GROUP)
        return self._assemble(found, rows)

    def _assemble(self, found: Mapping[str, Array], rows: int) -> dict[str, Array]:
        data = np.zeros((len(found["index"]), self.block_bytes), np.uint8)
        with np.errstate(over="ignore"):
            self._write(data, found)
        self.require_finite_scales(data)
        return {"data": data.reshape(rows, len(data) // max(rows, 1) * self.block_bytes)}

    def require_finite_scales(self, data: Array) -> None:
        """Check that no scale is NaN or infinite, as llama.cpp does when it loads.

        Raises:
            QuantizationError: one is.
        """
        if not np.isfinite(self._stored_scale(data.reshape(-1, self.block_bytes))).all():
            raise self._beyond_half()

    def assign(self, rows: Float, scales: Scales) -> Codes:
        """Return the codes of the nearest points on the given scales."""
        scale = spread(scales.scale, scales, rows.shape[1]).astype(np.float64)
        wanted = np.zeros(rows.shape)
        np.divide(rows, scale, out=wanted, where=scale != 0)
        found = self._nearest(np.clip(wanted, -1e6, 1e6).reshape(-1, BLOCK))
        return self._codes(*found).reshape(rows.shape)

    def encode_reference(self, rows: Float, importance: Float | None = None) -> dict[str, Array]:
        """Return the bytes of `encode`, by numpy alone."""
        self._require_encodable(rows, importance)
        if not rows.size:
            spec = self.part_specs(*rows.shape)["data"]
            return {"data": np.zeros(spec.shape, spec.dtype)}
        blocks, weight = self._in_blocks(rows, importance)
        pieces = []
        with np.errstate(all="ignore"):
            for i in range(0, len(blocks), CHUNK):
                part = None if weight is None else weight[i : i + CHUNK]
                pieces.append(self._search(blocks[i : i + CHUNK], part))
        found = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        return self._assemble(found, rows.shape[0])

    def _require_encodable(self, rows: Float, importance: Float | None) -> None:
        self.part_specs(*rows.shape)
        require_finite(rows)
        require_half_reach(rows, self.name)
        if self.NEEDS_IMPORTANCE and importance is None:
            raise QuantizationError(
                UNNAMED,
                f"{self.name} needs the importance of each column, which is not known; give "
                "--imatrix FILE that has it, or this weight another type with --tensor",
            )
        if rows.size and max(rows.max(), -rows.min()) > LARGEST:
            raise self._beyond_half()

    def _stored_scale(self, blocks: Array) -> Float:
        """Return d of each block, [blocks] float32."""
        return half(blocks, LAYOUTS[self.NAME].offsets["d"])

    @abstractmethod
    def _read(self, blocks: Array) -> Fields:
        """Return the fields of blocks [blocks, block_bytes]."""

    @abstractmethod
    def _write(self, blocks: Array, found: Mapping[str, Array]) -> None:
        """Write fields into zeroed blocks."""

    @abstractmethod
    def _codes(self, index: Codes, negative: Array) -> Codes:
        """Return codes [blocks, 256]."""

    @abstractmethod
    def _points_and_signs(self, codes: Codes) -> Fields:
        """Return index and negative of codes [blocks, 256].

        Raises:
            QuantizationError: codes are no point.
        """

    @abstractmethod
    def _nearest(self, wanted: Array) -> tuple[Codes, Array]:
        """Return index and negative of the codes next to wanted [blocks, 256]."""

    @abstractmethod
    def _search(self, x: Float, importance: Float | None) -> Fields:
        """Return the fields for x, importance [blocks, 256]."""


def no_point(name: str) -> QuantizationError:
    """Return the error for codes that the codebook lacks."""
    return QuantizationError(UNNAMED, f"its codes are no points of {name}'s codebook; quantize it")


def words(blocks: Array, start: int, stop: int, dtype: str) -> Array:
    """Return bytes start..stop of each block as little-endian integers, [blocks, n] uint32."""
    return np.ascontiguousarray(blocks[:, start:stop]).view(dtype).astype(np.uint32)


def put_words(blocks: Array, start: int, values: Array, dtype: str) -> None:
    """Write values [blocks, n] from byte `start` on."""
    data = np.ascontiguousarray(values.astype(dtype)).view(np.uint8)
    blocks[:, start : start + data.shape[1]] = data


def bit_fields(values: Array, width: int, count: int) -> Codes:
    """Return `count` fields of `width` bits, lowest first: [blocks, n] to [blocks, n * count]."""
    shifts = np.arange(count, dtype=np.uint32) * np.uint32(width)
    fields = (values.astype(np.uint32)[..., None] >> shifts) & np.uint32((1 << width) - 1)
    whole: Codes = fields.reshape(len(values), values.shape[1] * count).astype(np.int32)
    return whole


def joined_fields(fields: Array, width: int, count: int) -> Array:
    """Undo `bit_fields`: [blocks, n * count] to [blocks, n] uint32."""
    parts = fields.astype(np.uint32).reshape(len(fields), fields.shape[1] // count, count)
    shifts = np.arange(count, dtype=np.uint32) * np.uint32(width)
    joined: Array = np.bitwise_or.reduce(parts << shifts, axis=2)
    return joined


def weights_of(x: Float, importance: Float, factor: float) -> Float:
    """Return importance * sqrt(factor * mean square of the block + x^2), [blocks, 256]."""
    weights: Float = importance * np.sqrt(mean_square(x, factor)[:, None] + x * x)
    return weights


def mean_square(x: Float, factor: float) -> Float:
    """Return factor * sum of squares / 256 of each block, [blocks]."""
    energy: Float = np.float32(factor) * ordered_sum((x * x).T) / np.float32(BLOCK)
    return energy


def grouped(x: Float, group: int) -> Float:
    """Return [blocks, 256] as [group, blocks * groups per block], one column for each group."""
    return np.ascontiguousarray(x.reshape(-1, group).T)


def two_step_scales(scale: Float, largest: int, highest: int) -> tuple[Float, Codes]:
    """Return (d [blocks], sc): 2 sc + 1 is scale / d, d the largest scale / `largest`.

    scale: [blocks, groups], not negative.
    """
    top = scale.max(axis=1)
    d = top / np.float32(largest)
    steps = (np.float32(1) / d)[:, None] * scale - np.float32(1)
    sc = np.clip(nearest_int(np.float32(0.5) * steps), 0, highest)
    return d, np.where(top[:, None] == 0, 0, sc)
