"""A convolution takes up the sum behind it and then an activation; Linear an activation."""

from __future__ import annotations

from typing import Any

from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node, Value
from halfbyte.ir.ops.fused import node_activation
from halfbyte.ir.ops.spec import input_at
from halfbyte.ir.passes.fusion import fuse
from halfbyte.ir.passes.matching import full_shape, is_op, only_reader, other_input, stored


def is_convolution(node: Node) -> bool:
    """Whether a node is a float32 convolution over stored weights."""
    if not is_op(node, "Conv") or node.outputs[0].dtype != "float32":
        return False
    bias = input_at(node, 2)
    return stored(node.inputs[1]) is not None and (bias is None or stored(bias) is not None)


def is_linear(graph: Graph, node: Node) -> bool:
    """Whether a node is a float32 Linear of a graph without states."""
    if node.op != "Linear" or node.domain != HALFBYTE_DOMAIN or graph.states:
        return False
    return node.outputs[0].dtype == "float32" and all(
        value is None or value.constant is not None for value in node.inputs[1:]
    )


def residual_of(graph: Graph, node: Node) -> tuple[Node, Value] | None:
    """Return the sum that alone reads a convolution, and its other operand of the same shape."""
    value = node.outputs[0]
    add = only_reader(graph, value)
    if add is None or not is_op(add, "Add", "Sum") or len(add.inputs) != 2:
        return None
    other, shape = other_input(add, value), full_shape(value)
    if other is None or other is value or other.constant is not None or shape is None:
        return None
    return (add, other) if full_shape(other) == shape and other.dtype == value.dtype else None


def take_up(graph: Graph, node: Node, convolution: bool) -> bool:
    """Fuse one node with what follows it."""
    chain = [node]
    inputs: list[Value | None] = [*node.inputs, None, None][: 4 if convolution else 3]
    added = residual_of(graph, node) if convolution else None
    if added is not None:
        chain.append(added[0])
        inputs[3] = added[1]
    attributes: dict[str, Any] = dict(node.attributes)
    reader = only_reader(graph, chain[-1].outputs[0])
    found = None if reader is None else node_activation(reader)
    if reader is not None and found is not None and reader.inputs[0] is chain[-1].outputs[0]:
        chain.append(reader)
        function, alpha, beta = found
        attributes |= {"activation": function, "alpha": alpha, "beta": beta}
    if len(chain) == 1:
        return False
    while inputs[-1] is None:
        inputs.pop()
    op = "FusedConv" if convolution else "FusedLinear"
    results = chain[-1].outputs[:1]
    fuse(graph, chain[::-1], op, inputs, results, attributes=attributes, origin=node.origin)
    return True


def apply(graph: Graph) -> bool:
    """Fuse every convolution and Linear that can be."""
    changed = False
    for node in list(graph.nodes):
        convolution = is_convolution(node)
        if convolution or is_linear(graph, node):
            changed |= take_up(graph, node, convolution)
    return changed
