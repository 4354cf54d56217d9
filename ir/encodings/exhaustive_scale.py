"""Searches for blocks whose scale (and minimum) are numbers of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Array, Encoding, Scales, Unpacked
from halfbyte.kernels.cpu_search import least_error, nearest_level, ordered_sums, reciprocal

Float = NDArray[np.float32]
# Scales looked at, as multiples of (largest value / largest level): beyond them every value is
# clipped to less than half, or the coarser grid can only lose.
LOWEST, HIGHEST = 0.55, 1.15
# Q8_0 gains nothing from scales much smaller than the usual.
LOWEST_OF_BYTES, HIGHEST_OF_BYTES = 0.9, 1.01
LARGEST_HALF = 65504.0
RASTER = 24
NEIGHBOURS = 4
ROUNDS = 6


def _levels(encoding: Encoding) -> tuple[tuple[int, ...], int]:
    """Return code - zero for every code, ascending, and the zero."""
    listed: Any = getattr(encoding, "LEVELS", None)
    if listed is not None:
        return tuple(listed), 0
    grid = encoding.grid
    assert grid is not None
    low = -127 if encoding.name == "Q8_0" else grid.low - grid.zero_point
    return tuple(range(low, grid.high - grid.zero_point + 1)), grid.zero_point


def _halves(values: Float) -> Float:
    clipped: Float = np.clip(values, 0, np.float32(LARGEST_HALF)).astype(np.float16)
    return clipped


def _packed(
    encoding: Encoding, x: Float, rows: Float, scale: Float, offset: Float | None = None
) -> dict[str, Array]:
    """Return parts for x [groups, values] on the scales found, [groups]."""
    levels, zero = _levels(encoding)
    lift = np.float32(0) if offset is None else offset[:, None]
    steps = (x - lift) * reciprocal(scale)[:, None]
    codes = nearest_level(steps, levels).astype(np.int32) + zero
    shape = (len(rows), len(x) // max(len(rows), 1))
    zeros = np.full(shape, zero, np.int32) if zero else None
    lifts = None if offset is None else offset.reshape(shape)
    scales = Scales(scale.reshape(shape), x.shape[1], zeros, lifts)
    return encoding.pack(Unpacked(codes.reshape(rows.shape), scales))


def every_half_scale(
    encoding: Encoding, rows: Float, weight: Float, usual: dict[str, Array]
) -> dict[str, Array]:
    """Return the blocks with the best float16 scale; rows, weight: [rows, columns]."""
    x, w = rows.reshape(-1, 32), weight.reshape(-1, 32)
    levels, _ = _levels(encoding)
    is_byte = encoding.name == "Q8_0"
    low, high = (LOWEST_OF_BYTES, HIGHEST_OF_BYTES) if is_byte else (LOWEST, HIGHEST)
    weighed = np.where(w > 0, np.abs(x), np.float32(0)).max(axis=1)
    unit = weighed / np.float32(max(-levels[0], levels[-1]))
    first = _halves(unit * np.float32(low)).view(np.uint16)
    last = _halves(unit * np.float32(high)).view(np.uint16)
    count = int((last.astype(np.int32) - first).max(initial=0)) + 1
    first = np.minimum(first, np.uint16(0x7C00 - count))
    both = not is_byte
    chosen, _ = least_error(x, w, levels, first_half=first, halves=count, both_signs=both)
    bits = (first + (chosen % count).astype(np.uint16)).astype(np.uint16)
    scale = bits.view(np.float16).astype(np.float32)
    return _packed(encoding, x, rows, np.where(chosen >= count, -scale, scale))


def raster_of_halves(
    encoding: Encoding, rows: Float, weight: Float, usual: dict[str, Array]
) -> dict[str, Array]:
    """Return the blocks with scale and minimum from a raster, then from their neighbours."""
    x, w = rows.reshape(-1, 32), weight.reshape(-1, 32)
    levels, _ = _levels(encoding)
    low, span = x.min(axis=1), x.max(axis=1) - x.min(axis=1)
    ratios = np.linspace(0.6, 1.1, RASTER, dtype=np.float32)
    shifts = np.linspace(-0.1, 0.25, RASTER, dtype=np.float32)
    scales = np.repeat(ratios, RASTER) / np.float32(levels[-1]) * span[:, None]
    lifts = low[:, None] + np.tile(shifts, RASTER) * span[:, None]
    scale, lift, best = _best_pair(x, w, levels, scales, lifts)
    for _ in range(ROUNDS):
        # Two steps out, and the least-squares pair for the present codes.
        tried = _neighbours(*_fitted_pair(x, w, levels, scale, lift))
        found = _best_pair(x, w, levels, *tried)
        better = found[2] < best
        if not better.any():
            break
        scale, lift = np.where(better, found[0], scale), np.where(better, found[1], lift)
        best = np.where(better, found[2], best)
    return _packed(encoding, x, rows, scale, lift)


def _best_pair(
    x: Float, w: Float, levels: tuple[int, ...], scales: Float, lifts: Float
) -> tuple[Float, Float, Float]:
    """Return scale, minimum (as float16 holds them) and error of the best pair of each group."""
    with np.errstate(over="ignore"):
        stored = [a.astype(np.float16).astype(np.float32) for a in (scales, lifts)]
    kept = [np.where(np.isfinite(a), a, np.float32(0)) for a in stored]
    chosen, error = least_error(x, w, levels, kept[0], kept[1])
    scale, lift = (np.take_along_axis(a, chosen[:, None], 1)[:, 0] for a in kept)
    return scale, lift, error


def _fitted_pair(
    x: Float, w: Float, levels: tuple[int, ...], scale: Float, lift: Float
) -> tuple[Float, Float]:
    """Return the least-squares scale and minimum for the codes on the present ones."""
    codes = nearest_level((x - lift[:, None]) * reciprocal(scale)[:, None], levels)
    q64, x64, w64 = (array.astype(np.float64) for array in (codes, x, w))
    wq, wx = w64 * q64, w64 * x64
    total, of_q, of_qq, of_x, of_qx = map(ordered_sums, (w64, wq, wq * q64, wx, wq * x64))
    determinant = total * of_qq - of_q * of_q
    sound = determinant > 0
    safe = np.where(sound, determinant, 1)
    fitted = np.where(sound, (total * of_qx - of_q * of_x) / safe, scale)
    lifted = np.where(sound, (of_qq * of_x - of_q * of_qx) / safe, lift)
    return fitted.astype(np.float32), lifted.astype(np.float32)


def _neighbours(scale: Float, lift: Float) -> tuple[Float, Float]:
    """Return all pairs of float16 numbers up to NEIGHBOURS / 2 steps from a pair."""
    steps = np.arange(-(NEIGHBOURS // 2), NEIGHBOURS // 2 + 1)

    def around(values: Float) -> Float:
        with np.errstate(over="ignore"):
            bits = values.astype(np.float16).view(np.int16).astype(np.int32)
        moved = np.clip((bits & 0x7FFF)[:, None] + steps, 0, 0x7BFF) | (bits & 0x8000)[:, None]
        found: Float = moved.astype(np.uint16).view(np.float16).astype(np.float32)
        return found

    scales, lifts = around(scale), around(lift)
    return np.repeat(scales, len(steps), axis=1), np.tile(lifts, (1, len(steps)))


def every_small_scale(
    encoding: Encoding, rows: Float, weight: Float, usual: dict[str, Array]
) -> dict[str, Array]:
    """Return MXFP4 or NVFP4 blocks with the best of their few scales."""
    group = int(getattr(encoding, "GROUP", 32))
    x, w = rows.reshape(-1, group), weight.reshape(-1, group)
    levels, _ = _levels(encoding)
    if encoding.name == "NVFP4":
        bits = np.arange(1, 127)
        exponent, mantissa = bits >> 3, bits & 7
        small = mantissa * 2.0**-9
        stored = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10.0), small) / 2
        scales = np.broadcast_to(stored.astype(np.float32), (len(x), len(bits)))
    else:
        largest = np.abs(x).max(axis=1)
        exponent = np.frexp(np.where(largest > 0, largest, 1))[1] - 4
        tried = np.clip(exponent[:, None] + np.arange(-2, 3), -126, 126)
        scales = np.ldexp(np.float32(1), tried).astype(np.float32)
    chosen, _ = least_error(x, w, levels, np.ascontiguousarray(scales))
    scale = np.take_along_axis(scales, chosen[:, None], 1)[:, 0]
    empty = ~(x != 0).any(axis=1)
    return _packed(encoding, x, rows, np.where(empty, np.float32(0), scale))
