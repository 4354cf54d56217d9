"""What a GGUF file can hold and llama.cpp takes: norms, biases and tables of positions in F32."""

from __future__ import annotations

from halfbyte.converters.gguf.ggml_types import ACTIVATION_ONLY, BY_NAME, encoding_of, ggml_type_of
from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import Tensor

_TABLES = (
    Role.POSITION_EMBEDDING,
    Role.TOKEN_TYPE_EMBEDDING,
    Role.ROPE_DIVISORS,
    Role.ROPE_FACTORS_LONG,
    Role.ROPE_FACTORS_SHORT,
)
_WEIGHT_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")


def _is_float(encoding: Encoding) -> bool:
    return getattr(encoding, "dtype_name", "float").startswith(("float", "bfloat"))


class GgufProfile:
    """The one profile of GGUF."""

    @property
    def name(self) -> str:
        """Return `gguf`."""
        return "gguf"

    def required(self, tensor: Tensor) -> Encoding | None:
        """Return float32 for vectors, norms, biases and small tables; None for matrices."""
        if not _is_float(tensor.encoding):
            return None
        is_norm = tensor.role is not None and tensor.role.is_norm
        fixed = is_norm or tensor.kind != "weight" or tensor.role in _TABLES
        return encoding_of(BY_NAME["F32"]) if fixed or len(tensor.shape) < 2 else None

    def accepts(self, tensor: Tensor, encoding: Encoding) -> bool:
        """Whether the weight can stand in the file in this encoding."""
        kind = ggml_type_of(encoding)
        if kind is None or kind.name in ACTIVATION_ONLY or tensor.columns % kind.block:
            return False
        required = self.required(tensor)
        return required is None or required == encoding

    def alternatives(self, tensor: Tensor) -> list[Encoding]:
        """Return encodings that fit the weight, nearest in bits first, more bits before fewer."""
        bits = tensor.encoding.bits_per_weight
        found = [encoding_of(BY_NAME[name]) for name in _WEIGHT_TYPES]
        fitting = [e for e in found if self.accepts(tensor, e) and e != tensor.encoding]
        return sorted(
            fitting, key=lambda e: (e.bits_per_weight < bits, abs(e.bits_per_weight - bits))
        )


def check_profile(profile: GgufProfile, tensor: Tensor) -> None:
    """Check that a weight may be written as it is.

    Raises:
        UnsupportedError: it may not; the encodings that fit are named.
    """
    if not profile.accepts(tensor, tensor.encoding):
        required = profile.required(tensor)
        fitting = [required] if required is not None else profile.alternatives(tensor)
        names = [encoding.name for encoding in fitting]
        raise UnsupportedError(f"{tensor.encoding} in GGUF", f"tensor {tensor.name!r}", names)
