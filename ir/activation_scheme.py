"""What models carry about the activations of their linear layers."""

from __future__ import annotations

from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.encodings.float8 import Float8

# Key of metadata: how values between layers are rounded, as compressed-tensors says it: a dict of
# `input_activations`, `kv_cache_scheme` and `scales`, stored small arrays by name.
ACTIVATIONS = "activation_quantization"
# The largest code around zero, by the kind of codes: int8, float8 (e4m3).
REACH = {"int": 127.0, "float": 448.0}


def is_rounded(encoding: Encoding, kind: str) -> bool:
    """Whether inputs of a weight are rounded where inputs of `kind` are: float8 of any scales."""
    return fits_inputs(encoding, kind) or (kind == "float" and isinstance(encoding, Float8))


def fits_inputs(encoding: Encoding, kind: str, by_token: bool = True) -> bool:
    """Whether servers multiply such weights with rounded inputs: one scale for each row.

    kind: that of the inputs, `int` or `float`. by_token: whether each token has a scale; floats
    that share one scale meet float8 weights that do, too.
    """
    if kind == "float":
        rows = (1,) if by_token else (0, 1)
        return isinstance(encoding, Float8) and not encoding.group_size and encoding.shared in rows
    symmetric = isinstance(encoding, Affine) and encoding.symmetric and encoding.bits == 8
    return symmetric and isinstance(encoding, Affine) and not encoding.group_size
