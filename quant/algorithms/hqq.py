"""HQQ: zero points by half-quadratic splitting, without data (Badri and Shaji, 2023).

For each group the scale stays what plain rounding takes, and the zero point moves to where the sum
of |error|^p is small, p = 0.7: few large errors are let stand so that many small ones shrink. Each
step takes the rounded values, splits off the large part of the error,

    e = sign(d) max(|d| - |d|^(p - 1) / beta, 0),    zero = mean of code - (value - e) / scale,

and lets beta grow. Errors are counted in steps of the group's scale, so that beta means the same
for every weight. Of all zero points met, as the encoding stores them, each group keeps the best:
plain rounding's is among them, so no group is worse by this measure.

Integer zero points move by whole steps, which at the plain scale never helps: with them the
splitting also starts from smaller scales, around the middle of the range; one is taken where the
sum of squares is no larger either.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.dense import FLOATS
from halfbyte.ir.encodings.encoding import Array, Encoding, Scales
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.algorithms.rtn import encoded_with

Float = NDArray[np.float32]
POWER = 0.7
BETA = 10.0
GROWTH = 1.01
STEPS = 20
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
CHUNK_VALUES = 1 << 16


def requantize(
    tensor: Tensor,
    encoding: Encoding,
    importance: NDArray[np.float32] | None = None,
    compat: bool = False,
) -> Tensor:
    """Return the tensor in `encoding`, its rows encoded when they are read.

    importance and compat change nothing: the method looks at the weights alone.

    Raises:
        UnsupportedError: the encoding has no zero points to move.
        QuantizationError: as `rtn`.
    """
    if not isinstance(encoding, Affine) or encoding.symmetric:
        raise UnsupportedError(
            f"hqq into {encoding.name}, which has no zero points to choose",
            f"tensor {tensor.name!r}",
            _with_zero_points(encoding),
            "choose such a type, or another method for this weight",
        )
    values = {field.name: getattr(encoding, field.name) for field in fields(encoding)}
    made = encoded_with(_encode, tensor, _Fitted(**values), None)
    return replace(made, encoding=encoding)


def _with_zero_points(encoding: Encoding) -> list[str]:
    if not isinstance(encoding, Affine):
        return ["int4-g64-fzp", "int4-g64-asym"]
    return [replace(encoding, zero_point=kind).name for kind in ("float", "uint8")]


@dataclass(frozen=True)
class _Fitted(Affine):
    """The same bytes, with zero points fitted by HQQ."""

    def fit(self, rows: Float, importance: Float | None = None) -> Scales:
        """Choose scales as rtn does, then the zero points."""
        return moved_zeros(self, rows, super().fit(rows))


def _encode(encoding: Encoding, rows: Array, importance: Float | None) -> dict[str, Array]:
    return encoding.encode(rows)


def moved_zeros(encoding: Affine, rows: Float, plain: Scales) -> Scales:
    """Return the best scales and zero points met, `plain` among them.

    rows: [rows, columns] float32.
    """
    assert plain.zero_point is not None
    scale, zero = plain.scale.copy(), plain.zero_point.copy()
    step = max(1, CHUNK_VALUES // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        values = _Groups(rows[part], plain.group_size, scale.shape[1])
        first = scale[part], zero[part].astype(np.float32)
        scale[part], zero[part] = _best(encoding, values, *first)
    return replace(plain, scale=scale, zero_point=zero)


class _Groups:
    """Rows as [rows, groups, size], with zeros where the last group is short."""

    def __init__(self, rows: Float, size: int, groups: int) -> None:
        count, columns = rows.shape
        padded = np.zeros((count, groups * size), np.float32)
        padded[:, :columns] = rows
        self.values = padded.reshape(count, groups, size)
        self.lengths = np.minimum(size, columns - np.arange(groups) * size)
        absent = np.arange(size) >= self.lengths[:, None]
        self._absent = absent if absent.any() else None

    def total(self, values: Float) -> NDArray[np.float64]:
        """Return the sums of `values` over each group."""
        if self._absent is not None:
            values[:, self._absent] = 0
        sums: NDArray[np.float64] = values.sum(axis=2, dtype=np.float64)
        return sums


def _best(encoding: Affine, rows: _Groups, scale: Float, zero: Float) -> tuple[Float, Float]:
    """Return the scales and zero points [rows, groups] with the least sum of |error|^p."""
    best_scale, best_zero = scale, zero
    least = np.full(zero.shape, np.inf)
    squares = _squares(encoding, rows, scale, zero)
    for shrink in (1.0,) if encoding.zero_point == "float" else SHRINKS:
        tried = (scale * np.float32(shrink)).astype(FLOATS[encoding.scale_dtype])
        small = np.abs(tried.astype(np.float32))
        with np.errstate(divide="ignore", invalid="ignore"):
            middle = encoding.levels / 2 + (zero - encoding.levels / 2) * scale / small
        start = zero if shrink == 1.0 else np.nan_to_num(middle).astype(np.float32)
        found, error = _split(encoding, rows, small, start)
        better = error < least
        if shrink != 1.0:
            better &= _squares(encoding, rows, small, found) <= squares
        least = np.where(better, error, least)
        best_scale, best_zero = (
            np.where(better, small, best_scale),
            np.where(better, found, best_zero),
        )
    return best_scale, best_zero


def _squares(encoding: Affine, rows: _Groups, scale: Float, zero: Float) -> NDArray[np.float64]:
    """Return the sums of squared errors of every group."""
    wide, place = scale[..., None], zero[..., None]
    steps = np.divide(rows.values, wide, out=np.zeros_like(rows.values), where=wide != 0)
    codes = np.clip(np.rint(steps + place), np.float32(0), np.float32(encoding.levels))
    difference = (codes - place) * wide - rows.values
    return rows.total(difference * difference)


def _split(
    encoding: Affine, rows: _Groups, scale: Float, zero: Float
) -> tuple[Float, NDArray[np.float64]]:
    """Return the best zero points met from `zero` on, and their sums of |error|^p."""
    wide, levels = scale[..., None], np.float32(encoding.levels)
    steps = np.divide(rows.values, wide, out=np.zeros_like(rows.values), where=wide != 0)
    best, least, active = zero, np.full(zero.shape, np.inf), np.ones(zero.shape, np.bool_)
    beta = BETA
    for _ in range(STEPS + 1):
        held = _as_stored(encoding, zero)
        shifted = steps + held[..., None]
        codes = np.clip(np.rint(shifted), np.float32(0), levels)
        error = shifted - codes
        size = np.abs(error)
        power = size ** np.float32(POWER)
        with np.errstate(divide="ignore", invalid="ignore"):
            weight = power / size
        total = rows.total(power) * np.abs(scale).astype(np.float64) ** POWER
        better = active & (total < least)
        least, best = np.where(better, total, least), np.where(better, held, best)
        shrunk = np.fmax(size - weight / np.float32(beta), 0)
        aims = codes - steps + np.copysign(shrunk, error)
        zero = (rows.total(aims) / rows.lengths).astype(np.float32)
        # Each group stops by itself, where it stands still: the others of a piece must not matter.
        active &= _as_stored(encoding, zero) != held
        if not active.any():
            break
        beta *= GROWTH
    return best, least


def _as_stored(encoding: Affine, zero: Float) -> Float:
    """Return the nearest zero points that the encoding holds."""
    clipped = np.clip(zero, 0, encoding.levels)
    if encoding.zero_point == "uint8":
        return np.rint(clipped)
    held: Float = clipped.astype(FLOATS[encoding.scale_dtype]).astype(np.float32)
    return held
