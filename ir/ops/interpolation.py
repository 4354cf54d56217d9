"""One axis of a Resize: where outputs lie among inputs, and what the inputs weigh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.ops.spec import Array

SUPPORT = {"linear": 1, "cubic": 2}


class Axis(NamedTuple):
    """How one axis is resized: factor, length after it, part of the input that it covers."""

    scale: float
    length: int
    start: float = 0.0
    end: float = 1.0


def source_positions(axis: Axis, length: int, mode: str) -> NDArray[np.float64]:
    """Return for each output position where it lies among the `length` input positions."""
    scale, wanted = axis.scale, axis.scale * length
    places = np.arange(axis.length, dtype=np.float64)
    # The exact, possibly fractional length counts here, not the one that was rounded down.
    if mode == "align_corners":
        return places * (length - 1) / (wanted - 1) if wanted != 1 else places * 0
    if mode == "tf_crop_and_resize":
        covered = (axis.end - axis.start) * (length - 1)
        steps = places * covered / (wanted - 1) if wanted != 1 else places * 0 + covered / 2
        return axis.start * (length - 1) + steps
    if mode == "asymmetric":
        return places / scale
    if mode == "tf_half_pixel_for_nn":
        return (places + 0.5) / scale
    if mode == "pytorch_half_pixel" and axis.length <= 1:
        return places * 0
    middle = (places + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        return length / 2 * (1 - axis.length / wanted) + middle
    return middle


def nearest(positions: NDArray[np.float64], mode: str) -> NDArray[np.int64]:
    """Return the input index nearest to each position."""
    whole = np.floor(positions)
    rest = positions - whole
    up = {
        "floor": rest > 1,
        "ceil": rest > 0,
        "round_prefer_floor": rest > 0.5,
        "round_prefer_ceil": rest >= 0.5,
    }[mode]
    return (whole + up).astype(np.int64)


def filter_weights(distance: NDArray[Any], mode: str, cubic_a: float) -> NDArray[Any]:
    """Return the weight of an input at a distance (in filter widths) from the output."""
    x = np.abs(distance)
    if mode == "linear":
        return np.asarray(np.maximum(1 - x, 0))
    near = ((cubic_a + 2) * x - (cubic_a + 3)) * x * x + 1
    far = ((cubic_a * x - 5 * cubic_a) * x + 8 * cubic_a) * x - 4 * cubic_a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def taps(
    positions: NDArray[np.float64], scale: float, length: int, attributes: Mapping[str, Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return input indices and weights [output, taps] of a linear or cubic axis."""
    mode, antialias = attributes["mode"], bool(attributes.get("antialias"))
    shrink = min(scale, 1.0) if antialias else 1.0
    first = int(np.floor(-SUPPORT[mode] / shrink)) + 1
    base = np.ceil(positions) - 1
    offsets = np.arange(first, 2 - first if mode == "cubic" or antialias else 2)
    ratio = (positions - base)[:, None]
    weights = filter_weights((offsets - ratio) * shrink, mode, attributes["cubic_coeff_a"])
    if antialias:
        weights = weights / weights.sum(axis=1, keepdims=True)
    indices = base.astype(np.int64)[:, None] + offsets
    if attributes.get("exclude_outside"):
        weights = np.where((indices >= 0) & (indices < length), weights, 0)
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(total == 0, 1, total)
    return np.clip(indices, 0, length - 1), weights


def resize_axis(data: Array, place: int, axis: Axis, attributes: Mapping[str, Any]) -> Array:
    """Return data with axis `place` resized; floating but for nearest."""
    length, mode = data.shape[place], attributes["coordinate_transformation_mode"]
    positions = source_positions(axis, length, mode)
    if attributes["mode"] == "nearest":
        index = np.clip(nearest(positions, attributes["nearest_mode"]), 0, length - 1)
        result = np.take(data, index, axis=place)
    else:
        indices, weights = taps(positions, axis.scale, length, attributes)
        column = (-1, *(1,) * (data.ndim - 1 - place))
        result = np.zeros((*data.shape[:place], axis.length, *data.shape[place + 1 :]))
        for tap in range(indices.shape[1]):
            part = np.take(data, indices[:, tap], axis=place)
            result += part * weights[:, tap].reshape(column)
    if mode == "tf_crop_and_resize":
        outside = (positions < 0) | (positions > length - 1)
        place_of = (slice(None),) * place + (outside,)
        result[place_of] = attributes["extrapolation_value"]
    return result
