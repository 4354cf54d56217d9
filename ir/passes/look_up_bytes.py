"""What is computed element by element from one quantized value is looked up.

    DequantizeLinear -> any elementwise operators on this value and constants -> QuantizeLinear

has 256 possible results, for each channel where a constant has one number a channel (the last
axis), and becomes halfbyte.IntegerLookup. Tables are computed by the same operators. One that maps
every byte to itself vanishes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops import spec_of
from halfbyte.ir.ops.spec import Array, Context, known_array
from halfbyte.ir.passes.fusion import fuse
from halfbyte.ir.passes.quantized_values import BYTES, constant

ELEMENTWISE = frozenset(
    {
        *("Abs", "Add", "Celu", "Ceil", "Clip", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu"),
        *("HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul"),
        *("Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid"),
        *("Sign", "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tanh", "ThresholdedRelu"),
        *("QuantizeLinear", "DequantizeLinear"),
    }
)
MAX_CHANNELS = 128  # tables beyond the first cache are slower than arithmetic
MAX_CONSTANT = 1 << 16


class Known(NamedTuple):
    """A value decided by the bytes of `root`: table [256], or [channels, 256]."""

    root: Value
    table: Array


def fixed_array(value: Value) -> Array | None:
    """Return the values of a small constant, also of one that is stored quantized."""
    if value.constant is not None:
        return known_array(value, MAX_CONSTANT)
    node = value.producer
    if node is None or node.op != "DequantizeLinear" or node.domain:
        return None
    arrays = [None if v is None else known_array(v, MAX_CONSTANT) for v in node.inputs]
    if any(a is None for a, v in zip(arrays, node.inputs, strict=True) if v is not None):
        return None
    return evaluated(node, arrays)


def evaluated(node: Node, operands: list[Array | None]) -> Array:
    """Return what a node gives."""
    spec = spec_of(node)
    with np.errstate(all="ignore"):
        found = spec.evaluate(operands, spec.with_defaults(node.attributes), Context(outputs=1))
    return np.asarray(found[0])


def as_factor(array: Array, root: Value, plain: bool) -> Array | None:
    """Return a constant as it meets a table, None where it differs along other axes.

    plain: it must be one number.
    """
    rank = None if root.shape is None else len(root.shape)
    if array.ndim and (rank is None or array.ndim > rank):
        return None
    if array.size == 1:
        return array.reshape(())
    if plain or root.shape is None or array.size > MAX_CHANNELS:
        return None
    by_channel = array.shape[-1] == array.size == root.shape[-1]
    return array.reshape(-1, 1) if by_channel else None


def known_result(node: Node, known: dict[Value, Known]) -> Known | None:
    """Return what a node gives for each byte of the value that decides it."""
    if node.domain or node.op not in ELEMENTWISE or len(node.outputs) != 1:
        return None
    if node.attributes.get("block_size"):
        return None
    roots = [known[v].root for v in node.inputs if v is not None and v in known]
    if not roots or any(root is not roots[0] for root in roots):
        return None
    plain = node.op not in ("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Pow")
    operands: list[Array | None] = []
    for value in node.inputs:
        if value is None:
            operands.append(None)
        elif value in known:
            operands.append(known[value].table)
        else:
            array = fixed_array(value)
            factor = None if array is None else as_factor(array, roots[0], plain)
            if factor is None:
                return None
            operands.append(factor)
    return Known(roots[0], evaluated(node, operands))


def every_byte(dtype: str) -> Array:
    """Return the bytes 0 .. 255 as they lie."""
    return np.arange(256, dtype=np.uint8).view(dtype)


def is_identity(found: Known) -> bool:
    """Whether every byte gives itself."""
    table = found.table
    same = table.dtype.name == found.root.dtype
    return same and bool(np.all(table == every_byte(found.root.dtype or "uint8")))


def replace_by_table(graph: Graph, node: Node, found: Known) -> None:
    """Let a lookup yield a node's result."""
    old = node.outputs[0]
    if is_identity(found) and old not in graph.outputs:
        graph.replace_all_uses(old, found.root)
        graph.remove(node)
        return
    table = constant(graph, np.ascontiguousarray(found.table), "table")
    fuse(graph, [node], "IntegerLookup", [found.root, table], [old])


def worth_it(node: Node, known: dict[Value, Known]) -> bool:
    """Whether a known value leaves the elementwise operators, and is not only dequantized."""
    if node.op == "QuantizeLinear":
        return True
    if node.op == "DequantizeLinear" or node.outputs[0].dtype != "float32":
        return False
    users = node.outputs[0].uses
    return not users or any(user.outputs[0] not in known for user, _ in users)


def byte_source(node: Node, known: dict[Value, Known]) -> Value | None:
    """Return the bytes that a node dequantizes, where nothing is known of them yet."""
    if node.op != "DequantizeLinear" or node.domain:
        return None
    data = node.inputs[0]
    if data is None or data in known or data.constant is not None or data.dtype not in BYTES:
        return None
    return data


def apply(graph: Graph) -> bool:
    """Find the values that one quantized value decides, and look them up."""
    known: dict[Value, Known] = {}
    made: list[tuple[Node, Known]] = []
    for node in graph.nodes:
        data = byte_source(node, known)
        if data is not None:
            known[data] = Known(data, every_byte(data.dtype or ""))
        found = known_result(node, known)
        if found is not None:
            known[node.outputs[0]] = found
            made.append((node, found))
    chosen = [(node, found) for node, found in made if worth_it(node, known)]
    for node, found in chosen:
        replace_by_table(graph, node, found)
    return bool(chosen)
