"""Add followed by a normalization of the sum becomes one node that yields both."""

from __future__ import annotations

from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.passes.fusion import fuse

FUSED = {
    "RMSNormalization": "AddRMSNormalization",
    "LayerNormalization": "AddLayerNormalization",
}


def norm_of(node: Node) -> Node | None:
    """Return the first normalization that reads the sum of two values of one shape."""
    if node.op != "Add" or node.domain:
        return None
    left, right = node.inputs
    if left is None or right is None or left.shape is None or left.shape != right.shape:
        return None
    if left.constant is not None or right.constant is not None:
        return None
    for user, index in node.outputs[0].uses:
        normalizes = user.op in FUSED and not user.domain and index == 0 and len(user.outputs) == 1
        # A computed scale might be made after the Add, where the fused node stands.
        if normalizes and all(v is None or v.producer is None for v in user.inputs[1:]):
            return user
    return None


def apply(graph: Graph) -> bool:
    """Fuse every Add whose sum a normalization reads."""
    changed = False
    for node in list(graph.nodes):
        norm = norm_of(node)
        if norm is None:
            continue
        inputs = [*node.inputs, *norm.inputs[1:]]
        results = [*norm.outputs, *node.outputs]
        op, attributes, origin = FUSED[norm.op], norm.attributes, norm.origin
        fuse(graph, [node, norm], op, inputs, results, attributes=attributes, origin=origin)
        changed = True
    return changed
