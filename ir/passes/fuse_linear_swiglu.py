"""SwiGLU of two Linear nodes over one input becomes one LinearSwiGLU."""

from __future__ import annotations

from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node, Value
from halfbyte.ir.passes.fuse_linears import has_bias
from halfbyte.ir.passes.fusion import fuse


def source(graph: Graph, value: Value | None) -> Node | None:
    """Return the Linear over constants that makes a value which nothing else reads."""
    node = None if value is None else value.producer
    if node is None or node.op != "Linear" or node.domain != HALFBYTE_DOMAIN:
        return None
    if value in graph.outputs or value is None or len(value.uses) != 1:
        return None
    stored = all(v is None or v.constant is not None for v in node.inputs[1:])
    return node if stored else None


def pair_of(graph: Graph, node: Node) -> tuple[Node, Node] | None:
    """Return the gate's and the up Linear of a SwiGLU over one input, of equal widths."""
    if node.op != "SwiGLU" or node.domain != HALFBYTE_DOMAIN:
        return None
    gate, up = source(graph, node.inputs[0]), source(graph, node.inputs[1])
    if gate is None or up is None or gate is up or gate.inputs[0] is not up.inputs[0]:
        return None
    weights = gate.inputs[1], up.inputs[1]
    if weights[0] is None or weights[1] is None or weights[0].shape != weights[1].shape:
        return None
    return (gate, up) if has_bias(gate) == has_bias(up) else None


def apply(graph: Graph) -> bool:
    """Fuse every such pair."""
    changed = False
    for node in list(graph.nodes):
        found = pair_of(graph, node)
        if found is None:
            continue
        gate, up = found
        biases = [gate.inputs[2], up.inputs[2]] if has_bias(gate) else []
        inputs = [gate.inputs[0], gate.inputs[1], up.inputs[1], *biases]
        fuse(graph, [node, gate, up], "LinearSwiGLU", inputs, node.outputs)
        changed = True
    return changed
