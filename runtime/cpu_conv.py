"""Convolutions and pools bound to the compiled kernels; one spatial axis counts as two."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from halfbyte.ir.ops.convolution import transpose_sizes
from halfbyte.ir.ops.fused import of_attributes
from halfbyte.ir.ops.sliding_windows import Windows, window_sizes
from halfbyte.kernels import cpu, cpu_nets
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

SPATIAL_RANKS = (1, 2)
PATCH_WIDTH = 8  # narrower ones are copied in too small pieces


def two(values: tuple[int, ...], missing: int) -> tuple[int, int]:
    """Return one or two values as two, `missing` first."""
    return (values[0], values[1]) if len(values) == 2 else (missing, values[0])


def kernel_window(windows: Windows) -> cpu_nets.Window:
    """Return windows as the kernels take them."""
    return cpu_nets.Window(
        two(windows.kernel, 1),
        two(windows.strides, 1),
        two(windows.dilations, 1),
        two(windows.begin, 0),
    )


def square(array: Any) -> Any:
    """Return [n, c, w] as [n, c, 1, w]; other arrays as they are."""
    return array[:, :, None] if array.ndim == 3 else array


def fits(bound: BoundNode, out: Slot) -> bool:
    """Whether inputs and output hold float32 images with one or two spatial axes."""
    shape = out.shape or ()
    given = [slot for slot in bound.inputs if slot is not None]
    empty = any(0 in (slot.shape or ()) for slot in [*given, out])
    return floats(*given, out) and len(shape) - 2 in SPATIAL_RANKS and not empty


def packed_weight(
    backend: CpuBackend, bound: BoundNode, groups: int, form: str
) -> cpu_nets.ConvWeight | None:
    """Return the packed constant weight, None where the weight is computed."""
    weight = constant_at(bound, 1)
    if weight is None:
        return None
    return backend.packed.get(
        weight,
        ("conv", groups, form),
        lambda: cpu_nets.ConvWeight(square(contiguous(weight)), groups, form),
    )


def bind_conv(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Conv and FusedConv."""
    out = bound.outputs[0]
    if not fits(bound, out):
        return None
    x, weight, _, residual = arrays(bound, 4)
    bias_slot = slot_at(bound, 2)
    if bias_slot is not None and not bias_slot.constant:
        return None
    windows = window_sizes(bound.attributes, x.shape[2:], weight.shape[2:])
    window = kernel_window(windows)
    if min(window.pads) < 0:
        return None
    residual_shape = None if residual is None else residual.shape
    if residual_shape is not None and residual_shape != out.shape:
        return None
    groups = bound.attributes["group"]
    size = two(windows.output, 1)
    if residual is None and groups == 1 and is_patches(window, square(x).shape, size):
        patches = bind_patches(backend, bound, window)
        if patches is not None:
            return patches
    form = cpu_nets.conv_form(square(weight).shape, groups, window, size)
    make = convolution(bound, square(x).shape, size, window)
    packed = packed_weight(backend, bound, groups, form)
    target = out.value()
    if packed is not None:
        return partial(make(packed), x, residual, target)

    def step() -> None:
        made = cpu_nets.ConvWeight(square(weight), groups, form)
        make(made)(x, residual, target)

    return step


def is_patches(window: cpu_nets.Window, shape: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether windows cut an image into wide patches that do not overlap."""
    kernel, image = window.kernel, (size[0] * window.kernel[0], size[1] * window.kernel[1])
    plain = window.strides == kernel and window.dilations == (1, 1) and window.pads == (0, 0)
    return plain and kernel[1] >= PATCH_WIDTH and kernel[0] > 1 and shape[2:] == image


def bind_patches(backend: CpuBackend, bound: BoundNode, window: cpu_nets.Window) -> Step | None:
    """Conv whose windows do not overlap: every patch is a row of one product."""
    stored = constant_at(bound, 1)
    if stored is None:
        return None
    x, out = square(arrays(bound, 1)[0]), square(bound.outputs[0].value())
    (batch, channels, _, _), (_, filters, rows, columns) = x.shape, out.shape
    high, wide = window.kernel
    # [batch, row, column, channel, y, x] of the patches
    cut = x.reshape(batch, channels, rows, high, columns, wide).transpose(0, 2, 4, 1, 3, 5)
    held = np.empty(cut.shape, np.float32)
    matrix = held.reshape(-1, channels * high * wide)
    packed = backend.packed.get(
        stored,
        "patches",
        lambda: cpu_nets.PackedMatrix(contiguous(stored).reshape(filters, -1), True),
    )
    activation, bias = cpu_nets.NO_ACTIVATION, constant_at(bound, 2)
    if "activation" in bound.attributes:
        activation = kernel_activation(of_attributes(bound.attributes))
    shift = None if bias is None else contiguous(bias)
    product = cpu_nets.Product(
        *(len(matrix), filters, matrix.shape[1]), packed=packed, bias=shift, activation=activation
    )
    made = np.empty((batch, rows * columns, filters), np.float32)
    planes = out.reshape(batch, filters, rows * columns)

    def step() -> None:
        np.copyto(held, cut)
        product(matrix, None, made)
        cpu_nets.transpose(made, (0, 2, 1), planes)

    return step


def convolution(
    bound: BoundNode, shape: tuple[int, ...], size: tuple[int, int], window: cpu_nets.Window
) -> Callable[[cpu_nets.ConvWeight], cpu_nets.Convolution]:
    """Return what makes the convolution from its packed weight."""
    bias = constant_at(bound, 2)
    activation = cpu_nets.NO_ACTIVATION
    if "activation" in bound.attributes:
        activation = kernel_activation(of_attributes(bound.attributes))

    def make(weight: cpu_nets.ConvWeight) -> cpu_nets.Convolution:
        held = None if bias is None else contiguous(bias)
        return cpu_nets.Convolution(weight, shape, size, window, held, activation)

    return make


def bind_transposed(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """ConvTranspose over a constant weight."""
    out = bound.outputs[0]
    bias = slot_at(bound, 2)
    if not fits(bound, out) or (bias is not None and not bias.constant):
        return None
    x, weight = arrays(bound, 2)
    windows, output = transpose_sizes(bound.attributes, x.shape[2:], weight.shape[2:])
    window, groups = kernel_window(windows), bound.attributes["group"]
    packed = packed_weight(backend, bound, groups, "transposed")
    if packed is None or min(window.pads) < 0:
        return None
    run = convolution(bound, square(x).shape, two(output, 1), window)(packed)
    return partial(run, x, None, out.value())


def counts(windows: Windows, spatial: tuple[int, ...], include: bool) -> cpu_nets.Counts:
    """Return how many positions of each window count, per row and per column."""
    found = []
    for axis, length in enumerate(spatial):
        low = -windows.begin[axis] if include else 0
        high = length + windows.end[axis] if include else length
        start = np.arange(windows.output[axis]) * windows.strides[axis] - windows.begin[axis]
        places = start[:, None] + np.arange(windows.kernel[axis]) * windows.dilations[axis]
        held = ((places >= low) & (places < high)).sum(axis=1)
        found.append(np.maximum(held, 1).astype(np.float32))
    rows, columns = found if len(found) == 2 else (np.ones(1, np.float32), found[0])
    return cpu_nets.Counts(rows, columns)


def bind_pool(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """MaxPool and AveragePool with one output."""
    out = bound.outputs[0]
    if len(bound.outputs) != 1 or not fits(bound, out):
        return None
    x = arrays(bound, 1)[0]
    attributes = bound.attributes
    windows = window_sizes(attributes, x.shape[2:], attributes["kernel_shape"])
    window = kernel_window(windows)
    if min(window.pads) < 0:
        return None
    held = None
    if bound.node.op == "AveragePool":
        held = counts(windows, x.shape[2:], bool(attributes["count_include_pad"]))
    size = two(windows.output, 1)
    target = square(out.value())
    return partial(cpu_nets.pool, square(x), window, size, held, target)


def bind_global_pool(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """GlobalAveragePool and GlobalMaxPool."""
    out, x = bound.outputs[0], bound.inputs[0]
    if x is None or not floats(x, out) or 0 in (x.shape or ()) or len(x.shape or ()) < 3:
        return None
    kind = "mean" if bound.node.op == "GlobalAveragePool" else "max"
    n = math.prod(x.value().shape[2:])
    return partial(cpu_nets.reduce_axis, x.value(), n, 1, kind, out.value())


def bind_instance_norm(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """InstanceNormalization."""
    out, x = bound.outputs[0], bound.inputs[0]
    if x is None or not floats(*bound.inputs, out) or 0 in (x.shape or ()):
        return None
    n = math.prod(x.value().shape[2:])
    data, scale, shift = arrays(bound, 3)
    epsilon = bound.attributes["epsilon"]
    return partial(
        cpu_nets.normalize, data, n, scale, shift, epsilon, cpu_nets.NO_ACTIVATION, out.value()
    )


def bind_batch_norm(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """BatchNormalization by given constant statistics."""
    out, x = bound.outputs[0], bound.inputs[0]
    if x is None or not floats(x, out) or bound.attributes["training_mode"]:
        return None
    held = [constant_at(bound, index) for index in range(1, 5)]
    if any(v is None or v.ndim != 1 for v in held) or len(x.shape or ()) < 2:
        return None
    scale, shift, mean, variance = (v.astype(np.float64) for v in held)
    factor = scale / np.sqrt(variance + bound.attributes["epsilon"])
    dims = (-1, *(1,) * (x.value().ndim - 2))
    factors = contiguous(factor.reshape(dims))
    shifts = contiguous((shift - mean * factor).reshape(dims))
    source, target = x.value(), out.value()

    def step() -> None:
        cpu_nets.binary("mul", source, factors, target)
        cpu_nets.binary("add", target, shifts, target)

    return step


def bind_fused_linear(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """FusedLinear: a packed product where the weight is float32, else Linear and then the rest."""
    made = bind_packed_linears(backend, bound)
    if made is not None:
        return made
    slot = bound.inputs[1]
    if slot is None or slot.tensor is None or not floats(bound.inputs[0], bound.outputs[0]):
        return None
    weight = backend.weight_of(bound, 1)
    bias = slot_at(bound, 2)
    if weight is None or (bias is not None and not floats(bias)):
        return None
    x, _, shift = arrays(bound, 3)
    out = bound.outputs[0].value()
    activation = kernel_activation(of_attributes(bound.attributes))
    compute: Any = backend.compute

    def step() -> None:
        cpu.linear(x, weight, shift, compute, out)
        cpu_nets.unary(out, activation, out)

    return step


def bind_packed_linears(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """Linear, FusedLinear and LinearGroup over float32 weights, in a graph without states."""
    count = bound.attributes.get("count", 1)
    has_states = bound.cache is not None and bool(bound.cache.buffers)
    if has_states or not floats(bound.inputs[0]):
        return None
    x = arrays(bound, 1)[0]
    products = [packed_product(backend, bound, x, index, count) for index in range(count)]
    ready = [product for product in products if product is not None]
    if len(ready) < count or x.size == 0:
        return None
    runs = [
        partial(product, x, None, slot.value())
        for product, slot in zip(ready, bound.outputs, strict=True)
    ]

    def step() -> None:
        for run in runs:
            run()

    return runs[0] if count == 1 else step


def packed_product(
    backend: CpuBackend, bound: BoundNode, x: Any, index: int, count: int
) -> cpu_nets.Product | None:
    """Return the product with one weight of a node, None where it is not float32."""
    slot, bias, out = (
        bound.inputs[1 + index],
        slot_at(bound, 1 + count + index),
        bound.outputs[index],
    )
    if slot is None or slot.tensor is None or slot.tensor.encoding.name != "float32":
        return None
    if not floats(out) or 0 in (out.shape or ()) or x.shape[-1] == 0:
        return None
    if bias is not None and not (floats(bias) and bias.constant):
        return None
    tensor = slot.tensor
    packed = backend.packed.get(
        tensor, "rows", lambda: cpu_nets.PackedMatrix(contiguous(tensor.numpy()), True)
    )
    activation = cpu_nets.NO_ACTIVATION
    if "activation" in bound.attributes:
        activation = kernel_activation(of_attributes(bound.attributes))
    shift = None if bias is None else contiguous(bias.value()).reshape(-1)
    rows = x.size // packed.k
    return cpu_nets.Product(
        rows, packed.n, packed.k, packed=packed, bias=shift, activation=activation
    )


BINDERS: dict[str, Callable[[Any, BoundNode], Step | None]] = {
    "AveragePool": bind_pool,
    "BatchNormalization": bind_batch_norm,
    "Conv": bind_conv,
    "ConvTranspose": bind_transposed,
    "GlobalAveragePool": bind_global_pool,
    "GlobalMaxPool": bind_global_pool,
    "InstanceNormalization": bind_instance_norm,
    "MaxPool": bind_pool,
    "halfbyte.FusedConv": bind_conv,
    "halfbyte.FusedLinear": bind_fused_linear,
}
