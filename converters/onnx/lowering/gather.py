"""Gather over a stored table: the rows are taken as they lie, then cast; codes are dequantized."""

from __future__ import annotations

from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.converters.onnx.lowering.stored_constants import plain_value
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import attribute, required_input


def lower(rewriter: Rewriter, node: Node) -> None:
    """Replace the node; a dense table of another dtype is not cast whole, only its rows are."""
    table, indices = required_input(node, 0), required_input(node, 1)
    dtype = node.outputs[0].dtype or "float32"
    axis = attribute(node, "axis", 0)
    if table.constant is not None and isinstance(table.constant.encoding, Dense):
        rows = rewriter.add("Gather", table, indices, axis=axis)
        rows.dtype = table.dtype
        rewriter.replace(node, rewriter.cast(rows, dtype))
        return
    plain = plain_value(rewriter, table, dtype)
    rewriter.replace(node, rewriter.add("Gather", plain, indices, axis=axis))
