"""What models carry about the activations of their linear layers."""

from __future__ import annotations

from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.encodings.float8 import Float8

# Key of metadata: how values between layers are rounded, as compressed-tensors says it: a dict of
# `input_activations`, `kv_cache_scheme` and `scales`, stored small arrays by name.
ACTIVATIONS = "activation_quantization"


def fits_inputs(encoding: Encoding, kind: str) -> bool:
    """Whether servers multiply such weights with inputs rounded by token: one scale for each row.

    kind: that of the inputs, `int` or `float`.
    """
    if kind == "float":
        return isinstance(encoding, Float8) and not encoding.group_size and encoding.shared == 1
    symmetric = isinstance(encoding, Affine) and encoding.symmetric and encoding.bits == 8
    return symmetric and isinstance(encoding, Affine) and not encoding.group_size
