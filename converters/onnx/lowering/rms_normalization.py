"""RMSNormalization before opset 23."""

from __future__ import annotations

from halfbyte.converters.onnx.lowering.normalization import inverse_deviation, mean, stash_dtype
from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.converters.onnx.lowering.stored_constants import plain_value
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import adapts, required_input


def lower(rewriter: Rewriter, node: Node) -> None:
    """Replace the node: x / sqrt(mean(x^2) + epsilon), back in the data's dtype, times scale."""
    data, scale = required_input(node, 0), required_input(node, 1)
    dtype = data.dtype or "float32"
    wide = rewriter.cast(data, stash_dtype(node))
    inverse = inverse_deviation(
        rewriter, node, mean(rewriter, node, rewriter.add("Mul", wide, wide))
    )
    normed = rewriter.cast(rewriter.add("Mul", wide, inverse), dtype)
    factor = plain_value(rewriter, scale, dtype) if adapts(scale) else scale
    normed = rewriter.cast(normed, factor.dtype or dtype)
    rewriter.replace(node, rewriter.add("Mul", normed, factor))
