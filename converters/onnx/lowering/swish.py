"""Swish before opset 24: x * sigmoid(alpha * x)."""

from __future__ import annotations

from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.ir.graph import Node, Value
from halfbyte.ir.ops.spec import attribute, required_input


def swish(rewriter: Rewriter, data: Value, alpha: float) -> Value:
    """Return data * sigmoid(alpha * data)."""
    scaled = data
    if alpha != 1.0:
        factor = rewriter.constant("alpha", alpha, data.dtype or "float32")
        scaled = rewriter.add("Mul", data, factor)
    return rewriter.add("Mul", data, rewriter.add("Sigmoid", scaled))


def lower(rewriter: Rewriter, node: Node) -> None:
    """Replace the node."""
    alpha = float(attribute(node, "alpha", 1.0))
    rewriter.replace(node, swish(rewriter, required_input(node, 0), alpha))
