"""Operators that pick values by their order or by indices, bound to the compiled kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from halfbyte.kernels import cpu_nets
from halfbyte.runtime.backend import BoundNode, Step
from halfbyte.runtime.cpu_slots import arrays, constant_at, floats
from halfbyte.runtime.reference import evaluated

PICKED = frozenset({"float32", "int32", "int64", "float64"})
MOVED = PICKED | {"bool", "int8", "uint8"}


def bind_top_k(backend: Any, bound: BoundNode) -> Step | None:
    """TopK of float32."""
    x, (values, places) = bound.inputs[0], bound.outputs[:2]
    if len(bound.outputs) != 2 or x is None or not floats(x, values) or 0 in (x.shape or (0,)):
        return None
    shape, axis = x.value().shape, bound.attributes["axis"] % x.value().ndim
    inner, k = math.prod(shape[axis + 1 :]), values.value().shape[axis]
    largest = bool(bound.attributes["largest"])
    return partial(
        cpu_nets.top_k,
        *(x.value(), shape[axis], inner, k, largest),
        *(values.value(), places.value()),
    )


def bind_gather_elements(backend: Any, bound: BoundNode) -> Step | None:
    """GatherElements by int64 indices as long as the data on all axes but one."""
    x, indices = bound.inputs
    out = bound.outputs[0]
    if x is None or indices is None or x.array is None or indices.dtype != "int64":
        return None
    if x.dtype not in PICKED or x.dtype != out.dtype or not x.shape or 0 in x.shape:
        return None
    data, places = x.value(), indices.value()
    axis = bound.attributes["axis"] % data.ndim
    rest = [places.shape[i] == n for i, n in enumerate(data.shape) if i != axis]
    if not all(rest):
        return None
    inner = math.prod(data.shape[axis + 1 :])
    return partial(cpu_nets.gather_elements, data, data.shape[axis], inner, places, out.value())


def bind_log_softmax(backend: Any, bound: BoundNode) -> Step | None:
    """LogSoftmax over the last axis that is longer than one."""
    out = bound.outputs[0]
    if not floats(bound.inputs[0], out) or not out.shape or 0 in out.shape:
        return None
    axis = bound.attributes["axis"] % len(out.shape)
    n = out.shape[axis]
    if math.prod(out.shape[axis + 1 :]) != 1:
        return None
    x, target = arrays(bound, 1)[0].reshape(-1, n), out.value().reshape(-1, n)
    rows = x.shape[0]
    low, powers = np.empty((rows, 1), np.float32), np.empty((rows, n), np.float32)
    total = np.empty((rows, 1), np.float32)
    exp, log = cpu_nets.Activation("exp"), cpu_nets.Activation("log")

    def step() -> None:
        cpu_nets.reduce_axis(x, n, 1, "max", low)
        cpu_nets.binary("sub", x, low, target)
        cpu_nets.unary(target, exp, powers)
        cpu_nets.reduce_axis(powers, n, 1, "sum", total)
        cpu_nets.unary(total, log, total)
        cpu_nets.binary("sub", target, total, target)

    return step


def bind_prelu(backend: Any, bound: BoundNode) -> Step | None:
    """PRelu of float32: max(x, 0) + slope * min(x, 0)."""
    out = bound.outputs[0]
    if not floats(*bound.inputs, out):
        return None
    x, slope = arrays(bound, 2)
    target, zero = out.value(), np.zeros((), np.float32)
    stored = constant_at(bound, 1)
    if x.shape != target.shape or stored is None or not np.isfinite(stored).all():
        return None
    negative = np.empty(x.shape, np.float32)

    def step() -> None:
        cpu_nets.binary("min", x, zero, negative)
        cpu_nets.binary("mul", negative, slope, negative)
        cpu_nets.binary("max", x, zero, target)
        cpu_nets.binary("add", target, negative, target)

    return step


def borders(out: Any, axis: int, before: int, after: int, mode: str) -> list[tuple[Any, Any]]:
    """Return what to copy where around the middle of an axis: (target, source) views of `out`."""
    lead, end = (slice(None),) * axis, out.shape[axis] - after
    ranges = {
        "reflect": (slice(2 * before, before, -1), slice(end - 2, end - 2 - after, -1)),
        "edge": (slice(before, before + 1), slice(end - 1, end)),
    }[mode]
    targets = (slice(0, before), slice(end, None))
    if mode == "reflect" and end - 2 - after < 0:
        ranges = (ranges[0], slice(end - 2, None, -1))
    pairs = zip(targets, ranges, (before, after), strict=True)
    chosen = [((*lead, to), (*lead, source)) for to, source, count in pairs if count]
    return [(out[to], out[source]) for to, source in chosen]


def bind_repeating_pad(backend: Any, bound: BoundNode) -> Step | None:
    """Pad that repeats values by constant amounts: the middle first, then axis after axis."""
    x, out = bound.inputs[0], bound.outputs[0]
    pads, axes = constant_at(bound, 1), constant_at(bound, 3)
    if x is None or x.array is None or x.dtype != out.dtype or x.dtype not in MOVED:
        return None
    mode, source, target = bound.attributes["mode"], x.value(), out.value()
    whole = pads is not None and pads.size == 2 * source.ndim and axes is None
    if not whole or mode == "wrap" or 0 in source.shape:
        return bind_moved(backend, bound)
    amounts = list(zip(pads[: source.ndim].tolist(), pads[source.ndim :].tolist(), strict=True))
    for amount, length in zip(amounts, source.shape, strict=True):
        if min(amount) < 0 or (mode == "reflect" and max(amount) >= length):
            return bind_moved(backend, bound)
    copies = []
    for axis, amount in enumerate(amounts):
        # Later axes hold their middle only: their borders come from what is filled by then.
        rest = [slice(a, target.shape[i] - b) for i, (a, b) in enumerate(amounts) if i > axis]
        part = target[tuple([slice(None)] * (axis + 1) + rest)]
        copies += borders(part, axis, *amount, mode)
    middle = tuple(slice(a, n - b) for (a, b), n in zip(amounts, target.shape, strict=True))
    copies.insert(0, (target[middle], source))

    def step() -> None:
        for to, values in copies:
            np.copyto(to, values)

    return step


def bind_moved(backend: Any, bound: BoundNode) -> Step | None:
    """Pads that repeat values by constant amounts: the reference moves places instead, once."""
    x, out = bound.inputs[0], bound.outputs[0]
    if x is None or x.array is None or x.dtype != out.dtype or x.dtype not in MOVED:
        return None
    rest = [constant_at(bound, index) for index in range(1, len(bound.inputs))]
    given = [slot is None for slot in bound.inputs[1:]]
    if any(v is None and not none for v, none in zip(rest, given, strict=True)):
        return None
    source, target = x.value(), out.value()
    places = np.arange(source.size).reshape(source.shape)
    index = evaluated(bound, [places, *rest])[0]
    if index.shape != target.shape:
        return None
    return partial(np.take, source.reshape(-1), index, None, target, "clip")


BINDERS: dict[str, Callable[[Any, BoundNode], Step | None]] = {
    "GatherElements": bind_gather_elements,
    "LogSoftmax": bind_log_softmax,
    "PRelu": bind_prelu,
    "TopK": bind_top_k,
}
