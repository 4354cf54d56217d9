"""`halfbyte.SwiGLU`, and SwiGLU before opset 28: gate * sigmoid(alpha * gate) * up."""

from __future__ import annotations

from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.converters.onnx.lowering.swish import swish
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import attribute, required_input


def lower(rewriter: Rewriter, node: Node) -> None:
    """Replace the node."""
    gate, up = required_input(node, 0), required_input(node, 1)
    opened = swish(rewriter, gate, float(attribute(node, "alpha", 1.0)))
    rewriter.replace(node, rewriter.add("Mul", opened, up))
