"""What passes over quantized graphs ask of values: where bytes come from and where they go."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.spec import Array, input_at, known_array
from halfbyte.ir.tensor import Tensor, tensor_from_array

BYTES = ("uint8", "int8")
UNBOUNDED = (-np.inf, np.inf)


class Quantized(NamedTuple):
    """A value as bytes: (bytes - zero) * scale."""

    data: Value
    scale: Value
    zero: Value


def constant(graph: Graph, array: Array, stem: str) -> Value:
    """Return a new constant."""
    name = graph.fresh_name(stem)
    return graph.add_constant(tensor_from_array(name, array), name, fixed=True)


def is_scalar(value: Value | None) -> bool:
    """Whether a value is known to be one number."""
    return value is not None and value.shape in ((), (1,))


def zero_of(graph: Graph, node: Node, dtype: str) -> Value:
    """Return the zero point of a (De)QuantizeLinear node, made where it is omitted."""
    zero = input_at(node, 2)
    return zero if zero is not None else constant(graph, np.zeros((), dtype), "zero")


def dequantized(graph: Graph, value: Value | None) -> Quantized | None:
    """Return the bytes that a value is made from with one scale, None where it is not."""
    node = None if value is None else value.producer
    if node is None or node.op != "DequantizeLinear" or node.domain:
        return None
    data, scale = node.inputs[0], node.inputs[1]
    if data is None or scale is None or data.constant is not None or data.dtype not in BYTES:
        return None
    if not is_scalar(scale) or scale.dtype != "float32" or node.attributes.get("block_size"):
        return None
    zero = input_at(node, 2)
    if zero is not None and not is_scalar(zero):
        return None
    return Quantized(data, scale, zero_of(graph, node, data.dtype))


class StoredBytes(NamedTuple):
    """A constant as bytes; scale and zero: one number, or one for each index of `axis`."""

    data: Array
    scale: Array
    zero: Array | None


def stored_bytes(value: Value | None, axis: int, limit: int) -> StoredBytes | None:
    """Return a constant that is dequantized per tensor or along `axis`, None where it is not.

    limit: elements above which a weight is left alone.
    """
    node = None if value is None else value.producer
    if node is None or node.op != "DequantizeLinear" or node.domain:
        return None
    data, scale = (known_array(node.inputs[i], limit) for i in (0, 1))
    zero = known_array(input_at(node, 2), limit)
    if data is None or scale is None or (zero is None and input_at(node, 2) is not None):
        return None
    if data.dtype.name not in BYTES or scale.dtype != np.float32 or scale.ndim > 1:
        return None
    along = node.attributes.get("axis", 1) % max(data.ndim, 1)
    if scale.size > 1 and (along != axis % data.ndim or node.attributes.get("block_size")):
        return None
    return StoredBytes(data, scale.reshape(-1), None if zero is None else zero.reshape(-1))


def affine_bytes(tensor: Tensor, limit: int) -> StoredBytes | None:
    """Return a weight [out, in] of 8 bits with one scale a row as int8, None for others."""
    encoding = tensor.encoding
    if not isinstance(encoding, Affine) or encoding.bits != 8 or tensor.size > limit:
        return None
    if encoding.act_order or encoding.zero_point == "float" or len(tensor.shape) != 2:
        return None
    if encoding.group_size and encoding.group_size < tensor.columns:
        return None
    unpacked = encoding.unpack(tensor.read(), tensor.columns)
    codes = (unpacked.codes - 128).astype(np.int8)
    zero = unpacked.scales.zero_point
    moved = None if zero is None else np.asarray(zero[:, 0], np.int32) - 128
    if moved is not None and (moved.min(initial=0) < -128 or moved.max(initial=0) > 127):
        return None
    scale = np.ascontiguousarray(unpacked.scales.scale[:, 0])
    return StoredBytes(codes, scale, None if moved is None else moved.astype(np.int8))


def only_use(graph: Graph, value: Value) -> Node | None:
    """Return the one node that reads a value, None where there are others or it is an output."""
    uses = value.uses
    return uses[0][0] if len(uses) == 1 and value not in graph.outputs else None


class Ending(NamedTuple):
    """What follows a node and can be taken into it: clipping, then quantization."""

    nodes: list[Node]
    limits: tuple[float, float]
    scale: Value | None
    zero: Value | None
    result: Value


def clip_limits(node: Node) -> tuple[float, float] | None:
    """Return the bounds of a Relu or of a Clip between constants, None for other nodes."""
    if node.op == "Relu":
        return 0.0, np.inf
    if node.op != "Clip":
        return None
    found = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        value = input_at(node, index)
        array = known_array(value)
        if value is not None and (array is None or array.size != 1):
            return None
        found.append(default if array is None else float(array.reshape(-1)[0]))
    return found[0], found[1]


def ending_of(graph: Graph, value: Value) -> Ending:
    """Return what follows a value: at most one clipping and one quantization of one scale."""
    nodes: list[Node] = []
    limits = UNBOUNDED
    following = only_use(graph, value)
    if following is not None and not following.domain:
        found = clip_limits(following)
        if found is not None:
            nodes.append(following)
            limits, value = found, following.outputs[0]
            following = only_use(graph, value)
    if following is None or following.op != "QuantizeLinear" or following.domain:
        return Ending(nodes, limits, None, None, value)
    scale, result = following.inputs[1], following.outputs[0]
    zero = input_at(following, 2)
    known = known_array(scale)
    kinds = result.dtype in BYTES and (zero is None or is_scalar(zero))
    if known is None or known.size != 1 or known.dtype != np.float32 or not kinds:
        return Ending(nodes, limits, None, None, value)
    made = zero_of(graph, following, result.dtype or "uint8")
    return Ending([*nodes, following], limits, scale, made, result)
