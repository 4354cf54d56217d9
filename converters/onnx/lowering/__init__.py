"""Operators that an ONNX file does not have, or does not have yet at its opset, in terms of others.

Each module offers `lower(rewriter, node)`, which replaces the node, exactly or to rounding, and
raises UnsupportedError where it cannot. Operators that only the runtime uses never come here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.converters.onnx.lowering.stored_constants import adapt_constants
from halfbyte.converters.onnx.opset_choice import DEFAULT_DOMAINS, obstacle
from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Node
from halfbyte.ir.ops import op_key

LOWERINGS: dict[str, str] = {
    "halfbyte.Linear": "linear",
    "halfbyte.SwiGLU": "swiglu",
    "halfbyte.CachedAttention": "cached_attention",
    "Gather": "gather",
    "Gelu": "gelu",
    "Swish": "swish",
    "LayerNormalization": "layer_normalization",
    "RMSNormalization": "rms_normalization",
    "RotaryEmbedding": "rotary_embedding",
}


def lower_graph(rewriter: Rewriter) -> None:
    """Replace, in place, every node that the opset cannot hold as it is.

    Raises:
        UnsupportedError: one has no such form; it is named.
    """
    for node in list(rewriter.graph.nodes):
        rewriter.at = node
        if node.domain == HALFBYTE_DOMAIN or needs_lowering(node, rewriter.opset):
            _lower(rewriter, node)
        elif node.domain in DEFAULT_DOMAINS:
            adapt_constants(rewriter, node)
    rewriter.at = None


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
