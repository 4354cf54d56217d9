"""LayerNormalization and RMSNormalization from means, squares and roots."""

from __future__ import annotations

import numpy as np

from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.spec import input_at, known_ints
from halfbyte.ir.passes import dead_code
from halfbyte.ir.passes.matching import (
    is_op,
    is_scalar,
    maker,
    new_constant,
    only_reader,
    other_input,
    replace_node,
    split_constant,
    stored,
)


def last_mean(value: Value | None) -> Value | None:
    """Return what a value is the mean of over the last axis, kept as an axis of 1."""
    node = maker(value, "ReduceMean")
    if node is None or node.inputs[0] is None or not node.attributes.get("keepdims", 1):
        return None
    source, axes = node.inputs[0], known_ints(input_at(node, 1))
    rank = None if source.shape is None else len(source.shape)
    return (
        source
        if axes is not None and axes in ([-1], [None if rank is None else rank - 1])
        else None
    )


def square_of(value: Value | None) -> Value | None:
    """Return what a value is the square of."""
    node = maker(value, "Pow", "Mul")
    if node is None:
        return None
    if node.op == "Pow":
        return node.inputs[0] if is_scalar(node.inputs[1], 2.0) else None
    return node.inputs[0] if node.inputs[0] is node.inputs[1] else None


def root_mean_square(value: Value | None) -> tuple[Value, float] | None:
    """Return (x, epsilon) where a value is sqrt(mean(x^2) + epsilon)."""
    node = maker(value, "Sqrt", "Pow")
    if node is None or (node.op == "Pow" and not is_scalar(node.inputs[1], 0.5)):
        return None
    plus = maker(node.inputs[0], "Add")
    found = None if plus is None else split_constant(plus)
    if found is None:
        return None
    x = square_of(last_mean(found[0]))
    return None if x is None else (x, found[1])


def normalized(node: Node) -> tuple[Value, float] | None:
    """Return (x, epsilon) where a node is x / sqrt(mean(x^2) + epsilon)."""
    if is_op(node, "Div"):
        found = root_mean_square(node.inputs[1])
        return found if found is not None and found[0] is node.inputs[0] else None
    if not is_op(node, "Mul"):
        return None
    for index in (0, 1):
        inverse = maker(node.inputs[index], "Reciprocal", "Div")
        if inverse is None or (inverse.op == "Div" and not is_scalar(inverse.inputs[0], 1.0)):
            continue
        found = root_mean_square(inverse.inputs[-1])
        if found is not None and found[0] is node.inputs[1 - index]:
            return found
    return None


def centred(value: Value) -> Value | None:
    """Return x where a value is x - mean(x)."""
    node = maker(value, "Sub")
    x = None if node is None else node.inputs[0]
    return x if node is not None and x is not None and last_mean(node.inputs[1]) is x else None


def row_behind(graph: Graph, node: Node, op: str) -> tuple[Node, Value] | None:
    """Return the only reader of a node if it is `op` with a stored row, and the row."""
    value = node.outputs[0]
    reader = only_reader(graph, value)
    if reader is None or not is_op(reader, op):
        return None
    row = other_input(reader, value)
    array = stored(row)
    width = None if value.shape is None else value.shape[-1]
    if row is None or array is None or array.ndim != 1 or array.shape != (width,):
        return None
    return reader, row


def fuse(graph: Graph, node: Node) -> bool:
    """Replace the pattern that ends in a normalized value and what scales and shifts it."""
    found = normalized(node)
    if found is None or node.outputs[0].dtype != "float32":
        return False
    width = (node.outputs[0].shape or ("?",))[-1]
    source = centred(found[0])
    x = found[0] if source is None else source
    last, scale = row_behind(graph, node, "Mul") or (node, None)
    shifted = row_behind(graph, last, "Add") if source is not None and scale is not None else None
    if scale is None:
        if not isinstance(width, int):
            return False
        scale = new_constant(graph, "scale.ones", np.ones(width, np.float32))
    last, bias = shifted or (last, None)
    if last.outputs[0] in graph.outputs:
        return False
    op = "RMSNormalization" if source is None else "LayerNormalization"
    inputs: list[Value | None] = [x, scale] if bias is None else [x, scale, bias]
    replace_node(graph, last, op, inputs, axis=-1, epsilon=found[1])
    return True


def apply(graph: Graph) -> bool:
    """Replace every such pattern."""
    changed = False
    for node in list(graph.nodes):
        if node.outputs and node.outputs[0].producer is node:
            changed |= fuse(graph, node)
    if changed:
        dead_code.apply(graph)
    return changed
