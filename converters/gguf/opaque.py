"""ggml block types that are carried byte for byte but not decoded yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.encodings.encoding import Array, Encoding, Parts, PartSpec, Scales, Unpacked
from halfbyte.ir.encodings.grid import UNNAMED


@dataclass(frozen=True)
class OpaqueBlocks(Encoding):
    """Blocks of `block` values in `block_bytes` bytes whose inner layout is not known here."""

    type_name: str
    block: int
    block_bytes: int

    @property
    def name(self) -> str:
        """Return the published name."""
        return self.type_name

    @property
    def bits_per_weight(self) -> float:
        """Return the stored bits per value."""
        return 8 * self.block_bytes / self.block

    @property
    def block_shape(self) -> tuple[int, int]:
        """Return (1, values per block)."""
        return 1, self.block

    @property
    def can_decode(self) -> bool:
        """Return False: the bytes are only carried along."""
        return False

    def part_specs(self, rows: int, columns: int) -> dict[str, PartSpec]:
        """Return the one part, `data` uint8 [rows, row bytes]."""
        if columns % self.block:
            rule = f"{columns} columns, {self.type_name} needs a multiple of {self.block}"
            raise QuantizationError(UNNAMED, rule)
        shape = (rows, columns // self.block * self.block_bytes)
        return {"data": PartSpec(np.dtype(np.uint8), shape)}

    def _refuse(self) -> NoReturn:
        raise UnsupportedError(
            f"computing with {self.type_name} weights",
            self.type_name,
            advice="such tensors can be listed and copied from GGUF to GGUF only",
        )

    def unpack(self, parts: Parts, columns: int) -> Unpacked:
        """Refuse."""
        self._refuse()

    def pack(self, unpacked: Unpacked) -> dict[str, Array]:
        """Refuse."""
        self._refuse()

    def fit(
        self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> Scales:
        """Refuse."""
        self._refuse()

    def assign(self, rows: NDArray[np.float32], scales: Scales) -> NDArray[np.int32]:
        """Refuse."""
        self._refuse()

    def encode(
        self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> dict[str, Array]:
        """Refuse."""
        self._refuse()

    def decode(self, parts: Parts, columns: int) -> Array:
        """Refuse."""
        self._refuse()
