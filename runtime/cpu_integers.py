"""Binders of the CPU for quantized activations: integer products, convolutions, quantization.

Scales and zero points are read when a step runs, since dynamic quantization computes them; where
all are constant, what follows from them is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.ops.sliding_windows import window_sizes
from halfbyte.kernels import cpu_integers as kernels
from halfbyte.kernels.cpu_integers import Finish
from halfbyte.runtime.backend import BoundNode, Slot, Step
from halfbyte.runtime.cpu_slots import Packed, constant_at, floats, slot_at

BYTES = ("uint8", "int8")
OUTPUTS = (*BYTES, "float32", "int32")
Limits = tuple[float, float]
UNLIMITED: Limits = (-np.inf, np.inf)
# Places of an operator's inputs, by what they mean.
FUSED = ("x", "weight", "x_scale", "x_zero", "w_scale", "w_zero", "bias", "y_scale", "y_zero")
QLINEAR = ("x", "x_scale", "x_zero", "weight", "w_scale", "w_zero", "y_scale", "y_zero", "bias")
PLAIN = ("x", "weight", "x_zero", "w_zero")


class HasPacked(Protocol):
    """The backend, as far as these binders need it."""

    packed: Packed


class Kernel(Protocol):
    """A product or convolution over constant weights."""

    def prepare(
        self,
        x: Any,
        x_zero: int,
        finish: Finish,
        out: NDArray[Any],
        bias: NDArray[np.int32] | None = None,
    ) -> Step:
        """Return what computes `out` from bytes."""


@dataclass(frozen=True)
class Operands:
    """The slots of an integer product by meaning, and the number of output channels."""

    slots: Mapping[str, Slot | None]
    channels: int
    limits: Limits
    held: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def array(self, name: str) -> Any:
        """Return an input's values now, None where it is omitted."""
        slot = self.slots.get(name)
        return None if slot is None else slot.array

    def number(self, name: str, default: float) -> Any:
        """Return a scalar input's value now."""
        found = self.array(name)
        return default if found is None else np.asarray(found).reshape(-1)[0]

    @property
    def fixed(self) -> bool:
        """Whether nothing but the activations changes from run to run."""
        others = (slot for name, slot in self.slots.items() if name != "x")
        return all(slot is None or slot.constant for slot in others)

    def finish(self) -> tuple[int, Finish, NDArray[np.int32] | None]:
        """Return the zero point of x, how sums become results, and the bias of the sums."""
        step = np.float32(self.number("x_scale", 1.0)) * self._each("w_scale", 1.0)
        bias = self.array("bias")
        whole = bias if bias is not None and bias.dtype == np.int32 else None
        shift = None if bias is None or whole is not None else self._each("bias", 0.0)
        limits, zero = self.limits, 0
        if self.slots.get("y_zero") is not None:
            unit = np.float32(self.number("y_scale", 1.0))
            step = step / unit
            shift = None if shift is None else shift / unit
            limits = (limits[0] / float(unit), limits[1] / float(unit))
            zero = int(self.number("y_zero", 0))
        return int(self.number("x_zero", 0)), Finish(step, shift, limits, zero), whole

    def _each(self, name: str, default: float) -> NDArray[np.float32]:
        slot = self.slots.get(name)
        if slot is not None and not slot.constant:
            return self._spread(name, default)
        if name not in self.held:
            self.held[name] = self._spread(name, default)
        return self.held[name]

    def _spread(self, name: str, default: float) -> NDArray[np.float32]:
        found = self.array(name)
        values = np.float32(default) if found is None else np.asarray(found, np.float32).reshape(-1)
        return np.ascontiguousarray(np.broadcast_to(values, (self.channels,)))


def operands_of(bound: BoundNode, places: tuple[str, ...], channels: int) -> Operands:
    """Return the inputs of a node by meaning."""
    slots = {name: slot_at(bound, index) for index, name in enumerate(places)}
    low, high = (bound.attributes.get(name) for name in ("minimum", "maximum"))
    limits = UNLIMITED if low is None or high is None else (float(low), float(high))
    return Operands(slots, channels, limits)


def signed_weight(bound: BoundNode, index: int, zero_index: int) -> tuple[Any, Any]:
    """Return (int8 weight, int32 zero points or None); (None, None) where they are computed."""
    weight, slot = constant_at(bound, index), slot_at(bound, zero_index)
    zero = constant_at(bound, zero_index)
    unknown = slot is not None and zero is None
    if weight is None or unknown or weight.dtype.name not in BYTES:
        return None, None
    whole = None if zero is None else np.asarray(zero).astype(np.int32).reshape(-1)
    if weight.dtype == np.uint8:
        moved = (weight ^ np.uint8(0x80)).view(np.int8)
        return moved, (np.zeros(1, np.int32) if whole is None else whole) - 128
    return weight, whole


def spread_zero(zero: Any, channels: int) -> Any:
    """Return one zero point per output channel."""
    return None if zero is None else np.broadcast_to(zero, (channels,)).astype(np.int32)


def product_step(kernel: Kernel, operands: Operands, x: Slot, shape: Any, out: Any) -> Step:
    """Return the step that runs a kernel on x in `shape`."""
    made = operands.finish() if operands.fixed else None

    if made is not None and x.static:
        return kernel.prepare(x.value().reshape(shape), made[0], made[1], out, made[2])

    def step() -> None:
        zero, finish, bias = operands.finish()
        kernel.prepare(np.ascontiguousarray(x.value()).reshape(shape), zero, finish, out, bias)()

    return step


def square(values: Any) -> Any:
    """Return sizes of a 1-D convolution as those of a 2-D one."""
    return (*values[:2], 1, *values[2:]) if len(values) == 3 else tuple(values)


def conv_geometry(bound: BoundNode, x: Any, weight: Any) -> kernels.Geometry | None:
    """Return strides, dilations and pads of a convolution, None where a pad is negative."""
    windows = window_sizes(bound.attributes, x[2:], weight[2:])
    if min(*windows.begin, *windows.end, 0) < 0 or len(x) not in (3, 4):
        return None
    lead = (1,) if len(x) == 3 else ()
    none = (0,) if len(x) == 3 else ()
    strides: Any = (*lead, *windows.strides)
    dilations: Any = (*lead, *windows.dilations)
    pads: Any = (*none, *windows.begin)
    return kernels.Geometry(strides, dilations, pads, int(bound.attributes["group"]))


def bind_conv(places: tuple[str, ...]) -> Callable[[HasPacked, BoundNode], Step | None]:
    """Return the binder of a convolution whose inputs stand at `places`."""

    def bind(backend: HasPacked, bound: BoundNode) -> Step | None:
        at, out = {name: i for i, name in enumerate(places)}, bound.outputs[0].value()
        x = slot_at(bound, at["x"])
        weight, zero = signed_weight(bound, at["weight"], at["w_zero"])
        if x is None or x.dtype not in BYTES or weight is None or x.shape is None:
            return None
        if out.dtype.name not in OUTPUTS or not out.size:
            return None
        geometry = conv_geometry(bound, x.shape, weight.shape)
        if geometry is None:
            return None
        channels = len(weight)
        kernel = backend.packed.get(
            constant_at(bound, at["weight"]),
            ("byte_conv", geometry, None if zero is None else zero.tobytes()),
            lambda: kernels.ByteConvolution(
                np.ascontiguousarray(weight.reshape(square(weight.shape))),
                geometry,
                spread_zero(zero, channels),
            ),
        )
        operands = operands_of(bound, places, channels)
        return product_step(kernel, operands, x, square(x.shape), out.reshape(square(out.shape)))

    return bind


def bind_product(places: tuple[str, ...]) -> Callable[[HasPacked, BoundNode], Step | None]:
    """Return the binder of a product with a constant matrix [k, n]."""

    def bind(backend: HasPacked, bound: BoundNode) -> Step | None:
        at, out = {name: i for i, name in enumerate(places)}, bound.outputs[0].value()
        x, zero_slot = slot_at(bound, at["x"]), slot_at(bound, at["x_zero"])
        weight, zero = signed_weight(bound, at["weight"], at["w_zero"])
        single = zero_slot is None or zero_slot.shape in ((), (1,))
        if x is None or x.dtype not in BYTES or weight is None or weight.ndim != 2 or not single:
            return None
        if not x.shape or out.dtype.name not in OUTPUTS or not out.size:
            return None
        channels = weight.shape[1]
        kernel = backend.packed.get(
            constant_at(bound, at["weight"]),
            ("byte_product", None if zero is None else zero.tobytes()),
            lambda: kernels.ByteProduct(
                np.ascontiguousarray(weight), False, spread_zero(zero, channels)
            ),
        )
        operands = operands_of(bound, places, channels)
        lead = x.shape if len(x.shape) > 1 else (1, *x.shape)
        return product_step(kernel, operands, x, lead, out.reshape(*lead[:-1], channels))

    return bind


def bind_add(backend: HasPacked, bound: BoundNode) -> Step | None:
    """IntegerAdd of equal shapes, or of a value and one row, with constant scales."""
    a, b, out = slot_at(bound, 0), slot_at(bound, 3), bound.outputs[0].value()
    numbers = [constant_at(bound, i) for i in (1, 2, 4, 5, 6, 7)]
    if a is None or b is None or any(n is None for n in numbers) or not a.shape or not b.shape:
        return None
    row = len(b.shape) <= len(a.shape) and math.prod(b.shape) == b.shape[-1] == a.shape[-1]
    if a.shape != b.shape and not row:
        return None
    if {a.dtype, b.dtype, out.dtype.name} - set(BYTES) or any(n.size != 1 for n in numbers):
        return None
    plain = [n.reshape(-1)[0] for n in numbers]
    scales = float(plain[0]), float(plain[2]), float(plain[4])
    zeros = int(plain[1]), int(plain[3]), int(plain[5])
    limits = float(bound.attributes["minimum"]), float(bound.attributes["maximum"])
    return partial(kernels.add, a.value(), b.value(), scales, zeros, limits, out)


def scalar_slots(bound: BoundNode) -> tuple[Slot, Slot | None] | None:
    """Return the slots of scale and zero point of one number each, None for vectors."""
    scale, zero = slot_at(bound, 1), slot_at(bound, 2)
    if scale is None or scale.dtype != "float32" or scale.shape not in ((), (1,)):
        return None
    if zero is not None and zero.shape not in ((), (1,)):
        return None
    return scale, zero


def number(slot: Slot | None) -> Any:
    """Return the value of a scalar slot now, 0 without one."""
    return 0 if slot is None else slot.value().reshape(-1)[0]


def bind_quantize(backend: HasPacked, bound: BoundNode) -> Step | None:
    """QuantizeLinear of float32 to bytes with one scale."""
    x, out, scalars = slot_at(bound, 0), bound.outputs[0].value(), scalar_slots(bound)
    if scalars is None or not floats(x) or x is None or out.dtype.name not in BYTES:
        return None
    scale, zero = scalars
    if scale.constant and (zero is None or zero.constant) and x.static:
        call = kernels.prepared_quantize(x.value(), float(number(scale)), int(number(zero)), out)
        return call
    return lambda: kernels.quantize(x.value(), float(number(scale)), int(number(zero)), out)


def bind_dequantize(backend: HasPacked, bound: BoundNode) -> Step | None:
    """DequantizeLinear of bytes to float32 with one scale."""
    x, out, scalars = slot_at(bound, 0), bound.outputs[0], scalar_slots(bound)
    if scalars is None or x is None or x.dtype not in BYTES or not floats(out):
        return None
    scale, zero = scalars
    target = out.value()
    if scale.constant and (zero is None or zero.constant) and x.static:
        place = float(number(scale)), int(number(zero))
        return kernels.prepared_dequantize(x.value(), *place, target)
    return lambda: kernels.dequantize(x.value(), float(number(scale)), int(number(zero)), target)


def bind_dynamic(backend: HasPacked, bound: BoundNode) -> Step | None:
    """DynamicQuantizeLinear: the range of the values, 0 included, decides scale and zero point."""
    x = slot_at(bound, 0)
    if not floats(x) or x is None or len(bound.outputs) != 3 or not x.value().size:
        return None
    out, scale, zero = (slot.value() for slot in bound.outputs)

    def step() -> None:
        low, high = kernels.value_range(x.value())
        unit = (np.float32(high) - np.float32(low)) / np.float32(255)
        place = np.rint(np.float32(-low) / unit) if unit else np.float32(0)
        scale[...] = unit
        zero[...] = min(max(place, 0), 255)
        if unit:
            kernels.quantize(x.value(), float(unit), int(zero), out)
        else:
            out[...] = 0

    return step


def bind_look_up(backend: HasPacked, bound: BoundNode) -> Step | None:
    """IntegerLookup in constant tables of bytes or float32."""
    x, table, out = slot_at(bound, 0), constant_at(bound, 1), bound.outputs[0].value()
    if x is None or x.dtype not in BYTES or table is None or out.dtype != table.dtype:
        return None
    if table.dtype.name not in (*BYTES, "float32"):
        return None
    held = np.ascontiguousarray(table)
    return lambda: kernels.look_up(held, x.value(), out)


def bind_lstm(backend: HasPacked, bound: BoundNode) -> Step | None:
    """IntegerLSTM with constant weights."""
    share, first_h, first_c = (slot_at(bound, index) for index in range(3))
    weight, zero = signed_weight(bound, 3, 5)
    scale = constant_at(bound, 4)
    if weight is None or scale is None or not floats(share, first_h, first_c):
        return None
    assert share is not None and first_h is not None and first_c is not None
    wide = weight.shape[1]
    factors = np.ascontiguousarray(np.broadcast_to(scale.reshape(-1), (wide,)), np.float32)
    kernel = kernels.ByteRecurrence(weight, factors, spread_zero(zero, wide))
    h, c, y = (slot.value() for slot in bound.outputs)
    reverse = bool(bound.attributes["reverse"])

    def step() -> None:
        h[...], c[...] = first_h.value(), first_c.value()
        kernel(share.value(), h, c, y, reverse)

    return step


BINDERS: dict[str, Callable[[Any, BoundNode], Step | None]] = {
    "DequantizeLinear": bind_dequantize,
    "DynamicQuantizeLinear": bind_dynamic,
    "ConvInteger": bind_conv(PLAIN),
    "MatMulInteger": bind_product(PLAIN),
    "QLinearConv": bind_conv(QLINEAR),
    "QLinearMatMul": bind_product(QLINEAR),
    "QuantizeLinear": bind_quantize,
    "halfbyte.IntegerAdd": bind_add,
    "halfbyte.IntegerConv": bind_conv(FUSED),
    "halfbyte.IntegerLookup": bind_look_up,
    "halfbyte.IntegerLSTM": bind_lstm,
    "halfbyte.IntegerMatMul": bind_product(FUSED),
}
