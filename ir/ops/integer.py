"""Operators on quantized activations with integer sums: what `fuse_integer` puts into a session.

A quantized value stands for (byte - zero) * scale. Each operator computes in real numbers

    y = clip(f(x), minimum, maximum)

and gives float32, or with y_scale and y_zero bytes: saturate(round_half_even(y / y_scale) +
y_zero). Weights have one scale and zero point, or one for each output channel; bias is float32 in
real units, or int32 in units of x_scale * w_scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.ir.dtypes import dtype_of
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.convolution import CONV_ATTRIBUTES, conv_dims, integer_sums
from halfbyte.ir.ops.integer_matmul import centred, product_shape
from halfbyte.ir.ops.quantization import rounded_to
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    as_array,
    broadcast,
    generator,
    input_at,
    required_input,
)

CLIP = {"minimum": Attribute("float", -np.inf), "maximum": Attribute("float", np.inf)}


def optional(inputs: Sequence[Any], index: int) -> Array | None:
    """Return an input that may be omitted."""
    given = inputs[index] if index < len(inputs) else None
    return None if given is None else as_array(given)


def finished(
    values: Array, attributes: Mapping[str, Any], scale: Array | None, zero: Array | None
) -> list[Array]:
    """Return real values clipped, and quantized where a scale is given."""
    clipped = np.clip(values, attributes["minimum"], attributes["maximum"])
    if scale is None:
        return [clipped.astype(np.float32)]
    assert zero is not None
    steps = clipped / scale.astype(np.float64).reshape(())
    return [rounded_to(steps, zero.reshape(()), dtype_of(zero))]


def scaled_sums(
    sums: Array, scale: tuple[Array, Array], bias: Array | None, column: tuple[int, ...]
) -> Array:
    """Return integer sums in real units, bias added; column: the shape of channel factors."""
    step = scale[0].astype(np.float64).reshape(()) * scale[1].astype(np.float64).reshape(column)
    if bias is None:
        return np.asarray(sums * step)
    held = bias.astype(np.float64).reshape(column)
    if bias.dtype.kind == "i":
        return np.asarray((sums + held) * step)
    return np.asarray(sums * step + held)


def evaluate_conv(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate IntegerConv: exact sums, then one scaling."""
    x, weight, x_scale, x_zero, w_scale = map(as_array, inputs[:5])
    w_zero, bias, y_scale, y_zero = (optional(inputs, i) for i in range(5, 9))
    sums = integer_sums(x, weight, (x_zero, w_zero), attributes)
    column = (-1, *(1,) * (x.ndim - 2))
    values = scaled_sums(sums, (x_scale, w_scale), bias, column)
    return finished(values, attributes, y_scale, y_zero)


def evaluate_matmul(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate IntegerMatMul: exact sums, then one scaling."""
    a, b, a_scale, a_zero, b_scale = map(as_array, inputs[:5])
    b_zero, bias, y_scale, y_zero = (optional(inputs, i) for i in range(5, 9))
    left = centred(a, a_zero.astype(np.float64).reshape(()))
    right = centred(b, None if b_zero is None else b_zero.astype(np.float64).reshape(-1))
    values = scaled_sums(np.matmul(left, right), (a_scale, b_scale), bias, (-1,))
    return finished(values, attributes, y_scale, y_zero)


def evaluate_add(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate IntegerAdd: the sum of two quantized values, quantized."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = map(as_array, inputs)
    left = centred(a, a_zero.astype(np.float64)) * a_scale.astype(np.float64)
    right = centred(b, b_zero.astype(np.float64)) * b_scale.astype(np.float64)
    return finished(left + right, attributes, y_scale, y_zero)


def evaluate_lookup(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate IntegerLookup: entry i of a table is of the byte that lies as i."""
    x, table = as_array(inputs[0]), as_array(inputs[1])
    places = np.ascontiguousarray(x).view(np.uint8)
    if table.ndim == 1:
        return [table[places]]
    return [table[np.arange(len(table)), places]]


def rounded_state(h: Array) -> tuple[Array, np.float32]:
    """Return a hidden state as whole numbers on the scale of its range, and the scale.

    As DynamicQuantizeLinear: uint8, the range includes 0. The zero point is taken off.
    """
    low, high = (np.float32(edge) for edge in (min(h.min(), 0), max(h.max(), 0)))
    scale = np.float32((high - low) / np.float32(255))
    if not scale:
        return np.zeros_like(h, np.float64), scale
    zero = np.clip(np.rint(-low / scale), 0, 255)
    codes = np.clip(np.rint(h / scale) + zero, 0, 255)
    return np.asarray(codes - zero, np.float64), scale


def logistic(x: Array) -> Array:
    """Return 1 / (1 + exp(-x))."""
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def evaluate_lstm(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate IntegerLSTM: the hidden state is rounded to bytes anew in every step."""
    share, h, c, weight, scale = map(as_array, inputs[:5])
    zero = optional(inputs, 5)
    moved = centred(weight, None if zero is None else zero.astype(np.float64).reshape(-1))
    results = np.zeros((len(share), *h.shape), np.float32)
    order = range(len(share))
    for step in reversed(order) if attributes["reverse"] else order:
        codes, unit = rounded_state(h)
        held = (codes @ moved) * (unit * scale.reshape(-1)).astype(np.float64)
        i, o, f, fresh = np.split(share[step].astype(np.float64) + held, 4, axis=-1)
        c = (logistic(f) * c + logistic(i) * np.tanh(fresh)).astype(np.float32)
        h = (logistic(o) * np.tanh(c)).astype(np.float32)
        results[step] = h
    return [h.copy(), c.copy(), results]


def result_dtype(node: Node, zero: int) -> str | None:
    """Return the dtype of the zero point at input `zero`; float32 without one."""
    value = input_at(node, zero)
    return "float32" if value is None else value.dtype


def infer_conv(node: Node) -> list[ValueType]:
    """Infer: the shape of a convolution."""
    return [ValueType(result_dtype(node, 8), conv_dims(node, 0, 1))]


def infer_matmul(node: Node) -> list[ValueType]:
    """Infer: the shape of a matrix product."""
    return [ValueType(result_dtype(node, 8), product_shape(node, 0, 1))]


def infer_lookup(node: Node) -> list[ValueType]:
    """Infer: the shape of the bytes, the dtype of the table."""
    return [ValueType(required_input(node, 1).dtype, required_input(node, 0).shape)]


def infer_lstm(node: Node) -> list[ValueType]:
    """Infer: the states' shape twice, then with the steps before it."""
    share, state = required_input(node, 0).shape, required_input(node, 1).shape
    whole = None if share is None or state is None else (share[0], *state)
    return [ValueType("float32", shape) for shape in (state, state, whole)]


def infer_add(node: Node) -> list[ValueType]:
    """Infer: both shapes broadcast."""
    shapes = [required_input(node, i).shape for i in (0, 3)]
    return [ValueType(result_dtype(node, 7), broadcast(node, shapes))]


def numbers(seed: int, dtype: str, *shape: int) -> Array:
    """Return bytes from the whole range."""
    info = np.iinfo(dtype)
    return generator(seed).integers(info.min, info.max + 1, shape).astype(dtype)


def scale_of(*values: float) -> Array:
    """Return one scale, or one for each channel."""
    return np.asarray(values if len(values) > 1 else values[0], np.float32)


def conv_cases() -> list[Case]:
    """Return float and byte results, scales per channel, groups, both biases."""
    x, weight = numbers(800, "uint8", 1, 4, 7, 6), numbers(801, "int8", 6, 4, 3, 3)
    zero, scale = np.asarray(120, np.uint8), scale_of(0.02)
    each = scale_of(*(0.01 * np.arange(1, 7)))
    whole = np.arange(-300, 300, 100, dtype=np.int32)
    signed = numbers(802, "int8", 2, 6, 5, 5)
    own = numbers(803, "int8", 6, 1, 3, 3)
    pads = {"pads": [1, 0, 2, 1]}
    finish = [scale_of(1.5), np.asarray(3, np.int8)]
    return [
        Case("float", [x, weight, scale, zero, each, None, each], pads),
        Case("bytes", [x, weight, scale, zero, each, None, whole, scale_of(3.0), zero], pads),
        Case(
            "depthwise",
            [signed, own, scale, np.asarray(-5, np.int8), scale, None, None, *finish],
            {"group": 6, "strides": [2, 1], "minimum": 0.0, "maximum": 60.0},
        ),
    ]


def matmul_cases() -> list[Case]:
    """Return float and byte results of a batch of rows."""
    a, b = numbers(810, "uint8", 2, 5, 33), numbers(811, "int8", 33, 7)
    zero, each = np.asarray(100, np.uint8), scale_of(*(0.01 * np.arange(1, 8)))
    signed = numbers(812, "int8", 3, 33)
    lifted = np.arange(-3, 4, dtype=np.int8)
    finish = [scale_of(0.4), np.asarray(-4, np.int8)]
    return [
        Case("float", [a, b, scale_of(0.01), zero, each, None, each]),
        Case(
            "bytes",
            [signed, b, scale_of(0.01), np.asarray(9, np.int8), each, lifted, None, *finish],
            {"minimum": 0.0},
        ),
    ]


def add_cases() -> list[Case]:
    """Return a sum of equal shapes, and with one row."""
    a, b = numbers(820, "uint8", 3, 17), numbers(821, "int8", 3, 17)
    first = [a, scale_of(0.5), np.asarray(7, np.uint8)]
    second = [b, scale_of(0.25), np.asarray(-3, np.int8)]
    finish = [scale_of(0.7), np.asarray(20, np.uint8)]
    row = [numbers(822, "int8", 17), *second[1:]]
    return [
        Case("bytes", [*first, *second, *finish], {"minimum": 0.0}),
        Case("row", [*first, *row, *finish]),
    ]


def lookup_cases() -> list[Case]:
    """Return one table, and one for each channel, of bytes and of floats."""
    signed, table = numbers(830, "int8", 2, 3, 5), numbers(831, "uint8", 256)
    each = numbers(832, "int8", 5, 256)
    real = numbers(833, "int8", 256).astype(np.float32)
    x = numbers(834, "uint8", 7, 5)
    return [
        Case("bytes", [signed, table]),
        Case("channels", [x, each]),
        Case("floats", [x, real]),
        Case("channels_floats", [signed, each.astype(np.float32)]),
    ]


def lstm_cases() -> list[Case]:
    """Return both directions, one scale and one a column, from zero and other states."""
    share = generator(840).standard_normal((3, 2, 20)).astype(np.float32)
    state = generator(841).standard_normal((2, 2, 5)).astype(np.float32)
    weight, none = numbers(842, "int8", 5, 20), np.zeros((2, 5), np.float32)
    each = scale_of(*(0.001 * np.arange(1, 21)))
    lifted = np.arange(-10, 10, dtype=np.int8)
    return [
        Case("zero_state", [share, none, none, weight, scale_of(0.01)], outputs=3),
        Case("reverse", [share, *state, weight, each, lifted], {"reverse": 1}, outputs=3),
    ]


SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "IntegerConv",
        (1,),
        ("X", "W", "x_scale", "x_zero", "w_scale", "w_zero?", "bias?", "y_scale?", "y_zero?"),
        ("Y",),
        infer=infer_conv,
        evaluate=evaluate_conv,
        attributes=CONV_ATTRIBUTES | CLIP,
        domain="halfbyte",
        cases=conv_cases,
    ),
    OpSpec(
        "IntegerMatMul",
        (1,),
        ("A", "B", "a_scale", "a_zero", "b_scale", "b_zero?", "bias?", "y_scale?", "y_zero?"),
        ("Y",),
        infer=infer_matmul,
        evaluate=evaluate_matmul,
        attributes=CLIP,
        domain="halfbyte",
        cases=matmul_cases,
    ),
    OpSpec(
        "IntegerAdd",
        (1,),
        ("A", "a_scale", "a_zero", "B", "b_scale", "b_zero", "y_scale", "y_zero"),
        ("Y",),
        infer=infer_add,
        evaluate=evaluate_add,
        attributes=CLIP,
        domain="halfbyte",
        cases=add_cases,
    ),
    OpSpec(
        "IntegerLookup",
        (1,),
        ("X", "table"),
        ("Y",),
        infer=infer_lookup,
        evaluate=evaluate_lookup,
        domain="halfbyte",
        cases=lookup_cases,
    ),
    OpSpec(
        "IntegerLSTM",
        (1,),
        ("share", "h", "c", "R", "r_scale", "r_zero?"),
        ("Y_h", "Y_c", "Y"),
        infer=infer_lstm,
        evaluate=evaluate_lstm,
        attributes={"reverse": Attribute("int", 0)},
        domain="halfbyte",
        cases=lstm_cases,
    ),
)
