"""What all block types of ggml share: one part of whole blocks, kernels beside numpy, range checks.

Part "data": [rows, row_bytes] uint8; field offsets in kernels/layouts.py.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.encoding import Array, Encoding, Parts, PartSpec, Scales
from halfbyte.ir.encodings.ggml_search import Float
from halfbyte.ir.encodings.grid import UNNAMED, require_finite, values_of
from halfbyte.ir.encodings.kernel_choice import cpu_kernel
from halfbyte.kernels.layouts import LAYOUTS

SHORTEST_BLOCK = 32


@dataclass(frozen=True)
class GgmlBlock(Encoding):
    """Base: a family says how fields become codes and scales, a type gives its constants."""

    NAME: ClassVar[str]
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
    def error_bound(self) -> float:
        """Return the largest error of `encode` in units of the block's largest |value|."""
        return self.ERROR_BOUND

    def part_specs(self, rows: int, columns: int) -> dict[str, PartSpec]:
        """Return the one part `data` [rows, row_bytes] uint8."""
        if columns % self.block:
            shorter = "a type with blocks of 32, " if self.block > SHORTEST_BLOCK else ""
            raise QuantizationError(
                UNNAMED,
                f"rows of {columns} values do not divide into blocks of {self.block} "
                f"({self.name}); choose {shorter}float16 or an affine type",
            )
        row_bytes = columns // self.block * self.block_bytes
        return {"data": PartSpec(np.dtype(np.uint8), (rows, row_bytes))}

    def fit(self, rows: Float, importance: Float | None = None) -> Scales:
        """Return the scales that `encode` would store."""
        return self.unpack(self.encode(rows, importance), rows.shape[1]).scales

    def encode(self, rows: Float, importance: Float | None = None) -> dict[str, Array]:
        """Return the blocks that llama.cpp's quantizer writes for these rows.

        Raises:
            QuantizationError: a weight is not finite, a scale leaves the range of its stored type,
                or the type needs importance and there is none.
        """
        data = self._by_kernel(rows, importance)
        return self.encode_reference(rows, importance) if data is None else {"data": data}

    @abstractmethod
    def encode_reference(self, rows: Float, importance: Float | None = None) -> dict[str, Array]:
        """Return the bytes of `encode`, by numpy alone."""

    def _by_kernel(
        self, rows: Float, importance: Float | None, compat: bool = False
    ) -> Array | None:
        """Return the blocks, or None where no kernel is there."""
        kernel: Any = cpu_kernel("encode", self.name)
        if kernel is None:
            return None
        self._require_encodable(rows, importance)
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
        data: Array = kernel(self.name, np.ascontiguousarray(rows, np.float32), importance, compat)
        self.require_finite_scales(data)
        return data

    def _require_encodable(self, rows: Float, importance: Float | None) -> None:
        self.part_specs(*rows.shape)
        require_finite(rows)

    def _in_blocks(self, rows: Float, importance: Float | None) -> tuple[Float, Float | None]:
        """Return rows and the importance of each of their values as [blocks, values]."""
        blocks = np.ascontiguousarray(rows, np.float32).reshape(-1, self.block)
        if importance is None:
            return blocks, None
        row = np.ascontiguousarray(importance, np.float32).reshape(1, -1, self.block)
        return blocks, np.broadcast_to(row, (len(rows), *row.shape[1:])).reshape(-1, self.block)

    @abstractmethod
    def require_finite_scales(self, data: Array) -> None:
        """Check that no scale is NaN or infinite, as llama.cpp does when it loads.

        Raises:
            QuantizationError: one is.
        """

    def _beyond_half(self, field: str = "a scale") -> QuantizationError:
        return QuantizationError(
            UNNAMED,
            f"{field} leaves float16's range, {self.name} stores it as float16; "
            "keep the tensor in bfloat16 or float32",
        )

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
