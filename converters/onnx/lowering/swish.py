"""Swish before opset 24: x * sigmoid(alpha * x)."""

from __future__ import annotations

from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import attribute, required_input


def lower(rewriter: Rewriter, node: Node) -> None:
    """Replace the node."""
    data = required_input(node, 0)
    alpha = float(attribute(node, "alpha", 1.0))
    scaled = data
    if alpha != 1.0:
        factor = rewriter.constant("alpha", alpha, data.dtype or "float32")
        scaled = rewriter.add("Mul", data, factor)
    rewriter.replace(node, rewriter.add("Mul", data, rewriter.add("Sigmoid", scaled)))
