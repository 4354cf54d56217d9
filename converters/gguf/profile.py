"""What a GGUF file can hold and llama.cpp takes: norms, biases and tables of positions in F32."""

from __future__ import annotations

from halfbyte.converters.gguf.ggml_types import ACTIVATION_ONLY, BY_NAME, encoding_of, ggml_type_of
from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.encodings.transcode import judge
from halfbyte.ir.profile import nearest_first, stays_float
from halfbyte.ir.tensor import Tensor

WEIGHT_TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"),
    *("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"),
)
# Proposed only for weights whose values they hold.
SMALL_FLOATS = ("MXFP4", "NVFP4")


class GgufProfile:
    """The one profile of GGUF.

    A tensor without a role comes from a GGUF file of an architecture that is not known here: it may
    stay as it is.
    """

    @property
    def name(self) -> str:
        """Return `gguf`."""
        return "gguf"

    def required(self, tensor: Tensor) -> Encoding | None:
        """Return float32 for vectors, norms, biases and small tables; None for matrices.

        Without a role these keep what they have: nobody knows what their reader takes.
        """
        if not stays_float(tensor):
            return None
        known = tensor.role is not None or ggml_type_of(tensor.encoding) is None
        return encoding_of(BY_NAME["F32"]) if known else tensor.encoding

    def accepts(self, tensor: Tensor, encoding: Encoding) -> bool:
        """Whether the weight can stand in the file in this encoding."""
        kind = ggml_type_of(encoding)
        if kind is None or kind.name in ACTIVATION_ONLY or tensor.columns % kind.block:
            return False
        required = self.required(tensor)
        if required is not None:
            return encoding == required
        return encoding == tensor.encoding or not (encoding.is_quantized and stays_float(tensor))

    def alternatives(self, tensor: Tensor) -> list[Encoding]:
        """Return encodings that fit the weight: lossless first, then nearest in bits."""
        own = tensor.encoding
        found = [encoding_of(BY_NAME[name]) for name in WEIGHT_TYPES]
        small = [encoding_of(BY_NAME[name]) for name in SMALL_FLOATS]
        found += [encoding for encoding in small if judge(own, encoding).is_lossless]
        fitting = [e for e in found if e != own and self.accepts(tensor, e)]
        return nearest_first(own, fitting)


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
