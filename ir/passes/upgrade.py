"""Rewrite old forms of operators as newer ones where that is exact."""

from __future__ import annotations

from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.ops import OPS, op_key, spec_of


def apply(graph: Graph) -> bool:
    """Upgrade every node, subgraphs included, as far as its operator can; whether any changed.

    Types must have been inferred: some upgrades need a rank.
    """
    changed = False
    for node in list(graph.nodes):
        for subgraph in graph.subgraphs([node]):
            changed |= apply(subgraph)
        changed |= _upgrade(graph, node)
    return changed


def _upgrade(graph: Graph, node: Node) -> bool:
    changed = False
    while op_key(node.op, node.domain) in OPS:
        step, version = spec_of(node).upgrade, node.since_version
        if step is None or not step(graph, node):
            break
        changed = True
        if node.since_version <= version:
            break
    return changed
