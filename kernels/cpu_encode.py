"""Encoded rows to rows of another kind, through the extension. As cpu.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halfbyte.kernels.cpu import CLAIMS, Float32, LinearWeight, kind_id, native
from halfbyte.kernels.layouts import LAYOUTS


def reencode(
    kind: str, source: LinearWeight, importance: Float32 | None = None, compat: bool = False
) -> NDArray[np.uint8] | None:
    """Return cpu.encode(kind, source.decode()) without holding the values.

    None where one is NaN, infinite or 2^40 and more: then the caller's own checks decide. Works on
    the calling thread alone: writers call it from several threads.

    Raises:
        ValueError: as cpu.encode.
    """
    if kind not in CLAIMS["encode"]:
        raise ValueError(f"reencode: kind {kind!r} has no encoder")
    layout = LAYOUTS[kind]
    out = np.empty((source.rows, -(-source.columns // layout.values) * layout.bytes), np.uint8)
    is_moderate = native().reencode(source.native, kind_id(kind), importance, out, compat)
    return out if is_moderate else None
