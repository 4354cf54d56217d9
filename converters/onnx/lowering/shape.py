"""Shape before opset 15: a slice of the whole shape."""

from __future__ import annotations

import numpy as np

from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import attribute, required_input


def lower(rewriter: Rewriter, node: Node) -> None:
    """Replace the node."""
    whole = rewriter.add("Shape", required_input(node, 0))
    start = int(attribute(node, "start", 0))
    end = int(attribute(node, "end", np.iinfo(np.int64).max))
    bounds = [rewriter.constant("bound", [number]) for number in (start, end)]
    axes = rewriter.constant("first_axis", [0])
    rewriter.replace(node, rewriter.add("Slice", whole, *bounds, axes))
