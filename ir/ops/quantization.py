"""Linear quantization: one scale for a tensor, for each index of an axis, or for each block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import (
    INTEGERS,
    NARROW_FLOATS,
    NARROW_INTEGERS,
    dtype_name,
    dtype_of,
    numpy_dtype,
)
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.cast import cast
from halfbyte.ir.ops.numerics import quiet, widened
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    common_dtype,
    input_at,
    normal,
    required_input,
)

VERSIONS = (10, 13, 19, 21, 23, 24, 25, 28)
SCALE_POWERS = "float8_e8m0fnu"


def spread(values: Array, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """Return scales or offsets in a shape that broadcasts to that of the data.

    A scalar or one element is for all, a vector for the indexes of the axis; otherwise one for
    each `block` elements along the axis.

    Raises:
        GraphError: the shapes do not agree.
    """
    if values.size == 1 and (values.ndim < 2 or not block):
        return values.reshape(())
    axis = axis % len(shape)
    if values.ndim == 1 and not block:
        if values.size != shape[axis]:
            found = f"{values.size} scales for {shape[axis]} indexes of axis {axis}"
            raise GraphError("QuantizeLinear", f"{found}; give one for each")
        return values.reshape(-1, *(1,) * (len(shape) - axis - 1))
    blocks = values.shape[axis] if values.ndim == len(shape) else -1
    if block <= 0 or not (blocks - 1) * block < max(shape[axis], 1) <= blocks * block:
        found = f"scales of shape {values.shape} in blocks of {block} for data of shape {shape}"
        raise GraphError("QuantizeLinear", f"{found}; give one scale for each block of axis {axis}")
    whole = np.repeat(values, block, axis)
    return whole[(slice(None),) * axis + (slice(shape[axis]),)]


def integer_range(name: str) -> tuple[int, int]:
    """Return the smallest and the largest number of an integer type."""
    bits = int(name.partition("int")[2])
    return (0, 2**bits - 1) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def rounded_to(values: Array, zero: Array | None, to: str, saturate: bool = True) -> Array:
    """Return scaled values as a quantized type: nearest, halves to even, limited to its range."""
    if to not in INTEGERS:
        shifted = values if zero is None else values + zero.astype(np.float32)
        return cast(shifted, to, saturate)
    wide: Array = np.rint(widened(values))
    if zero is not None:
        wide = wide + zero.astype(wide.dtype)
    low, high = integer_range(to)
    # fmax takes the number beside a NaN, whose conversion would depend on the machine
    limited: Array = np.fmin(np.fmax(wide, low), high)
    whole = limited.astype(np.int8) if to in NARROW_INTEGERS else limited
    return whole.astype(numpy_dtype(to))


@quiet
def evaluate_quantize(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate QuantizeLinear."""
    data, scale = (np.asarray(v) for v in inputs[:2])
    zero = inputs[2] if len(inputs) > 2 else None
    shape, axis, block = data.shape, attributes["axis"], attributes["block_size"]
    to = quantized_dtype(None if zero is None else dtype_of(zero), attributes["output_dtype"])
    precision = division_dtype(dtype_of(scale), attributes["precision"])
    steps = spread(scale, shape, axis, block).astype(precision)
    values = widened(data.astype(precision) / steps)
    offset = None if zero is None else spread(np.asarray(zero), shape, axis, block)
    return [rounded_to(values, offset, to, bool(attributes["saturate"]))]


def division_dtype(scale: str, precision: Any) -> np.dtype[Any]:
    """Return the dtype in which data is divided by scales."""
    if precision:
        return numpy_dtype(dtype_name(precision))
    return numpy_dtype("float32" if scale in (SCALE_POWERS, "int32") else scale)


def quantized_dtype(zero: str | None, asked: Any) -> str:
    """Return the dtype of quantized data: the zero point's, the one asked for, or uint8."""
    return zero or (dtype_name(asked) if asked else "uint8")


@quiet
def evaluate_dequantize(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate DequantizeLinear."""
    data, scale = (np.asarray(v) for v in inputs[:2])
    zero = inputs[2] if len(inputs) > 2 else None
    axis, block = attributes["axis"], attributes["block_size"]
    asked = attributes["output_dtype"]
    to = numpy_dtype(dtype_name(asked)) if asked else scale.dtype
    steps = spread(scale, data.shape, axis, block)
    exact = np.float64 if data.dtype.itemsize > 2 else np.float32
    values = data.astype(exact)
    if zero is not None:
        values = values - spread(np.asarray(zero), data.shape, axis, block).astype(exact)
    return [(values.astype(np.float32, copy=False) * steps.astype(np.float32)).astype(to)]


@quiet
def evaluate_dynamic(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate DynamicQuantizeLinear; data of zeros alone has scale 0."""
    data = np.asarray(inputs[0])
    low = np.minimum(data.min(initial=0), np.float32(0))
    high = np.maximum(data.max(initial=0), np.float32(0))
    scale = np.asarray((high - low) / np.float32(255), np.float32)
    divisor = scale if scale else np.ones((), np.float32)
    zero = np.asarray(np.clip(np.rint(-low / divisor), 0, 255), np.uint8)
    return [rounded_to(np.asarray(data / divisor), zero, "uint8"), scale, zero]


def infer_quantize(node: Node) -> list[ValueType]:
    """Infer: the zero point's dtype, the one asked for, or uint8."""
    zero, asked = input_at(node, 2), node.attributes.get("output_dtype")
    to = quantized_dtype(None if zero is None else zero.dtype, asked)
    if zero is not None and zero.dtype is None:
        return [ValueType(None, required_input(node, 0).shape)]
    if to not in INTEGERS and to not in NARROW_FLOATS:
        raise GraphError(node.label, f"quantizes to {to}; give an integer or a narrow float type")
    return [ValueType(to, required_input(node, 0).shape)]


def infer_dequantize(node: Node) -> list[ValueType]:
    """Infer: the dtype asked for, or the scale's."""
    asked = node.attributes.get("output_dtype")
    to = dtype_name(asked) if asked else common_dtype(node, [1])
    return [ValueType(to, required_input(node, 0).shape)]


def infer_dynamic(node: Node) -> list[ValueType]:
    """Infer: quantized data, one scale, one zero point."""
    shape = required_input(node, 0).shape
    return [ValueType("uint8", shape), ValueType("float32", ()), ValueType("uint8", ())]


def quantize_cases() -> list[Case]:
    """Return one scale, one per row, blocks."""
    a = normal(52, 4, 6)
    rows = np.asarray([0.01, 0.02, 0.03, 0.04], np.float32)
    return [
        Case("tensor", [a, np.asarray(0.02, np.float32), np.asarray(128, np.uint8)]),
        Case("axis", [a, rows, np.zeros(4, np.int8)], {"axis": 0}),
        Case("blocks", [a, np.full((4, 2), 0.02, np.float32)], {"axis": 1, "block_size": 3}),
    ]


def dequantize_cases() -> list[Case]:
    """Return one scale, one per row, blocks."""
    a = np.arange(-12, 12, dtype=np.int8).reshape(4, 6)
    rows = np.asarray([0.01, 0.02, 0.03, 0.04], np.float32)
    steps = np.arange(1, 9, dtype=np.float32).reshape(4, 2) / 8
    return [
        Case("tensor", [a, np.asarray(0.02, np.float32), np.asarray(3, np.int8)]),
        Case("axis", [a, rows], {"axis": 0}),
        Case("blocks", [a, steps, np.ones((4, 2), np.int8)], {"axis": 1, "block_size": 3}),
    ]


BLOCKS = {"axis": Attribute("int", 1), "block_size": Attribute("int", 0)}
OUTPUT = {"output_dtype": Attribute("dtype", 0)}
SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "QuantizeLinear",
        VERSIONS,
        ("x", "y_scale", "y_zero_point?"),
        ("y",),
        infer=infer_quantize,
        evaluate=evaluate_quantize,
        attributes={
            **BLOCKS,
            **OUTPUT,
            "saturate": Attribute("int", 1),
            "precision": Attribute("dtype", 0),
        },
        cases=quantize_cases,
    ),
    OpSpec(
        "DequantizeLinear",
        VERSIONS,
        ("x", "x_scale", "x_zero_point?"),
        ("y",),
        infer=infer_dequantize,
        evaluate=evaluate_dequantize,
        attributes=BLOCKS | OUTPUT,
        cases=dequantize_cases,
    ),
    OpSpec(
        "DynamicQuantizeLinear",
        (11,),
        ("x",),
        ("y", "y_scale", "y_zero_point"),
        infer=infer_dynamic,
        evaluate=evaluate_dynamic,
        cases=lambda: [Case("plain", [normal(53, 3, 4)], outputs=3)],
    ),
)
