"""Encoders that look through the scales a ggml block can store, for the least weighted error.

llama.cpp's encoders try some twenty scales per block. These try every one that can matter:

- one float16 scale per block (Q4_0, Q5_0, Q8_0, IQ4_NL): every float16 number in range, both signs;
- scale and minimum (Q4_1, Q5_1): a raster, then every neighbouring pair of float16 numbers;
- scales that are codes (Q2_K to Q6_K, IQ4_XS): for each group every stored code (Q4_K, Q5_K: every
  pair within a window that follows the best), in turn with the least-squares super-scales;
- powers of two and bytes as scales (MXFP4, NVFP4): every one in range.

Errors are weighted with importance * sqrt(mean square + x^2), importance 1 where there is none, as
llama.cpp weights with an importance matrix. A block whose error does not get smaller keeps the
bytes of the ordinary encoder. Same bytes on every machine, as all encoders.
"""

from __future__ import annotations

import importlib

import numpy as np

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.encoding import Array, Encoding
from halfbyte.ir.encodings.ggml_search import Float, ordered_sum
from halfbyte.ir.encodings.grid import require_finite

CHUNK_VALUES = 1 << 17

_HERE = "halfbyte.ir.encodings"
# Encoding -> "module:function" that takes (encoding, rows, weight, usual parts), returns parts.
EXHAUSTIVE: dict[str, str] = {
    **dict.fromkeys(
        ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL"), f"{_HERE}.exhaustive_scale:every_half_scale"
    ),
    **dict.fromkeys(("Q4_1", "Q5_1"), f"{_HERE}.exhaustive_scale:raster_of_halves"),
    **dict.fromkeys(("MXFP4", "NVFP4"), f"{_HERE}.exhaustive_scale:every_small_scale"),
    **dict.fromkeys(("Q2_K", "Q4_K", "Q5_K"), f"{_HERE}.exhaustive_fields:with_minimum"),
    **dict.fromkeys(("Q3_K", "Q6_K", "IQ4_XS"), f"{_HERE}.exhaustive_fields:without_minimum"),
}


def search_weight(rows: Float, importance: Float | None) -> Float:
    """Return importance * sqrt(mean square of 32 columns + x^2) for rows [rows, columns]."""
    squares = rows * rows
    energy = ordered_sum(squares.reshape(-1, 32).T)
    spread = np.repeat(energy / np.float32(32), 32).reshape(rows.shape)
    weight: Float = np.sqrt(spread + squares)
    if importance is not None:
        weight = weight * importance.astype(np.float32, copy=False)
    # Squares must not leave float32's normal range; a common factor changes no choice.
    largest = weight.reshape(len(rows), -1).max(axis=1, initial=0)[:, None]
    np.divide(weight, largest, out=weight, where=largest > 0)
    return weight


def encode_exhaustive(
    encoding: Encoding, rows: Float, importance: Float | None = None
) -> dict[str, Array]:
    """Return the parts for rows [rows, columns] float32 with the least weighted squared error.

    importance: [columns] float32. Encodings not listed in EXHAUSTIVE are encoded as always.

    Raises:
        QuantizationError: as `encoding.encode`.
    """
    target = EXHAUSTIVE.get(encoding.name)
    if target is None or not rows.size:
        return encoding.encode(rows, importance)
    encoding.part_specs(*rows.shape)
    require_finite(rows)
    module, name = target.split(":")
    search = getattr(importlib.import_module(module), name)
    step = max(1, CHUNK_VALUES // rows.shape[1])
    pieces = []
    for start in range(0, len(rows), step):
        piece = np.ascontiguousarray(rows[start : start + step], np.float32)
        usual = encoding.encode(piece, importance)
        with np.errstate(over="ignore", invalid="ignore"):
            weight = search_weight(piece, importance)
            try:
                found = search(encoding, piece, weight, usual)
            except QuantizationError:
                found = usual
            pieces.append(_better_blocks(encoding, piece, weight, usual["data"], found["data"]))
    return {"data": np.concatenate(pieces)}


def _better_blocks(
    encoding: Encoding, rows: Float, weight: Float, usual: Array, found: Array
) -> Array:
    """Return, block by block, the one of less weighted error; the usual one where they tie."""
    width = encoding.block_shape[1]
    blocks = rows.size // width

    def error(data: Array) -> Float:
        gap = encoding.decode({"data": data}, rows.shape[1]).astype(np.float32) - rows
        return ordered_sum((weight * (gap * gap)).reshape(blocks, width).T)

    better = error(found) < error(usual)
    mixed = np.where(better[:, None], found.reshape(blocks, -1), usual.reshape(blocks, -1))
    return np.ascontiguousarray(mixed).reshape(usual.shape)
