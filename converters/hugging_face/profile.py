"""What a plain Hugging Face folder can hold: dense numbers of every type safetensors knows."""

from __future__ import annotations

from dataclasses import dataclass

from halfbyte.converters.hugging_face.checkpoints import FLAVOURS
from halfbyte.ir.encodings.dense import DTYPES, Dense
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.tensor import Tensor


@dataclass(frozen=True)
class HuggingFaceProfile:
    """Dense encodings; block and affine encodings need a flavour."""

    name: str = "hf"

    @property
    def advice(self) -> str:
        """Return the flavours that hold codes."""
        return f"codes are held by {', '.join(f'hf:{name}' for name in FLAVOURS)}"

    def accepts(self, tensor: Tensor, encoding: Encoding) -> bool:
        """Whether the encoding is dense."""
        return isinstance(encoding, Dense)

    def required(self, tensor: Tensor) -> Encoding | None:
        """Return None: readers take any dense type for any weight."""
        return None

    def alternatives(self, tensor: Tensor) -> list[Encoding]:
        """Return the dense types, those that lose nothing of a quantized weight first."""
        own = tensor.encoding
        first = own if isinstance(own, Dense) else Dense("float32")
        others: list[Encoding] = [Dense(name) for name in DTYPES if name != first.dtype_name]
        return [first, *others]
