"""Linear nodes that read one value (query, key, value; gate, up) become one LinearGroup."""

from __future__ import annotations

from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node, Value
from halfbyte.ir.passes.fusion import fuse

MAX_GROUP = 4


def siblings(graph: Graph, value: Value) -> list[Node]:
    """Return the Linear nodes of one layer over constant weights that read `value`, in order."""
    found: list[Node] = []
    for node, index in value.uses:
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        linear = node.op == "Linear" and node.domain == HALFBYTE_DOMAIN and index == 0
        if not linear or weight is None or weight.constant is None:
            continue
        if any(v is not None and v.constant is None for v in node.inputs[2:]):
            continue
        same_layer = not found or node.layer == found[0].layer
        same_bias = not found or has_bias(node) == has_bias(found[0])
        if same_layer and same_bias and len(found) < MAX_GROUP:
            found.append(node)
    return sorted(found, key=graph.position) if len(found) > 1 else found


def has_bias(node: Node) -> bool:
    """Whether a Linear adds a bias."""
    return len(node.inputs) > 2 and node.inputs[2] is not None


def merge(graph: Graph, value: Value, nodes: list[Node]) -> None:
    """Replace Linear nodes by one group at the place of the first."""
    weights = [node.inputs[1] for node in nodes]
    biases = [node.inputs[2] for node in nodes] if has_bias(nodes[0]) else []
    results = [node.outputs[0] for node in nodes]
    inputs = [value, *weights, *biases]
    fuse(graph, nodes, "LinearGroup", inputs, results, attributes={"count": len(nodes)})


def apply(graph: Graph) -> bool:
    """Merge groups of two or more."""
    changed = False
    for value in list(graph.values()):
        if len(value.uses) < 2:
            continue
        nodes = siblings(graph, value)
        if len(nodes) > 1:
            merge(graph, value, nodes)
            changed = True
    return changed
