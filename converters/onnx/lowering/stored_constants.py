"""Weights as standard nodes read them: in the dtype of the values they meet.

A dense weight of another dtype keeps its bytes and gets a Cast, which runtimes fold. An encoded
one becomes a DequantizeLinear (`dequantized.py`).
"""

from __future__ import annotations

from typing import Any

from halfbyte.converters.onnx.lowering.dequantized import dequantized
from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.converters.onnx.opset_choice import schema_at
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.spec import adapts


def adapt_constants(rewriter: Rewriter, node: Node) -> None:
    """Let every stored weight that a standard node reads have the dtype it is read in."""
    schema = schema_at(node.op, rewriter.opset)
    if schema is None or any(isinstance(a, Graph) for a in node.attributes.values()):
        return
    formal = [schema.inputs[min(i, len(schema.inputs) - 1)] for i in range(len(node.inputs))]
    for index, value in enumerate(node.inputs):
        if value is None or not adapts(value):
            continue
        kind = formal[index].type_str
        wanted = _common(node, [f.type_str == kind for f in formal]) or _result(node, schema, kind)
        read = plain_value(rewriter, value, wanted or "float32")
        if read is not value:
            rewriter.graph.set_input(node, index, read)
            rewriter.drop_unused(value)


def _common(node: Node, same: list[bool]) -> str | None:
    for value, alike in zip(node.inputs, same, strict=True):
        if alike and value is not None and not adapts(value) and value.dtype is not None:
            return value.dtype
    return None


def _result(node: Node, schema: Any, kind: str) -> str | None:
    for value, formal in zip(node.outputs, schema.outputs, strict=False):
        if formal.type_str == kind and value.dtype is not None:
            return value.dtype
    return None


def plain_value(rewriter: Rewriter, value: Value, dtype: str) -> Value:
    """Return a constant's values in its shape, in `dtype`, whatever its encoding."""
    tensor = value.constant
    if tensor is None or isinstance(tensor.encoding, Dense):
        return rewriter.cast(value, dtype)
    held = tensor

    def make() -> Value:
        found = dequantized(rewriter, held, value.name, dtype, transposed=False)
        if len(held.shape) == 2:
            return found
        shape = rewriter.constant(f"{value.name}.shape", held.shape)
        return rewriter.add("Reshape", found, shape, name=value.name)

    return rewriter.once(("plain", rewriter.hold(held), dtype), make)
