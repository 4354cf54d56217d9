"""Swish(gate) * up becomes one halfbyte.SwiGLU."""

from __future__ import annotations

from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.passes.fusion import fuse


def _sole(value: Value | None, op: str, graph: Graph) -> Node | None:
    """Return the producer of a value if it is `op` and nothing else reads the value."""
    producer = None if value is None else value.producer
    if producer is None or producer.op != op or value in graph.outputs:
        return None
    return producer if value is not None and len(value.uses) == 1 else None


def gate_of(graph: Graph, node: Node) -> tuple[Node, Value] | None:
    """Return the Swish and the other factor of a Mul that is a gated product."""
    if node.op != "Mul" or node.domain:
        return None
    for index in (0, 1):
        swish, other = _sole(node.inputs[index], "Swish", graph), node.inputs[1 - index]
        if swish is None or other is None or swish.attributes.get("alpha", 1.0) != 1.0:
            continue
        gate = swish.inputs[0]
        if gate is not None and gate.shape is not None and gate.shape == other.shape:
            return swish, other
    return None


def apply(graph: Graph) -> bool:
    """Fuse where gate and up are known to have one shape."""
    changed = False
    for node in list(graph.nodes):
        found = gate_of(graph, node)
        if found is None:
            continue
        swish, up = found
        fuse(graph, [node, swish], "SwiGLU", [swish.inputs[0], up], node.outputs)
        changed = True
    return changed
