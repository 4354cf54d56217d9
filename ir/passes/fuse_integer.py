"""Quantized activations meet quantized weights in integers.

    DequantizeLinear -> Conv, MatMul, Gemm, Linear (+ bias) -> Relu or Clip -> QuantizeLinear
    MatMulInteger or ConvInteger -> Cast -> Mul by scales (-> Add bias)
    DequantizeLinear twice -> Add -> Relu or Clip -> QuantizeLinear

become halfbyte.IntegerConv, IntegerMatMul and IntegerAdd. Sums are exact there, so results differ
from the float form by its rounding only. Source: the QDQ form of onnxruntime's quantization guide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.spec import Array, input_at, known_array
from halfbyte.ir.passes.fusion import fuse
from halfbyte.ir.passes.quantized_values import (
    BYTES,
    Ending,
    Quantized,
    StoredBytes,
    affine_bytes,
    constant,
    dequantized,
    ending_of,
    is_scalar,
    only_use,
    stored_bytes,
    zero_of,
)

MAX_WEIGHT = 1 << 28
CONV_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def weight_values(graph: Graph, stored: StoredBytes) -> tuple[Value, Value, Value | None]:
    """Return constants for a weight, its scale and its zero point."""
    zero = None
    if stored.zero is not None and np.any(stored.zero):
        zero = constant(graph, np.ascontiguousarray(stored.zero), "weight_zero")
    data = constant(graph, np.ascontiguousarray(stored.data), "weight")
    return data, constant(graph, stored.scale, "weight_scale"), zero


def constant_bias(value: Value | None, channels: int) -> Array | None:
    """Return a constant bias in real units, one number for each channel; None where it is not.

    A bias stored as int32 is dequantized.
    """
    if value is None:
        return None
    node = value.producer
    if node is not None and node.op == "DequantizeLinear" and not node.domain:
        data, scale = (known_array(node.inputs[i], MAX_WEIGHT) for i in (0, 1))
        zero = known_array(input_at(node, 2), MAX_WEIGHT)
        if data is None or scale is None or (zero is not None and np.any(zero)):
            return None
        found: Array | None = data.astype(np.float32) * scale.astype(np.float32).reshape(-1)
    else:
        found = known_array(value, MAX_WEIGHT)
    if found is None or found.size != channels or found.dtype != np.float32:
        return None
    return found.reshape(-1)


def added_bias(graph: Graph, value: Value, channels: int, axis: int) -> tuple[Array, Node] | None:
    """Return the bias that the one reader of a value adds along `axis` (from the end), and it."""
    node = only_use(graph, value)
    if node is None or node.op != "Add" or node.domain or value.shape is None:
        return None
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    bias = constant_bias(other, channels)
    if bias is None or other is None or other.shape is None or len(other.shape) < axis:
        return None
    shape = tuple(dim for dim in other.shape if isinstance(dim, int))
    along = shape[len(shape) - axis] == channels
    return (bias, node) if along and len(shape) <= len(value.shape) else None


def finish(
    graph: Graph, nodes: Sequence[Node], op: str, inputs: Sequence[Value | None], end: Ending
) -> None:
    """Put the fused node where the last of `nodes`, and of what follows them, stands."""
    first = nodes[0]
    attributes = {
        name: first.attributes[name] for name in CONV_ATTRIBUTES & first.attributes.keys()
    }
    attributes |= {"minimum": float(end.limits[0]), "maximum": float(end.limits[1])}
    every = [*inputs, end.scale, end.zero]
    while every[-1] is None:
        every.pop()
    removed = [*reversed(end.nodes), *reversed(nodes)]
    fuse(graph, removed, op, every, [end.result], attributes=attributes, origin=first.origin)


def fuse_conv(graph: Graph, node: Node) -> bool:
    """Fuse a Conv of dequantized data and a dequantized constant."""
    data = dequantized(graph, node.inputs[0])
    stored = stored_bytes(node.inputs[1], 0, MAX_WEIGHT)
    if data is None or stored is None or stored.data.ndim not in (3, 4):
        return False
    channels, given = len(stored.data), input_at(node, 2)
    bias = constant_bias(given, channels)
    if given is not None and bias is None:
        return False
    weight, scale, zero = weight_values(graph, stored)
    shift = None if bias is None else constant(graph, bias, "bias")
    inputs = [data.data, weight, data.scale, data.zero, scale, zero, shift]
    finish(graph, [node], "IntegerConv", inputs, ending_of(graph, node.outputs[0]))
    return True


def matrix_of(node: Node) -> StoredBytes | None:
    """Return the weight of a product as a matrix [k, n] of bytes, None where it is not one."""
    if node.op == "Linear" and node.domain == "halfbyte":
        held = node.inputs[1]
        if held is None or held.constant is None:
            return None
        stored, turned = affine_bytes(held.constant, MAX_WEIGHT), True
    elif node.op == "MatMul" and not node.domain:
        stored, turned = stored_bytes(node.inputs[1], 1, MAX_WEIGHT), False
    elif node.op == "Gemm" and not node.domain:
        plain = all(node.attributes.get(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        if not plain or node.attributes.get("transA"):
            return None
        turned = bool(node.attributes.get("transB"))
        stored = stored_bytes(node.inputs[1], 0 if turned else 1, MAX_WEIGHT)
    else:
        return None
    if stored is None or stored.data.ndim != 2:
        return None
    return stored._replace(data=np.ascontiguousarray(stored.data.T)) if turned else stored


def fuse_product(graph: Graph, node: Node) -> bool:
    """Fuse a product of dequantized data and a constant matrix, and the bias added to it."""
    data = dequantized(graph, node.inputs[0])
    stored = None if data is None else matrix_of(node)
    if data is None or stored is None:
        return False
    channels, given, nodes = stored.data.shape[1], input_at(node, 2), [node]
    bias = constant_bias(given, channels)
    if given is not None and bias is None:
        return False
    if given is None:
        added = added_bias(graph, node.outputs[0], channels, 1)
        if added is not None:
            bias = added[0]
            nodes.append(added[1])
    weight, scale, zero = weight_values(graph, stored)
    shift = None if bias is None else constant(graph, bias, "bias")
    inputs = [data.data, weight, data.scale, data.zero, scale, zero, shift]
    finish(graph, nodes, "IntegerMatMul", inputs, ending_of(graph, nodes[-1].outputs[0]))
    return True


def stored_row(graph: Graph, value: Value | None, other: Quantized | None) -> Quantized | None:
    """Return a constant that is dequantized with one scale and has the size of the last axis."""
    node = None if value is None else value.producer
    if other is None or other.data.shape is None or value is None or value.shape is None:
        return None
    if node is None or stored_bytes(value, 0, MAX_WEIGHT) is None or not is_scalar(node.inputs[1]):
        return None
    data, scale = node.inputs[0], node.inputs[1]
    if data is None or scale is None or not value.shape or len(value.shape) > len(other.data.shape):
        return None
    *lead, last = value.shape
    if last != other.data.shape[-1] or any(dim != 1 for dim in lead):
        return None
    return Quantized(data, scale, zero_of(graph, node, data.dtype or "uint8"))


def fuse_add(graph: Graph, node: Node) -> bool:
    """Fuse the sum of two dequantized values, or of one and a row, that is quantized again."""
    left, right = (dequantized(graph, value) for value in node.inputs)
    if left is None:
        left, right = right, stored_row(graph, node.inputs[0], right)
    elif right is None:
        right = stored_row(graph, node.inputs[1], left)
    elif left.data.shape != right.data.shape:
        return False
    if left is None or right is None:
        return False
    end = ending_of(graph, node.outputs[0])
    if end.scale is None:
        return False
    inputs = [left.data, left.scale, left.zero, right.data, right.scale, right.zero]
    finish(graph, [node], "IntegerAdd", inputs, end)
    return True


def scale_factors(value: Value) -> tuple[Value, Array] | None:
    """Return (scalar, constant) of a product of the activations' and the weights' scales."""
    node = value.producer
    if node is None or node.op != "Mul" or node.domain:
        return None
    for index in (0, 1):
        computed, known = node.inputs[index], known_array(node.inputs[1 - index])
        if computed is not None and known is not None and known.dtype == np.float32:
            return (computed, known) if is_scalar(computed) else None
    return None


def scaled_by(graph: Graph, sums: Node) -> tuple[list[Node], Value, Array] | None:
    """Return the Cast and the Mul after integer sums, and the two scales that they multiply by."""
    cast = only_use(graph, sums.outputs[0])
    if cast is None or cast.op != "Cast" or cast.outputs[0].dtype != "float32":
        return None
    times = only_use(graph, cast.outputs[0])
    if times is None or times.op != "Mul" or times.domain:
        return None
    factor = times.inputs[1] if times.inputs[0] is cast.outputs[0] else times.inputs[0]
    found = None if factor is None else scale_factors(factor)
    return None if found is None else ([sums, cast, times], *found)


def fuse_sums(graph: Graph, node: Node) -> bool:
    """Fuse MatMulInteger or ConvInteger with the scaling, and the bias, that follow."""
    is_conv = node.op == "ConvInteger"
    data, weight = node.inputs[0], known_array(node.inputs[1], MAX_WEIGHT)
    zero, given = input_at(node, 2), input_at(node, 3)
    w_zero = known_array(given, MAX_WEIGHT)
    if data is None or data.dtype not in BYTES or weight is None or node.inputs[1] is None:
        return False
    if (zero is not None and not is_scalar(zero)) or (given is not None and w_zero is None):
        return False
    if weight.ndim not in ((3, 4) if is_conv else (2,)):
        return False
    found = scaled_by(graph, node)
    channels = weight.shape[0 if is_conv else 1]
    if found is None or found[2].size not in (1, channels):
        return False
    nodes, x_scale, w_scale = found
    added = added_bias(graph, nodes[-1].outputs[0], channels, weight.ndim - 1)
    shift = None
    if added is not None:
        nodes, shift = [*nodes, added[1]], constant(graph, added[0], "bias")
    made = zero if zero is not None else constant(graph, np.zeros((), data.dtype), "zero")
    scale = constant(graph, w_scale.reshape(-1), "weight_scale")
    lifted = given if w_zero is not None and np.any(w_zero) else None
    inputs = [data, node.inputs[1], x_scale, made, scale, lifted, shift]
    end = ending_of(graph, nodes[-1].outputs[0])
    finish(graph, nodes, "IntegerConv" if is_conv else "IntegerMatMul", inputs, end)
    return True


RULES: dict[tuple[str, str], Callable[[Graph, Node], bool]] = {
    ("", "Add"): fuse_add,
    ("", "Conv"): fuse_conv,
    ("", "ConvInteger"): fuse_sums,
    ("", "Gemm"): fuse_product,
    ("", "MatMul"): fuse_product,
    ("", "MatMulInteger"): fuse_sums,
    ("halfbyte", "Linear"): fuse_product,
}


def apply(graph: Graph) -> bool:
    """Fuse every place that has one of the forms."""
    if not any(node.op in ("DequantizeLinear", "DynamicQuantizeLinear") for node in graph.nodes):
        return False
    changed = False
    for node in list(graph.nodes):
        rule = RULES.get((node.domain, node.op))
        # An Add may have gone into the product before it.
        if rule is not None and node.outputs[0].producer is node:
            changed |= rule(graph, node)
    return changed
