"""How far a device may be from the reference, per operator, with the reason.

The reference sums in float64 and rounds once; devices sum in float32.
"""

from __future__ import annotations

from typing import NamedTuple


class Tolerance(NamedTuple):
    relative: float
    absolute: float


# one float32 rounding of the result, or of a constant on the way
DEFAULT = Tolerance(1e-6, 1e-6)
PER_OP = {
    # sums of up to 1024 products in float32; cancellation makes the bound absolute
    "halfbyte.Linear": Tolerance(1e-5, 1e-4),
    "halfbyte.LinearGroup": Tolerance(1e-5, 1e-4),
    # products of two such sums
    "halfbyte.LinearSwiGLU": Tolerance(1e-5, 5e-4),
    # product of polynomial exp and a division
    "Swish": Tolerance(2e-6, 1e-6),
    "Gelu": Tolerance(2e-6, 2e-6),
    "Softmax": Tolerance(5e-6, 1e-6),
    "halfbyte.SwiGLU": Tolerance(5e-6, 2e-6),
    # mean of squares in float32
    "RMSNormalization": Tolerance(3e-6, 3e-6),
    "LayerNormalization": Tolerance(5e-6, 5e-6),
    "halfbyte.AddRMSNormalization": Tolerance(3e-6, 3e-6),
    "halfbyte.AddLayerNormalization": Tolerance(5e-6, 5e-6),
    "RotaryEmbedding": Tolerance(2e-6, 1e-6),
    # dot products, exp and a weighted sum in float32
    "halfbyte.CachedAttention": Tolerance(1e-5, 5e-6),
}


def tolerance(key: str) -> Tolerance:
    """Return the bound for an operator."""
    return PER_OP.get(key, DEFAULT)
