"""Arithmetic on codes and scales that all grid encodings share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.encoding import Array, Scales, Unpacked

UNNAMED = "(unnamed)"


def group_count(columns: int, group_size: int) -> int:
    """Return the groups of a row; the last may be short. group_size 0 means one group."""
    return -(-columns // group_size) if group_size else 1


def spread(per_group: Array, scales: Scales, columns: int) -> Array:
    """Return [rows, columns]: for each value, the entry of its group in [rows, groups]."""
    if scales.group_of_column is not None:
        return np.asarray(per_group[:, scales.group_of_column])
    return np.repeat(per_group, scales.group_size, axis=1)[:, :columns]


def values_of(unpacked: Unpacked) -> NDArray[np.float32]:
    """Return (code - zero_point) * scale + offset in float32, one rounding per operation."""
    scales, columns = unpacked.scales, unpacked.codes.shape[1]
    if scales.zero_point is None:
        steps = unpacked.codes.astype(np.float32)
    else:
        zero = spread(scales.zero_point, scales, columns)
        steps = (unpacked.codes.astype(zero.dtype) - zero).astype(np.float32)
    values = steps * spread(scales.scale, scales, columns)
    if scales.offset is not None:
        values += spread(scales.offset, scales, columns)
    return values


def nearest_codes(
    rows: NDArray[np.float32], scales: Scales, low: int, high: int
) -> NDArray[np.int32]:
    """Return the nearest code in low..high of each value, ties to even: [rows, columns] int32.

    rows: [rows, columns] float32. Where the scale is 0 every code decodes alike; the code of
    value 0 is taken.
    """
    grouped, per_group = _by_group(rows, scales)
    scale = per_group(scales.scale)
    if scales.offset is not None:
        grouped = grouped - per_group(scales.offset)
    if np.all(scales.scale != 0):
        with np.errstate(over="ignore"):
            steps = np.divide(grouped, scale)
    else:
        steps = np.zeros(grouped.shape, np.float32)
        with np.errstate(over="ignore"):
            np.divide(grouped, scale, out=steps, where=scale != 0)
    if scales.zero_point is not None and scales.zero_point.dtype.kind == "f":
        steps += per_group(scales.zero_point)
    np.rint(steps, out=steps)
    if scales.zero_point is not None and scales.zero_point.dtype.kind != "f":
        steps += per_group(scales.zero_point.astype(np.float32))
    np.clip(steps, np.float32(low), np.float32(high), out=steps)
    return steps.astype(np.int32).reshape(rows.shape)


def _by_group(rows: NDArray[np.float32], scales: Scales) -> tuple[Array, Callable[[Array], Array]]:
    """Return rows in a shape, and what gives an array [rows, groups] a shape to broadcast to it."""
    count, columns = rows.shape
    groups = scales.scale.shape[1]
    if scales.group_of_column is None and groups * scales.group_size == columns:
        return rows.reshape(count, groups, scales.group_size), lambda array: array[..., None]
    return rows, lambda array: spread(array, scales, columns)


def regroup(unpacked: Unpacked, group_size: int) -> Unpacked:
    """Return the same values in groups of `group_size` (0: the whole row), scales repeated.

    Every new group must lie inside one old group.
    """
    columns = unpacked.codes.shape[1]
    old = unpacked.scales
    step = group_size or max(columns, 1)
    if old.group_of_column is not None or old.group_size == step:
        return unpacked
    source = np.arange(0, columns, step) // old.group_size
    zero, offset = old.zero_point, old.offset
    scales = Scales(
        old.scale[:, source],
        step,
        None if zero is None else zero[:, source],
        None if offset is None else offset[:, source],
    )
    return Unpacked(unpacked.codes, scales)


def shifted(unpacked: Unpacked, zero_point: int, low: int, high: int) -> Unpacked:
    """Return the same values with code `zero_point` standing for 0 in every group.

    Raises:
        QuantizationError: an offset is no whole number of steps, a zero point is fractional, or a
            code leaves low..high.
    """
    codes, scales = unpacked.codes, unpacked.scales
    if scales.offset is not None:
        scales = replace(scales, zero_point=whole_zero(scales.offset, scales.scale), offset=None)
    zero = scales.zero_point
    if zero is not None and zero.dtype.kind == "f":
        if not np.array_equal(zero, np.rint(zero)):
            raise QuantizationError(UNNAMED, "its zero points are fractions of a code")
        zero = zero.astype(np.int32)
    if zero is not None and not np.all(zero == zero_point):
        codes = codes - spread(zero, scales, codes.shape[1]) + zero_point
    elif zero is None and zero_point:
        codes = codes + zero_point
    require_codes(codes, low, high)
    fixed = np.full(scales.scale.shape, zero_point, np.int32)
    return Unpacked(codes, replace(scales, zero_point=fixed))


def require_codes(codes: NDArray[np.int32], low: int, high: int) -> None:
    """Check that all codes, of any shape, lie in low..high.

    Raises:
        QuantizationError: one does not.
    """
    if codes.size and (codes.min() < low or codes.max() > high):
        found = f"{codes.min()}..{codes.max()}"
        raise QuantizationError(UNNAMED, f"its codes span {found}, the target holds {low}..{high}")


def stored(values: NDArray[np.float32], dtype: np.dtype[np.generic], what: str) -> Array:
    """Return `values`, of any shape, in `dtype` if every one survives, sign of zero included.

    Raises:
        QuantizationError: a value is not representable.
    """
    with np.errstate(over="ignore"):
        result = values.astype(dtype)
    back = result.astype(np.float32)
    if not np.array_equal(back.view(np.uint32), np.ascontiguousarray(values).view(np.uint32)):
        bad = values[back != values]
        shown = f" ({float(bad[0])!r})" if bad.size else ""
        raise QuantizationError(UNNAMED, f"its {what}{shown} do not fit {dtype.name} exactly")
    return result


def require_finite(rows: NDArray[np.float32]) -> None:
    """Check that all weights [rows, columns] are finite.

    Raises:
        QuantizationError: a weight is NaN or infinite.
    """
    if not np.isfinite(rows).all():
        raise QuantizationError(
            UNNAMED, "holds NaN or infinite weights, finite ones are required; repair the source"
        )


def require_half_reach(rows: NDArray[np.float32], name: str) -> None:
    """Check that weights [rows, columns] are not far beyond what scales of float16 can reach.

    The largest that any type reaches is below 2^28. A search among larger values would square them
    out of float32's range and take all codes for equally good, zeros among them.

    Raises:
        QuantizationError: a weight is 2^40 or more.
    """
    if max(float(rows.max(initial=0)), -float(rows.min(initial=0))) >= 2.0**40:
        raise QuantizationError(
            UNNAMED,
            f"a scale leaves float16's range, {name} stores it as float16; "
            "keep the tensor in bfloat16 or float32",
        )


def fractional_zero(offset: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the zero points, in codes, that stand for offsets: -offset / scale, [rows, groups].

    Raises:
        QuantizationError: a group has scale 0 and an offset, which no zero point can say.
    """
    flat = scale == 0
    if np.any(offset[flat] != 0):
        raise QuantizationError(
            UNNAMED, "a group has scale 0 and an offset, which no zero point can say"
        )
    zero = -offset
    np.divide(zero, scale, out=zero, where=~flat)
    return zero


def whole_zero(offset: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return the whole zero points that stand for offsets exactly, [rows, groups].

    Raises:
        QuantizationError: an offset is no whole number of steps.
    """
    whole = np.rint(fractional_zero(offset, scale))
    if not np.array_equal(-whole * scale, offset) or np.abs(whole).max(initial=0) > 1 << 20:
        raise QuantizationError(UNNAMED, "an offset is no whole number of steps")
    return whole.astype(np.int32)


def stored_offset(scales: Scales, dtype: np.dtype[np.generic]) -> Array:
    """Return offsets in `dtype` that stand for the zero points, rounded where these are whole.

    Raises:
        QuantizationError: an offset that is not the product of a whole zero point and a scale is
            not representable, or one leaves the range.
    """
    offset = implied_offset(scales, dtype)
    if scales.offset is None and (scales.zero_point is None or scales.zero_point.dtype.kind != "f"):
        with np.errstate(over="ignore"):
            rounded = offset.astype(dtype)
        if np.isfinite(rounded.astype(np.float32)).all():
            return rounded
    return stored(offset, dtype, "offsets")


def implied_offset(scales: Scales, dtype: np.dtype[np.generic]) -> NDArray[np.float32]:
    """Return the offset that stands for the zero point: -zero_point * scale.

    A fractional zero point that `fractional_zero` made from an offset of `dtype` gives it back.
    """
    if scales.offset is not None:
        return scales.offset
    if scales.zero_point is None:
        return np.zeros_like(scales.scale)
    zero = scales.zero_point.astype(np.float32)
    offset = -(zero * scales.scale)
    if scales.zero_point.dtype.kind != "f":
        return offset
    with np.errstate(over="ignore"):
        near = offset.astype(dtype).astype(np.float32)
    flat = scales.scale == 0
    again = -near
    np.divide(again, scales.scale, out=again, where=~flat)
    return np.where(again.view(np.uint32) == zero.view(np.uint32), near, offset)
