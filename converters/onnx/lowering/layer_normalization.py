"""LayerNormalization before opset 17."""

from __future__ import annotations

from halfbyte.converters.onnx.lowering.normalization import inverse_deviation, mean, stash_dtype
from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.converters.onnx.lowering.stored_constants import plain_value
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import input_at, required_input


def lower(rewriter: Rewriter, node: Node) -> None:
    """Replace the node; mean and inverse deviation are there for nodes that return them."""
    data, scale, bias = required_input(node, 0), required_input(node, 1), input_at(node, 2)
    dtype = data.dtype or "float32"
    wide = rewriter.cast(data, stash_dtype(node))
    middle = mean(rewriter, node, wide)
    centered = rewriter.add("Sub", wide, middle)
    variance = mean(rewriter, node, rewriter.add("Mul", centered, centered))
    inverse = inverse_deviation(rewriter, node, variance)
    normed = rewriter.cast(rewriter.add("Mul", centered, inverse), dtype)
    result = rewriter.add("Mul", normed, plain_value(rewriter, scale, dtype))
    if bias is not None:
        result = rewriter.add("Add", result, plain_value(rewriter, bias, dtype))
    rewriter.replace(node, *[result, middle, inverse][: len(node.outputs)])
