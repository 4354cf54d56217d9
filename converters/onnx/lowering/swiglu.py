"""`halfbyte.SwiGLU`: gate * sigmoid(gate) * up."""

from __future__ import annotations

from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import required_input


def lower(rewriter: Rewriter, node: Node) -> None:
    """Replace the node."""
    gate, up = required_input(node, 0), required_input(node, 1)
    opened = rewriter.add("Mul", gate, rewriter.add("Sigmoid", gate))
    rewriter.replace(node, rewriter.add("Mul", opened, up))
