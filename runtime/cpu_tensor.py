"""Elementwise operators, products of dense arrays, reductions and data movement on the CPU.

What only moves values is one numpy copy between views that are made when the node is bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from halfbyte.ir.ops.fused import activation_of, clip_of
from halfbyte.kernels import cpu, cpu_nets
from halfbyte.runtime import cpu_select
from halfbyte.runtime.backend import BoundNode, Slot, Step
from halfbyte.runtime.cpu_slots import (
    arrays,
    constant_at,
    contiguous,
    floats,
    kernel_activation,
    slot_at,
)

if TYPE_CHECKING:
    from halfbyte.runtime.cpu import CpuBackend

BINARY = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Div": "div",
    "Max": "max",
    "Min": "min",
}
NUMPY_UNARY: dict[str, Any] = {
    "Abs": np.abs,
    "Ceil": np.ceil,
    "Cos": np.cos,
    "Floor": np.floor,
    "Log": np.log,
    "Neg": np.negative,
    "Reciprocal": np.reciprocal,
    "Sin": np.sin,
    "Sqrt": np.sqrt,
}
ACTIVATIONS = (
    *("Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu"),
    *("Sigmoid", "Softplus", "Swish", "Tanh"),
)
NARROW, FILLING = 7, 512  # Softmax of shorter rows, and of how many at least, is turned
ONE_THREAD = 1 << 15  # values that a kernel does not share out
COPIED = frozenset({"float32", "float64", "int64", "int32", "uint8", "int8", "bool"})


def bind_activation(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Elementwise functions of one float32 input that the kernels have."""
    found = activation_of(bound.node.op, bound.attributes)
    if found is None or not floats(bound.inputs[0], bound.outputs[0]):
        return None
    x = arrays(bound, 1)[0]
    return partial(cpu_nets.unary, x, kernel_activation(found), bound.outputs[0].value())


def bind_clip(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Clip between constants."""
    if not floats(bound.inputs[0], bound.outputs[0]):
        return None
    bounds = []
    for index in (1, 2):
        slot, found = slot_at(bound, index), constant_at(bound, index)
        if slot is not None and (found is None or found.size != 1):
            return None
        bounds.append(found)
    activation = kernel_activation(clip_of(*bounds))
    return partial(cpu_nets.unary, arrays(bound, 1)[0], activation, bound.outputs[0].value())


def bind_numpy_unary(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Elementwise functions of one float32 input, by numpy in place."""
    if not floats(bound.inputs[0], bound.outputs[0]):
        return None
    return partial(NUMPY_UNARY[bound.node.op], arrays(bound, 1)[0], bound.outputs[0].value())


def bind_binary(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Elementwise functions of two float32 inputs."""
    if len(bound.inputs) != 2 or not floats(*bound.inputs, bound.outputs[0]):
        return None
    a, b = arrays(bound, 2)
    return partial(cpu_nets.binary, BINARY[bound.node.op], a, b, bound.outputs[0].value())


def bind_sum(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Sum of float32, from left to right."""
    out = bound.outputs[0]
    if len(bound.inputs) < 2 or not floats(*bound.inputs, out):
        return None
    parts, total = arrays(bound, len(bound.inputs)), out.value()
    if len(parts) > 2 and parts[0].shape != total.shape:
        return None

    def step() -> None:
        cpu_nets.binary("add", parts[0], parts[1], total)
        for part in parts[2:]:
            cpu_nets.binary("add", total, part, total)

    return step


def bind_power(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Pow of float32; the common constant exponents without powers."""
    if not floats(*bound.inputs, bound.outputs[0]):
        return None
    x, power = arrays(bound, 2)
    out, constant = bound.outputs[0].value(), constant_at(bound, 1)
    if constant is not None and constant.size == 1 and x.shape == out.shape:
        exponent = float(constant.reshape(-1)[0])
        if exponent == 2.0:
            return partial(cpu_nets.binary, "mul", x, x, out)
        if exponent == 0.5:
            return partial(np.sqrt, x, out)
    return partial(np.power, x, power, out=out)


def bind_matmul(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """MatMul of matrices; a constant right-hand matrix is packed once."""
    out = bound.outputs[0]
    if not floats(*bound.inputs, out) or 0 in (out.shape or ()):
        return None
    a, b = arrays(bound, 2)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] == 0:
        return None
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    target = out.value()
    if b.ndim == 2:
        rows = a.size // k
        constant = constant_at(bound, 1)
        if constant is None:
            return partial(cpu_nets.Product(rows, n, k), a, b, target)
        packed = backend.packed.get(
            constant, "matrix", lambda: cpu_nets.PackedMatrix(contiguous(constant))
        )
        return partial(cpu_nets.Product(rows, n, k, packed=packed), a, None, target)
    lead = target.shape[:-2]
    batch = cpu_nets.Batch(
        cpu_nets.batch_offsets(a.shape, lead), cpu_nets.batch_offsets(b.shape, lead)
    )
    return partial(cpu_nets.Product(m, n, k, batch=batch), a, b, target)


def bind_gemm(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Gemm of two matrices without factors, and a bias row."""
    out, given = bound.outputs[0], bound.attributes
    if not floats(*bound.inputs[:2], out) or 0 in (out.shape or ()) or given["transA"]:
        return None
    a, b, c = arrays(bound, 3)
    if given["alpha"] != 1.0 or (c is not None and given["beta"] != 1.0) or a.shape[1] == 0:
        return None
    bias = constant_at(bound, 2)
    if c is not None and (bias is None or bias.size != out.value().shape[1] or bias.ndim > 2):
        return None
    m, n = out.value().shape
    row = None if bias is None else contiguous(bias).reshape(-1)
    product = cpu_nets.Product(m, n, a.shape[1], transposed=bool(given["transB"]), bias=row)
    return partial(product, a, b, out.value())


def softmax_parts(shape: Sequence[int], axis: int) -> tuple[int, int]:
    """Return the length of an axis and how many values lie behind each of its places."""
    axis %= len(shape)
    return shape[axis], math.prod(shape[axis + 1 :])


def narrow_softmax(x: Any, out: Any) -> Step:
    """Softmax of many rows too short for the lanes: turned, so that the lanes hold rows."""
    rows, n = x.shape
    turned, made = np.empty((n, rows), np.float32), np.empty((n, rows), np.float32)

    def step() -> None:
        cpu_nets.transpose(x, (1, 0), turned)
        cpu_nets.softmax_axis(turned, n, rows, made)
        cpu_nets.transpose(made, (1, 0), out)

    return step


def bind_softmax(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Softmax over one axis."""
    out = bound.outputs[0]
    if not floats(bound.inputs[0], out) or not out.shape or 0 in out.shape:
        return None
    x = arrays(bound, 1)[0]
    n, inner = softmax_parts(out.shape, bound.attributes["axis"])
    if inner == 1 and n < NARROW and x.size >= FILLING * n:
        return narrow_softmax(x.reshape(-1, n), out.value().reshape(-1, n))
    if inner == 1:
        return partial(cpu.softmax, x.reshape(-1, n), out.value().reshape(-1, n))
    return partial(cpu_nets.softmax_axis, x, n, inner, out.value())


def bind_reduce(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """ReduceMean, ReduceSum and ReduceMax over neighbouring axes of float32."""
    x, out = bound.inputs[0], bound.outputs[0]
    if x is None or not floats(x, out) or not x.shape or 0 in x.shape:
        return None
    given, rank = slot_at(bound, 1), len(x.shape)
    axes = constant_at(bound, 1)
    if given is not None and axes is None:
        return None
    if axes is None or axes.size == 0:
        if bound.attributes["noop_with_empty_axes"]:
            return None
        chosen = list(range(rank))
    else:
        chosen = sorted({int(a) % rank for a in axes.reshape(-1)})
    if chosen != list(range(chosen[0], chosen[-1] + 1)):
        return None
    n = math.prod(x.shape[chosen[0] : chosen[-1] + 1])
    inner = math.prod(x.shape[chosen[-1] + 1 :])
    kind = {"ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "max"}[bound.node.op]
    return partial(cpu_nets.reduce_axis, x.value(), n, inner, kind, out.value())


def bind_transpose(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Transpose."""
    x, out = bound.inputs[0], bound.outputs[0]
    if x is None or x.array is None or x.dtype != out.dtype:
        return None
    array = x.value()
    order = list(bound.attributes["perm"] or reversed(range(array.ndim)))
    order = [axis % max(1, array.ndim) for axis in order]
    # Moving whole runs is numpy's strength, as long as one thread would do it all.
    runs = array.ndim > 1 and order[-1] == array.ndim - 1
    alone = backend.threads == 1 or array.size <= ONE_THREAD
    if floats(x, out) and array.ndim and not (runs and alone):
        return partial(cpu_nets.transpose, array, order, out.value())
    return partial(np.copyto, out.value(), array.transpose(order))


def plain(bound: BoundNode, *slots: Slot | None) -> bool:
    """Whether all slots hold arrays of the output's dtype."""
    dtype = bound.outputs[0].dtype
    return dtype in COPIED and all(
        s is not None and s.array is not None and s.dtype == dtype for s in slots
    )


def bind_concat(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Concat."""
    if not plain(bound, *bound.inputs):
        return None
    parts = [slot.value() for slot in bound.inputs if slot is not None]
    out = bound.outputs[0].value()
    return partial(np.concatenate, parts, bound.attributes["axis"], out)


def bind_split(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Split: one copy per part."""
    if not plain(bound, bound.inputs[0], *bound.outputs):
        return None
    x = arrays(bound, 1)[0]
    axis, start = bound.attributes["axis"] % x.ndim, 0
    pairs = []
    for slot in bound.outputs:
        length = slot.value().shape[axis]
        pairs.append((slot.value(), x[(slice(None),) * axis + (slice(start, start + length),)]))
        start += length

    def step() -> None:
        for out, part in pairs:
            np.copyto(out, part)

    return step


def bind_slice(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Slice with constant bounds."""
    held = [constant_at(bound, index) for index in range(1, 5)]
    given = [slot_at(bound, index) for index in range(1, 5)]
    if not plain(bound, bound.inputs[0]) or held[0] is None or held[1] is None:
        return None
    if any(slot is not None and found is None for slot, found in zip(given, held, strict=True)):
        return None
    x = arrays(bound, 1)[0]
    starts, ends = held[0].tolist(), held[1].tolist()
    axes = range(len(starts)) if held[2] is None else held[2].tolist()
    steps = [1] * len(starts) if held[3] is None else held[3].tolist()
    cuts = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = x.shape[axis]
        if step < 0 and start < -length:
            return None
        # Going down, an end before the first place has no negative number in Python.
        cuts[axis] = slice(start, None if step < 0 and end < -length else end, step)
    view, out = x[tuple(cuts)], bound.outputs[0].value()
    return partial(np.copyto, out, view) if view.shape == out.shape else None


def bind_expand(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Expand."""
    if not plain(bound, bound.inputs[0]):
        return None
    out = bound.outputs[0].value()
    return partial(np.copyto, out, np.broadcast_to(arrays(bound, 1)[0], out.shape))


def bind_pad(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Pad by constant amounts."""
    pads, value, axes = (constant_at(bound, index) for index in (1, 2, 3))
    given = [slot_at(bound, index) for index in (2, 3)]
    if bound.attributes["mode"] != "constant":
        return cpu_select.bind_repeating_pad(backend, bound)
    if not plain(bound, bound.inputs[0]) or pads is None:
        return None
    if any(s is not None and v is None for s, v in zip(given, (value, axes), strict=True)):
        return None
    x, out = arrays(bound, 1)[0], bound.outputs[0].value()
    chosen = list(range(x.ndim)) if axes is None else [int(a) % x.ndim for a in axes]
    before = dict(zip(chosen, pads.tolist()[: len(chosen)], strict=True))
    if pads.min(initial=0) < 0:
        return None
    starts = [before.get(axis, 0) for axis in range(x.ndim)]
    inner = out[tuple(slice(s, s + n) for s, n in zip(starts, x.shape, strict=True))]
    filler = 0 if value is None or not value.size else value.reshape(-1)[0]

    def step() -> None:
        out.fill(filler)
        np.copyto(inner, x)

    return step


def bind_where(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Where."""
    condition = bound.inputs[0]
    if condition is None or condition.dtype != "bool" or not plain(bound, *bound.inputs[1:]):
        return None
    chosen, yes, no = arrays(bound, 3)
    out = bound.outputs[0].value()

    def step() -> None:
        np.copyto(out, no)
        np.copyto(out, yes, where=chosen)

    return step


BINDERS: dict[str, Callable[[Any, BoundNode], Step | None]] = {
    **dict.fromkeys(ACTIVATIONS, bind_activation),
    **dict.fromkeys(BINARY, bind_binary),
    **dict.fromkeys(NUMPY_UNARY, bind_numpy_unary),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax"), bind_reduce),
    "Clip": bind_clip,
    "Concat": bind_concat,
    "Expand": bind_expand,
    "Gemm": bind_gemm,
    "MatMul": bind_matmul,
    "Pad": bind_pad,
    "Pow": bind_power,
    "Slice": bind_slice,
    "Softmax": bind_softmax,
    "Split": bind_split,
    "Sum": bind_sum,
    "Transpose": bind_transpose,
    "Where": bind_where,
}
