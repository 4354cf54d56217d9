"""Resize on the CPU: one axis after the other by weighted picks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.ops.interpolation import Axis, nearest, source_positions, taps
from halfbyte.ir.ops.resize import resized_axes
from halfbyte.kernels import cpu_nets
from halfbyte.runtime.backend import BoundNode, Step
from halfbyte.runtime.cpu_slots import constant_at, floats, slot_at

if TYPE_CHECKING:
    from halfbyte.runtime.cpu import CpuBackend

Picks = tuple[NDArray[np.int64], NDArray[np.float32]]


def picks_of(axis: Axis, length: int, attributes: Any) -> Picks:
    """Return indices and weights [output, taps] of one axis."""
    positions = source_positions(axis, length, attributes["coordinate_transformation_mode"])
    if attributes["mode"] == "nearest":
        index = np.clip(nearest(positions, attributes["nearest_mode"]), 0, length - 1)
        return np.ascontiguousarray(index[:, None]), np.ones((index.size, 1), np.float32)
    indices, weights = taps(positions, axis.scale, length, attributes)
    return np.ascontiguousarray(indices), np.ascontiguousarray(weights, dtype=np.float32)


def bind_resize(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Resize of float32 by constant scales or sizes."""
    x, out = bound.inputs[0], bound.outputs[0]
    if x is None or not floats(x, out) or 0 in (x.shape or ()) or 0 in (out.shape or ()):
        return None
    scales, sizes = constant_at(bound, 2), constant_at(bound, 3)
    given = [slot_at(bound, 2), slot_at(bound, 3)]
    if any(s is not None and v is None for s, v in zip(given, (scales, sizes), strict=True)):
        return None
    scales = None if scales is None or scales.size == 0 else scales
    sizes = None if sizes is None or sizes.size == 0 else sizes
    attributes, source = bound.attributes, x.value()
    crop = attributes["coordinate_transformation_mode"] == "tf_crop_and_resize"
    if (scales is None) == (sizes is None) or crop:
        return None
    axes = resized_axes(source.shape, attributes, None, scales, sizes)
    changed = [
        (place, axis)
        for place, axis in axes.items()
        if axis.length != source.shape[place] or not np.isclose(axis.scale, 1.0, rtol=1e-9)
    ]
    # What grows is resized last axis first: fewer rows then meet the slow innermost axis.
    changed.sort(key=lambda item: -item[0])
    return resize_step(source, out.value(), changed, attributes)


def resize_step(
    source: Any, target: Any, changed: list[tuple[int, Axis]], attributes: Any
) -> Step | None:
    """Return the step that resizes the given axes in order."""
    shape = list(source.shape)
    runs: list[Callable[[], object]] = []
    held = source
    for number, (place, axis) in enumerate(changed):
        picks = picks_of(axis, shape[place], attributes)
        n, inner = shape[place], math.prod(shape[place + 1 :])
        shape[place] = axis.length
        out = target if number == len(changed) - 1 else np.empty(shape, np.float32)
        runs.append(one_axis(held, n, inner, picks, out))
        held = out
    if not runs:
        runs.append(lambda: np.copyto(target, source))

    def step() -> None:
        for run in runs:
            run()

    return step if tuple(shape) == target.shape else None


def one_axis(x: Any, n: int, inner: int, picks: Picks, out: Any) -> Callable[[], object]:
    """Return what resizes one axis."""
    index, weights = picks
    times = len(index) // n
    if weights.shape[1] == 1 and np.array_equal(index[:, 0], np.repeat(np.arange(n), times)):
        return repeated(x.reshape(-1, n, inner), times, out.reshape(-1, n, times, inner))
    return lambda: cpu_nets.resample(x, n, inner, *picks, out)


def repeated(x: Any, times: int, out: Any) -> Callable[[], object]:
    """Return what writes every value of x [outer, n, inner] `times` times; the longest runs win."""
    parts = [out[:, :, i] for i in range(times)] if x.shape[2] == 1 else [out]
    source = x if x.shape[2] == 1 else x[:, :, None]

    def run() -> None:
        for part in parts:
            np.copyto(part, source)

    return run


BINDERS: dict[str, Callable[[Any, BoundNode], Step | None]] = {"Resize": bind_resize}
