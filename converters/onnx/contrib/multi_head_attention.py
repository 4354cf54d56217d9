"""MultiHeadAttention: separate or packed query, key and value become ai.onnx's Attention."""

from __future__ import annotations

from halfbyte.converters.onnx.contrib.heads import (
    added_mask,
    attend,
    causal_mask,
    merge_heads,
    padding_mask,
    split_heads,
)
from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.ir.graph import Graph, Node, Value

FILTER = -10000.0
LOWEST = -3.4028234663852886e38
HALF_LOWEST = -65504.0
QUERY, KEY, VALUE, BIAS, PADDING, ADDED, PAST_KEY, PAST_VALUE, SHARED, BEAMS = range(10)
Heads = tuple[Value, Value, Value]


def lower(graph: Graph, node: Node) -> None:
    """Replace the node.

    Raises:
        UnsupportedError: shared buffers, beams, or a shape whose rank is not known.
    """
    at = Lowering(graph, node)
    if at.given(SHARED) is not None or at.given(BEAMS) is not None:
        raise at.refuse("a past buffer that is shared or sorted by beams")
    query, key, value = heads_of(at)
    if at.given(PAST_KEY) is not None:
        key = at.add("Concat", at.need(PAST_KEY), key, axis=2)
        value = at.add("Concat", at.need(PAST_VALUE), value, axis=2)
    padding = at.given(PADDING)
    mask = whole_mask(at, query, key, padding, at.given(ADDED))
    mixed = attend(at, query, key, value, mask, float(at.option("scale", 0.0)))
    at.finish(merge_heads(at, mixed), key, value)


def whole_mask(
    at: Lowering, query: Value, key: Value, padding: Value | None, added: Value | None
) -> Value | None:
    """Return what is added to the scores: padding, direction and bias; None for nothing."""
    queries, positions = at.dim(query, 2), at.dim(key, 2)
    mask = added
    if padding is not None:
        seen = padding_mask(at, padding, positions, at.dim(query, 0))
        filtered = added_mask(at, seen, float(at.option("mask_filter_value", FILTER)), query)
        mask = filtered if mask is None else at.add("Add", mask, filtered)
    if at.option("unidirectional", 0):
        lowest = HALF_LOWEST if query.dtype == "float16" else LOWEST
        directed = added_mask(at, causal_mask(at, queries, positions), lowest, query)
        mask = directed if mask is None else at.add("Add", mask, directed)
    return mask


def heads_of(at: Lowering) -> Heads:
    """Return query, key and value [batch, heads, length, size] with the bias added."""
    heads = int(at.required("num_heads"))
    biases = biases_of(at)
    if at.rank(QUERY) == 5:
        parts = unpacked(at, at.need(QUERY), 3)
        query, key, value = (
            biased(at, part, bias, heads) for part, bias in zip(parts, biases, strict=True)
        )
        return query, key, value
    query = split_heads(at, plus(at, at.need(QUERY), biases[0]), heads)
    if at.rank(KEY) == 5:
        key, value = unpacked(at, at.need(KEY), 2)
        return query, biased(at, key, biases[1], heads), biased(at, value, biases[2], heads)
    if at.rank(KEY) == 4:
        return query, at.need(KEY), at.need(VALUE)
    key = split_heads(at, plus(at, at.need(KEY), biases[1]), heads)
    return query, key, split_heads(at, plus(at, at.need(VALUE), biases[2]), heads)


def unpacked(at: Lowering, value: Value, count: int) -> list[Value]:
    """Return the parts [batch, length, heads, size] of [batch, length, heads, count, size]."""
    parts = at.many("Split", [value], count, axis=3, num_outputs=count)
    return [at.add("Squeeze", part, at.ints(3)) for part in parts]


def biased(at: Lowering, part: Value, bias: Value | None, heads: int) -> Value:
    """Return [batch, heads, length, size] of [batch, length, heads, size] plus a bias."""
    if bias is not None:
        part = at.add("Add", part, at.reshape(bias, heads, -1))
    return at.transpose(part, 0, 2, 1, 3)


def plus(at: Lowering, value: Value, bias: Value | None) -> Value:
    """Return value + bias."""
    return value if bias is None else at.add("Add", value, bias)


def biases_of(at: Lowering) -> list[Value | None]:
    """Return the biases of query, key and value.

    Raises:
        UnsupportedError: their widths are not known.
    """
    bias = at.given(BIAS)
    if bias is None:
        return [None, None, None]
    total = bias.shape[0] if bias.shape else None
    if not isinstance(total, int):
        raise at.refuse(f"a bias of shape {bias.shape}")
    width = total // 3
    query = at.need(QUERY)
    if query.shape is not None and len(query.shape) == 3 and isinstance(query.shape[-1], int):
        width = query.shape[-1]
    sizes = at.ints(width, width, total - 2 * width)
    return list(at.many("Split", [bias, sizes], 3, axis=0))
