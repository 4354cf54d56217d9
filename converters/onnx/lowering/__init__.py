"""Operators that an ONNX file does not have, or does not have yet at its opset, in terms of others.

Each module offers `lower(rewriter, node)`, which replaces the node, exactly or to rounding, and
raises UnsupportedError where it cannot. Operators that only the runtime uses never come here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from halfbyte.converters.onnx.lowering.older_forms import make_older
from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.converters.onnx.lowering.stored_constants import adapt_constants
from halfbyte.converters.onnx.lowering.table import LOWERINGS
from halfbyte.converters.onnx.opset_choice import DEFAULT_DOMAINS, obstacle
from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node
from halfbyte.ir.ops import op_key


def lower_graph(graph: Graph, opset: int, flavour: str = "") -> dict[str, str]:
    """Replace, in place, every node that the opset cannot hold as it is, subgraphs included.

    Returns the weight that each new constant was made from, by the constant's name.

    Raises:
        UnsupportedError: one has no such form; it is named.
    """
    rewriter = Rewriter(graph, opset, flavour)
    sources: dict[str, str] = {}
    for node in list(graph.nodes):
        rewriter.at = node
        for inner in graph.subgraphs([node]):
            sources |= lower_graph(inner, opset, flavour)
        if node.domain == HALFBYTE_DOMAIN or needs_lowering(node, opset):
            _lower(rewriter, node)
        elif node.domain in DEFAULT_DOMAINS:
            make_older(graph, node, opset)
            adapt_constants(rewriter, node)
    return sources | rewriter.finish()


def needs_lowering(node: Node, opset: int) -> bool:
    """Whether a standard node has to be said in other operators at an opset."""
    if node.domain not in DEFAULT_DOMAINS or node.op not in LOWERINGS:
        return False
    encoded = any(v is not None and _is_stored(v) for v in node.inputs)
    return bool(obstacle(node, opset)) or (node.op == "Gather" and encoded)


def _is_stored(value: Any) -> bool:
    return value.constant is not None and not value.fixed


def _lower(rewriter: Rewriter, node: Node) -> None:
    key = op_key(node.op, node.domain)
    if key not in LOWERINGS:
        raise UnsupportedError(f"operator {key} in ONNX", f"node {node.label}")
    module: Any = import_module(f"{__name__}.{LOWERINGS[key]}")
    module.lower(rewriter, node)
