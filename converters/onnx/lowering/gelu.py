"""Gelu before opset 20: by Erf, or by the tanh formula."""

from __future__ import annotations

import math

from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.ir.graph import Node, Value
from halfbyte.ir.ops.spec import attribute, required_input


def lower(rewriter: Rewriter, node: Node) -> None:
    """Replace the node."""
    data = required_input(node, 0)
    dtype = data.dtype or "float32"

    def number(value: float) -> Value:
        return rewriter.constant("gelu", value, dtype)

    if attribute(node, "approximate", "none") == "tanh":
        square = rewriter.add("Mul", data, data)
        inner = rewriter.add("Add", rewriter.add("Mul", square, number(0.044715)), number(1.0))
        inner = rewriter.add(
            "Mul", rewriter.add("Mul", data, number(math.sqrt(2 / math.pi))), inner
        )
        turned = rewriter.add("Tanh", inner)
    else:
        turned = rewriter.add("Erf", rewriter.add("Div", data, number(math.sqrt(2.0))))
    raised = rewriter.add("Mul", data, rewriter.add("Add", turned, number(1.0)))
    rewriter.replace(node, rewriter.add("Mul", raised, number(0.5)))
