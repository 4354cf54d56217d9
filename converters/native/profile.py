"""What a .hb file can hold: every encoding that has a name in the table."""

from __future__ import annotations

from dataclasses import dataclass

from halfbyte.converters.native.layout import check_encoding
from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.tensor import Tensor


@dataclass(frozen=True)
class NativeProfile:
    """Every encoding, for every weight."""

    name: str = "hb"

    def accepts(self, tensor: Tensor, encoding: Encoding) -> bool:
        """Whether a reader finds the encoding again by its name."""
        try:
            check_encoding(encoding, tensor.name)
        except UnsupportedError:
            return False
        return True

    def required(self, tensor: Tensor) -> Encoding | None:
        """Return None: nothing is fixed."""
        return None

    def alternatives(self, tensor: Tensor) -> list[Encoding]:
        """Return the tensor's own encoding, then float32."""
        from halfbyte.ir.encodings.dense import Dense

        own = [tensor.encoding] if self.accepts(tensor, tensor.encoding) else []
        return [*own, Dense("float32")]
