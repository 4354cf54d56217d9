"""Scales that are powers of two, stored as their exponent: E8M0, 2^(e - 127), byte 255 for NaN."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.encodings.grid import UNNAMED

Float = NDArray[np.float32]
BIAS = 127
NAN_BYTE = 255
_POWERS = np.ldexp(np.float32(1), np.arange(NAN_BYTE) - BIAS).astype(np.float32)
_POWERS = np.append(_POWERS, np.float32(np.nan))


def power_scales(stored: Array) -> Float:
    """Return what the bytes mean, float32 of the same shape; byte 255 gives NaN."""
    scale: Float = _POWERS[stored]
    return scale


def power_bytes(scale: Float, name: str) -> NDArray[np.uint8]:
    """Return the bytes of scales that are powers of two from 2^-127 to 2^127.

    Raises:
        QuantizationError: one is not.
    """
    mantissa, exponent = np.frexp(scale)
    stored = exponent + (BIAS - 1)
    wrong = (mantissa != 0.5) | (stored < 0) | (stored >= NAN_BYTE)
    if wrong.any():
        found = float(scale[wrong][0])
        raise QuantizationError(
            UNNAMED, f"its scale {found!r} is no power of two that {name} stores"
        )
    return stored.astype(np.uint8)


def powers_above(largest: Float, reach: float, lowest: int = -110) -> Float:
    """Return the least powers of two s with largest <= reach * s, at least 2^lowest."""
    mantissa, exponent = np.frexp(largest / np.float32(reach))
    # Division may round down to a power of two from just above it.
    power = exponent - (mantissa == 0.5)
    power = np.maximum(np.where(largest > 0, power, lowest), lowest)
    scale = np.ldexp(np.float32(1), power)
    short = largest > np.float32(reach) * scale
    found: Float = np.where(short, scale * np.float32(2), scale).astype(np.float32)
    return found
