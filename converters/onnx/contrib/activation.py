"""Activations of onnxruntime, with the bias that it fuses into them."""

from __future__ import annotations

from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.ir.graph import Graph, Node


def lower(graph: Graph, node: Node) -> None:
    """Replace one of the family."""
    at = Lowering(graph, node)
    data = at.need(0)
    bias = at.given(1)
    if node.op == "QuickGelu":
        result = at.add("Swish", data, alpha=float(at.option("alpha", 1.702)))
    elif node.op == "BiasAdd":
        result = at.add("Add", at.add("Add", data, at.need(1)), at.need(2))
    elif node.op == "BiasSplitGelu":
        left, right = at.many("Split", [at.add("Add", data, at.need(1))], 2, axis=-1, num_outputs=2)
        result = at.add("Mul", left, at.add("Gelu", right))
    else:
        summed = data if bias is None else at.add("Add", data, bias)
        tanh = node.op == "FastGelu"
        result = at.add("Gelu", summed, approximate="tanh" if tanh else "none")
    at.finish(result)
