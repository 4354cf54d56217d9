"""What a container can hold. Each format offers one; `quant/plan.py` alone chooses from it."""

from __future__ import annotations

from typing import Protocol

from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.tensor import Tensor


class Profile(Protocol):
    """The encodings and shapes that a container holds."""

    @property
    def name(self) -> str:
        """Return the name that `--to` takes, for example `gguf` or `hf`."""

    def accepts(self, tensor: Tensor, encoding: Encoding) -> bool:
        """Whether the container can hold this weight in this encoding."""

    def required(self, tensor: Tensor) -> Encoding | None:
        """Return the only encoding the container's readers take for this weight, if fixed."""

    def alternatives(self, tensor: Tensor) -> list[Encoding]:
        """Return encodings the container can hold, nearest to the tensor's own first."""
