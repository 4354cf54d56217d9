"""Encoded rows of random bytes whose scales are finite."""

from __future__ import annotations

import numpy as np

from halfbyte.kernels.layouts import LAYOUTS

_FLOAT16_FIELDS = ("d", "dmin", "m")


def random_blocks(name: str, rows: int, blocks: int, seed: int = 0) -> np.ndarray:
    """Return uint8 [rows, row_bytes] of a ggml type, `blocks` blocks a row."""
    layout = LAYOUTS[name]
    found = np.random.default_rng(seed).integers(0, 256, (rows, blocks, layout.bytes), np.uint8)
    for field in _FLOAT16_FIELDS:
        if field in layout.offsets:
            found[..., layout.offsets[field] + 1] &= 0xBF  # an exponent below 31
    if name == "IQ1_M":  # the scale's highest nibble is that of the last byte
        found[..., -1] &= 0xBF
    return found.reshape(rows, -1)
