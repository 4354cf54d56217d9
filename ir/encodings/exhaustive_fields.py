"""Searches for blocks of 256 values whose groups' scales are codes times a float16 number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Array, Encoding, Scales, Unpacked
from halfbyte.ir.encodings.ggml_search import Codes, Float, ordered_sum
from halfbyte.kernels.cpu_search import least_error, nearest_level, ordered_sums, reciprocal

BLOCK = 256
WINDOW = 6  # of Q4_K and Q5_K: codes of scale and minimum to each side of the present ones
MOVES = 4  # times that the window follows the best
ROUNDS = 3
STARTS = (0.95, 1.0, 1.05)
SCALE_CODES = {
    "Q2_K": (0, 15),
    "Q3_K": (-32, 31),
    "Q4_K": (0, 63),
    "Q5_K": (0, 63),
    "Q6_K": (-128, 127),
    "IQ4_XS": (-32, 31),
}
REACH = 12  # of codes to each side of the present one where there are many (Q6_K)


def _half(values: Float) -> Float:
    with np.errstate(over="ignore"):
        stored: Float = values.astype(np.float16).astype(np.float32)
    return np.where(np.isfinite(stored), stored, np.float32(0))


@dataclass(frozen=True)
class _Blocks:
    """Groups of all blocks and the state of the search.

    x, w: [groups, values]; d, dmin: [blocks]; sc, mn: [groups]; error: [groups] of the present.
    """

    x: Float
    w: Float
    levels: tuple[int, ...]
    codes_range: tuple[int, int]
    d: Float
    sc: Codes
    dmin: Float | None = None
    mn: Codes | None = None
    error: Float | None = None

    @property
    def per_block(self) -> int:
        """Return the groups of a block."""
        return BLOCK // int(self.x.shape[1])

    def of_groups(self, per_block: Float) -> Float:
        """Return [blocks] as [groups]."""
        return np.repeat(per_block, self.per_block)

    def block_error(self) -> Float:
        """Return the error of each block, added group by group."""
        assert self.error is not None
        return ordered_sum(self.error.reshape(len(self.d), -1).T)

    def steps(self) -> tuple[Float, Float]:
        """Return scale and minimum of each group."""
        scale = self.of_groups(self.d) * self.sc.astype(np.float32)
        if self.dmin is None or self.mn is None:
            return scale, np.zeros_like(scale)
        return scale, -(self.of_groups(self.dmin) * self.mn.astype(np.float32))

    def level(self) -> Float:
        """Return the levels of all values on the present scales: [groups, values]."""
        scale, minimum = self.steps()
        return nearest_level((self.x - minimum[:, None]) * reciprocal(scale)[:, None], self.levels)


def _better(first: _Blocks, second: _Blocks) -> _Blocks:
    """Return, block by block, the one of less error."""
    wins = second.block_error() < first.block_error()
    groups = np.repeat(wins, first.per_block)

    def pick(one: Any, other: Any) -> Any:
        if one is None:
            return None
        return np.where(wins if len(one) == len(wins) else groups, other, one)

    return replace(
        first,
        d=pick(first.d, second.d),
        sc=pick(first.sc, second.sc),
        dmin=pick(first.dmin, second.dmin),
        mn=pick(first.mn, second.mn),
        error=pick(first.error, second.error),
    )


def _scale_codes(state: _Blocks) -> Codes:
    """Return the codes of scales to try for each group, the present one first."""
    low, high = state.codes_range
    every = np.arange(low, high + 1, dtype=np.int32)
    if len(every) > 2 * REACH + 16:
        offsets = np.arange(-REACH, REACH + 1, dtype=np.int32)
        tried = np.clip(state.sc[:, None] + offsets, low, high)
    else:
        tried = np.broadcast_to(every, (len(state.sc), len(every)))
    return np.concatenate([state.sc[:, None], tried], axis=1)


def _choose_scales(state: _Blocks) -> _Blocks:
    """Return the state with the best code of scale for each group."""
    tried = _scale_codes(state)
    scale = state.of_groups(state.d)[:, None] * tried.astype(np.float32)
    chosen, error = least_error(state.x, state.w, state.levels, scale)
    return replace(state, sc=np.take_along_axis(tried, chosen[:, None], 1)[:, 0], error=error)


def _pairs(state: _Blocks) -> tuple[Codes, Codes]:
    """Return the codes of scale and minimum to try for each group, the present pair first."""
    assert state.mn is not None
    low, high = state.codes_range
    if high - low < 2 * WINDOW + 8:
        every = np.arange(low, high + 1, dtype=np.int32)
        one = np.broadcast_to(np.repeat(every, len(every)), (len(state.sc), len(every) ** 2))
        other = np.broadcast_to(np.tile(every, len(every)), one.shape)
    else:
        offsets = np.arange(-WINDOW, WINDOW + 1, dtype=np.int32)
        one = np.clip(state.sc[:, None] + np.repeat(offsets, len(offsets)), low, high)
        other = np.clip(state.mn[:, None] + np.tile(offsets, len(offsets)), low, high)
    return (
        np.concatenate([state.sc[:, None], one], axis=1),
        np.concatenate([state.mn[:, None], other], axis=1),
    )


def _choose_pairs(state: _Blocks) -> _Blocks:
    """Return the state with the best codes of scale and minimum for each group."""
    assert state.dmin is not None
    for _ in range(MOVES):
        one, other = _pairs(state)
        scale = state.of_groups(state.d)[:, None] * one.astype(np.float32)
        minimum = -(state.of_groups(state.dmin)[:, None] * other.astype(np.float32))
        chosen, error = least_error(state.x, state.w, state.levels, scale, minimum)
        at = chosen[:, None]
        state = replace(
            state,
            sc=np.take_along_axis(one, at, 1)[:, 0],
            mn=np.take_along_axis(other, at, 1)[:, 0],
            error=error,
        )
        if not chosen.any() or one.shape[1] == (state.codes_range[1] + 1) ** 2 + 1:
            break
    return state


def _terms(state: _Blocks) -> tuple[NDArray[np.float64], ...]:
    """Return code of scale * level, code of minimum, x and w, each [blocks, 256].

    value = d * (code of scale * level) - dmin * (code of minimum)
    """
    mn = np.zeros_like(state.sc) if state.mn is None else state.mn
    held = state.sc[:, None] * state.level(), np.repeat(mn, state.x.shape[1]), state.x, state.w
    return tuple(array.astype(np.float64).reshape(-1, BLOCK) for array in held)


def _fit_scale(state: _Blocks) -> _Blocks:
    """Return the state with the least-squares d for its codes."""
    a, _, x, w = _terms(state)
    wa = w * a
    aa, ax = ordered_sums(wa * a), ordered_sums(wa * x)
    fitted = np.where(aa > 0, ax / np.where(aa > 0, aa, 1), state.d)
    return replace(state, d=_half(fitted.astype(np.float32)))


def _fit_both(state: _Blocks) -> _Blocks:
    """Return the state with the least-squares d and dmin for its codes."""
    assert state.dmin is not None
    a, b, x, w = _terms(state)
    wa, wb = w * a, w * b
    aa, ab, bb, ax, bx = map(ordered_sums, (wa * a, wa * b, wb * b, wa * x, wb * x))
    determinant = aa * bb - ab * ab
    sound = determinant > 1e-12 * aa * bb
    safe = np.where(sound, determinant, 1)
    d = np.where(sound, (ax * bb - bx * ab) / safe, state.d)
    dmin = np.where(sound, (ax * ab - bx * aa) / safe, state.dmin)
    keep = (d < 0) | (dmin < 0)
    d, dmin = np.where(keep, state.d, d), np.where(keep, state.dmin, dmin)
    return replace(state, d=_half(d.astype(np.float32)), dmin=_half(dmin.astype(np.float32)))


def _state(
    encoding: Encoding, rows: Float, weight: Float, usual: dict[str, Array]
) -> tuple[_Blocks, Scales]:
    """Return the state that the ordinary encoder's blocks are in, and its scales."""
    start = encoding.unpack(usual, rows.shape[1]).scales
    fields = start.fields
    assert fields is not None
    group = start.group_size
    listed = getattr(encoding, "LEVELS", None)
    grid = encoding.grid
    if listed is None:
        assert grid is not None
        listed = tuple(range(grid.low - grid.zero_point, grid.high - grid.zero_point + 1))
    flat = {name: np.ascontiguousarray(array).reshape(-1) for name, array in fields.items()}
    state = _Blocks(
        rows.reshape(-1, group),
        weight.reshape(-1, group),
        tuple(listed),
        SCALE_CODES[encoding.name],
        flat["d"].astype(np.float32),
        flat["sc"].astype(np.int32),
        flat["dmin"].astype(np.float32) if "dmin" in flat else None,
        flat["mn"].astype(np.int32) if "mn" in flat else None,
    )
    return state, start


def _packed(encoding: Encoding, state: _Blocks, start: Scales, rows: Float) -> dict[str, Array]:
    """Return the parts for the state reached."""
    assert start.fields is not None
    shapes = {name: array.shape for name, array in start.fields.items()}
    fields = {"d": state.d, "sc": state.sc, "dmin": state.dmin, "mn": state.mn}
    shaped = {name: np.asarray(fields[name]).reshape(shape) for name, shape in shapes.items()}
    scale, minimum = state.steps()
    groups = start.scale.shape
    scales = replace(start, scale=scale.reshape(groups), fields=shaped)
    if start.offset is not None:
        scales = replace(scales, offset=minimum.reshape(groups))
    zero = 0 if start.zero_point is None else int(start.zero_point.flat[0])
    codes = state.level().astype(np.int32) + zero
    return encoding.pack(Unpacked(codes.reshape(rows.shape), scales))


def without_minimum(
    encoding: Encoding, rows: Float, weight: Float, usual: dict[str, Array]
) -> dict[str, Array]:
    """Return Q3_K, Q6_K or IQ4_XS blocks; rows, weight: [rows, columns], usual: parts."""
    first, start = _state(encoding, rows, weight, usual)
    best = _choose_scales(first)
    for factor in STARTS:
        state = _choose_scales(replace(first, d=_half(first.d * np.float32(factor))))
        best = _better(best, state)
        for _ in range(ROUNDS):
            state = _choose_scales(_fit_scale(state))
            before, best = best, _better(best, state)
            if not (best.block_error() < before.block_error()).any():
                break
    return _packed(encoding, best, start, rows)


def with_minimum(
    encoding: Encoding, rows: Float, weight: Float, usual: dict[str, Array]
) -> dict[str, Array]:
    """Return Q2_K, Q4_K or Q5_K blocks; rows, weight: [rows, columns], usual: parts."""
    first, start = _state(encoding, rows, weight, usual)
    state = best = _choose_pairs(first)
    for _ in range(ROUNDS):
        state = _choose_pairs(_fit_both(state))
        before, best = best, _better(best, state)
        if not (best.block_error() < before.block_error()).any():
            break
    return _packed(encoding, best, start, rows)
