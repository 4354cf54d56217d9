"""Inputs that are computed from constants alone: casts and products of scales, expanded codes.

onnxruntime folds such nodes when it loads a model; an operator whose weight must be constant takes
their result for a constant.
"""

from __future__ import annotations

from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops import OPS, op_key
from halfbyte.ir.passes.constant_folding import HEAVY, fold
from halfbyte.ir.passes.dead_code import has_effect, has_graphs, is_random

MAX_CHAIN_NODES = 64
MAX_ELEMENTS = 1 << 30


def make_constant(graph: Graph, value: Value) -> None:
    """Replace a value by a constant if everything that it comes from is constant and plain."""
    chain = _chain(value)
    if chain is None:
        return
    for node in chain:
        fold(graph, node)


def _chain(value: Value) -> list[Node] | None:
    """Return the nodes that make a value, in order; None if one of them may not be folded."""
    found: list[Node] = []
    seen: set[int] = set()

    def visit(current: Value) -> bool:
        node = current.producer
        if node is None:
            held = current.constant
            return held is not None and not held.encoding.is_quantized
        if id(node) in seen:
            return True
        seen.add(id(node))
        if len(seen) > MAX_CHAIN_NODES or not _may_fold(node):
            return False
        if not all(visit(source) for source in node.inputs if source is not None):
            return False
        found.append(node)
        return True

    return found if visit(value) else None


def _may_fold(node: Node) -> bool:
    if node.domain not in ("", "ai.onnx") or op_key(node.op, "") not in OPS or node.op in HEAVY:
        return False
    if has_effect(node) or is_random(node) or has_graphs(node):
        return False
    for value in node.outputs:
        size = 1
        for dim in ("?",) if value.shape is None else value.shape:
            size *= dim if isinstance(dim, int) else MAX_ELEMENTS + 1
        if size > MAX_ELEMENTS:
            return False
    return True
