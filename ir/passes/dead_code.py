"""Remove nodes and constants that no output needs."""

from __future__ import annotations

from halfbyte.ir.graph import Graph, Node

EFFECTS = frozenset({"CachedAttention"})


RANDOM = frozenset(
    {
        *("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"),
        *("Bernoulli", "Multinomial", "Dropout"),
    }
)


def has_effect(node: Node) -> bool:
    """Whether a node writes a state."""
    return node.op in EFFECTS and bool(node.attributes.get("key_state"))


def is_random(node: Node) -> bool:
    """Whether equal nodes, or runs of one node, may yield different values."""
    return node.op in RANDOM and not node.domain


def has_graphs(node: Node) -> bool:
    """Whether a node runs graphs of its own."""
    return any(isinstance(held, Graph) for held in node.attributes.values())


def apply(graph: Graph) -> bool:
    """Remove unread nodes, last first, then unread constants. Nodes that write states stay."""
    changed = False
    outputs = set(graph.outputs)
    for node in reversed(list(graph.nodes)):
        needed = any(value.uses or value in outputs for value in node.outputs)
        if not needed and not has_effect(node):
            graph.remove(node)
            changed = True
    for name in list(graph.constants):
        value = graph.constant_value(name)
        if not value.uses and value not in outputs:
            graph.remove_constant(name)
            changed = True
    return changed
