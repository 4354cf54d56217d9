"""Sums over the last axes in the dtype that a normalization computes in."""

from __future__ import annotations

from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.errors import UnsupportedError
from halfbyte.ir.dtypes import ONNX_DTYPES
from halfbyte.ir.graph import Node, Value
from halfbyte.ir.ops.spec import attribute, axis_of, required_input

AXES_INPUT_OPSET = 18  # ReduceMean takes its axes as an input from here on


def mean(rewriter: Rewriter, node: Node, value: Value) -> Value:
    """Return the mean of a value over the normalized axes of `node`, which keep length 1.

    Raises:
        UnsupportedError: the rank is not known.
    """
    data = required_input(node, 0)
    if data.shape is None:
        raise UnsupportedError(
            f"{node.op} of unknown rank at opset {rewriter.opset}", f"node {node.label}"
        )
    rank = len(data.shape)
    axes = list(range(axis_of(node, attribute(node, "axis", -1), rank), rank))
    if rewriter.opset >= AXES_INPUT_OPSET:
        return rewriter.add("ReduceMean", value, rewriter.constant("axes", axes), keepdims=1)
    return rewriter.add("ReduceMean", value, axes=axes, keepdims=1)


def stash_dtype(node: Node) -> str:
    """Return the dtype that the statistics are computed in."""
    return ONNX_DTYPES[attribute(node, "stash_type", 1)]


def inverse_deviation(rewriter: Rewriter, node: Node, variance: Value) -> Value:
    """Return 1 / sqrt(variance + epsilon)."""
    epsilon = attribute(node, "epsilon", 1e-5)
    shifted = rewriter.add(
        "Add", variance, rewriter.constant("epsilon", epsilon, stash_dtype(node))
    )
    return rewriter.add("Reciprocal", rewriter.add("Sqrt", shifted))
