"""QLinear operators: dequantize, compute, quantize, as the integer passes expect it."""

from __future__ import annotations

import numpy as np

from halfbyte.converters.onnx.contrib.fused import CONV, channels_first, channels_last, picked
from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.ir.dtypes import numpy_dtype
from halfbyte.ir.graph import Graph, Node, Value

FIRST_PLAIN_SOFTMAX = 13
POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")


def lower(graph: Graph, node: Node) -> None:
    """Replace one of the family.

    Raises:
        UnsupportedError: a rank is needed and unknown.
    """
    at = Lowering(graph, node)
    op = node.op.removeprefix("QLinear")
    if node.op in ("QuantizeLinear", "DequantizeLinear"):
        inputs = [at.need(0), at.need(1), at.given(2)]
        at.finish(at.add(node.op, *inputs, axis=at.option("axis")))
    elif op == "Conv":
        at.finish(convolution(at))
    elif op in ("Add", "Mul"):
        result = at.add(op, values(at, 0), values(at, 3))
        at.finish(codes(at, result, at.need(6), at.given(7), at.need(0)))
    elif op == "Concat":
        at.finish(concatenation(at))
    elif op == "Where":
        result = at.add("Where", at.need(0), values(at, 1), values(at, 4))
        at.finish(codes(at, result, at.need(7), at.given(8), at.need(1)))
    else:
        result = unary(at, op, values(at, 0))
        at.finish(codes(at, result, at.need(3), at.given(4), at.need(0)))


def values(at: Lowering, index: int) -> Value:
    """Return the values of codes whose scale and zero point are the next two inputs."""
    return at.add("DequantizeLinear", at.need(index), at.need(index + 1), at.given(index + 2))


def codes(at: Lowering, value: Value, scale: Value, zero: Value | None, like: Value) -> Value:
    """Return the codes of values; without a zero point it is 0 in the type of `like`."""
    if zero is None:
        zero = at.array(np.zeros((), numpy_dtype(like.dtype or "uint8")), "zero")
    return at.add("QuantizeLinear", value, scale, zero)


def unary(at: Lowering, op: str, value: Value) -> Value:
    """Return the operator of one input."""
    if op == "LeakyRelu":
        return at.add(op, value, alpha=float(at.option("alpha", 0.01)))
    if op == "ReduceMean":
        axes = at.ints(*at.required("axes"))
        return at.add(op, value, axes, keepdims=int(at.required("keepdims")))
    if op == "Softmax":
        return softmax(at, value)
    if op in ("AveragePool", "GlobalAveragePool"):
        last = bool(at.option("channels_last", 0))
        first = channels_first(at, value) if last else value
        result = at.add(op, first, **(picked(at, POOL) if op == "AveragePool" else {}))
        return channels_last(at, result) if last else result
    return at.add(op, value)


def softmax(at: Lowering, value: Value) -> Value:
    """Return Softmax; before opset 13 over all axes from `axis` on together."""
    if int(at.required("opset")) >= FIRST_PLAIN_SOFTMAX:
        return at.add("Softmax", value, axis=int(at.option("axis", -1)))
    axis = int(at.option("axis", 1))
    flat = at.add("Softmax", at.add("Flatten", value, axis=axis), axis=-1)
    return at.add("Reshape", flat, at.add("Shape", value))


def concatenation(at: Lowering) -> Value:
    """Return the joined codes on the output's scale."""
    count = (len(at.node.inputs) - 2) // 3
    pieces = [values(at, 2 + 3 * i) for i in range(count)]
    joined = at.add("Concat", *pieces, axis=int(at.required("axis")))
    return codes(at, joined, at.need(0), at.given(1), at.need(2))


def convolution(at: Lowering) -> Value:
    """Return ai.onnx's QLinearConv, with channels moved where they are last."""
    last = bool(at.option("channels_last", 0))
    data = channels_first(at, at.need(0)) if last else at.need(0)
    inputs = [data, *(at.need(i) for i in range(1, 8)), at.given(8)]
    result = at.add("QLinearConv", *inputs, **picked(at, CONV))
    return channels_last(at, result) if last else result
