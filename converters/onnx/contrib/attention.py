"""Attention and QAttention of onnxruntime: one product gives query, key and value."""

from __future__ import annotations

from halfbyte.converters.onnx.contrib.heads import attend, merge_heads, split_heads
from halfbyte.converters.onnx.contrib.integer_matmul import scaled
from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.converters.onnx.contrib.multi_head_attention import whole_mask
from halfbyte.ir.graph import Graph, Node, Value


def lower(graph: Graph, node: Node) -> None:
    """Replace the node.

    Raises:
        UnsupportedError: rotary embedding, or a buffer shared by past and present.
    """
    at = Lowering(graph, node)
    for name in ("do_rotary", "past_present_share_buffer"):
        if at.option(name, 0):
            raise at.refuse(name, ["0"])
    quantized = node.op == "QAttention"
    mask, past = (at.given(5), at.given(8)) if quantized else (at.given(3), at.given(4))
    added = None if quantized else at.given(5)
    heads = int(at.required("num_heads"))
    query, key, value = (
        split_heads(at, part, heads) for part in split(at, projected(at, quantized))
    )
    if past is not None:
        held = at.many("Split", [past], 2, axis=0, num_outputs=2)
        key, value = (
            at.add("Concat", at.add("Squeeze", old, at.ints(0)), new, axis=2)
            for old, new in zip(held, (key, value), strict=True)
        )
    whole = whole_mask(at, query, key, mask, added)
    mixed = attend(at, query, key, value, whole, float(at.option("scale", 0.0)))
    present = None
    if at.used(1):
        both = [at.add("Unsqueeze", v, at.ints(0)) for v in (key, value)]
        present = at.add("Concat", *both, axis=0)
    at.finish(merge_heads(at, mixed), present)


def projected(at: Lowering, quantized: bool) -> Value:
    """Return [batch, length, widths of query, key and value]."""
    if quantized:
        total = at.add("MatMulInteger", at.need(0), at.need(1), at.given(6), at.given(7))
        return scaled(at, total, at.add("Mul", at.need(3), at.need(4)), at.need(2))
    result = at.add("MatMul", at.need(0), at.need(1))
    bias = at.given(2)
    return result if bias is None else at.add("Add", result, bias)


def split(at: Lowering, value: Value) -> list[Value]:
    """Return query, key and value."""
    sizes = at.option("qkv_hidden_sizes")
    if sizes:
        return at.many("Split", [value, at.ints(*sizes)], 3, axis=2)
    return at.many("Split", [value], 3, axis=2, num_outputs=3)
