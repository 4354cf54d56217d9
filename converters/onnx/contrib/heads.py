"""Attention of heads, as the attention operators of onnxruntime share it."""

from __future__ import annotations

from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.ir.graph import Value


def split_heads(at: Lowering, value: Value, heads: int) -> Value:
    """Return [batch, heads, length, size] of [batch, length, heads * size]."""
    return at.transpose(at.reshape(value, 0, 0, heads, -1), 0, 2, 1, 3)


def merge_heads(at: Lowering, value: Value) -> Value:
    """Return [batch, length, heads * size] of [batch, heads, length, size]."""
    return at.reshape(at.transpose(value, 0, 2, 1, 3), 0, 0, -1)


def steps(at: Lowering, count: Value) -> Value:
    """Return 0, 1, ... count - 1; count: int64 vector of one element."""
    return at.add("Range", at.scalar(0), at.add("Squeeze", count, at.ints(0)), at.scalar(1))


def attend(
    at: Lowering,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    scale: float,
    softcap: float = 0.0,
) -> Value:
    """Return ai.onnx's Attention; mask: bool, or a float that is added.

    All [batch, heads, length, size]; scale 0 means 1 / sqrt(size).
    """
    return at.add(
        "Attention", query, key, value, mask, scale=scale or None, softcap=softcap or None
    )


def attend_with_sink(
    at: Lowering,
    query: Value,
    key: Value,
    value: Value,
    mask: Value,
    options: tuple[float, float],
    heads: tuple[int, int],
    sink: Value,
) -> Value:
    """Return attention where each head has one more score that takes weight and gives nothing.

    mask: a float that is added. options: scale and softcap. heads: of the query, of the key.
    sink: [heads of the query].
    """
    scale, softcap = options
    groups, each = heads[1], heads[0] // heads[1]
    size = at.dim(query, 3)
    shape = at.add(
        "Concat", at.dim(query, 0), at.ints(groups, each), at.dim(query, 2), size, axis=0
    )
    wide = at.add("Reshape", query, shape)
    turned = at.transpose(at.add("Unsqueeze", key, at.ints(2)), 0, 1, 2, 4, 3)
    factor = at.number(scale) if scale else at.add("Reciprocal", root(at, size, query))
    scores = at.add("Mul", at.add("MatMul", wide, turned), factor)
    if softcap:
        capped = at.add("Tanh", at.add("Div", scores, at.number(softcap)))
        scores = at.add("Mul", capped, at.number(softcap))
    scores = at.add("Add", scores, at.add("Unsqueeze", mask, at.ints(1)))
    column = at.add("Shape", at.slice(scores, 4, 0, 1))
    extra = at.add("Expand", at.reshape(at.like(sink, query), 1, groups, each, 1, 1), column)
    weights = at.add("Softmax", at.add("Concat", scores, extra, axis=-1), axis=-1)
    weights = at.slice(weights, 4, 0, -1)
    mixed = at.add("MatMul", weights, at.add("Unsqueeze", value, at.ints(2)))
    last = at.add("Concat", at.dim(query, 0), at.ints(heads[0], -1), at.dim(value, 3), axis=0)
    return at.add("Reshape", mixed, last)


def root(at: Lowering, size: Value, like: Value) -> Value:
    """Return the square root of a whole number in the type of `like`."""
    return at.like(at.add("Sqrt", at.cast(at.add("Squeeze", size, at.ints(0)), "float32")), like)


def added_mask(at: Lowering, seen: Value, filter_value: float, like: Value) -> Value:
    """Return 0 where `seen`, `filter_value` elsewhere, in the type of `like`."""
    return at.add(
        "Where", seen, at.like(at.number(0.0), like), at.like(at.number(filter_value), like)
    )


def causal_mask(at: Lowering, queries: Value, positions: Value) -> Value:
    """Return bool [queries, positions]: the last query sees all; both int64 vectors of one."""
    own = at.add("Add", steps(at, queries), at.add("Sub", positions, queries))
    other = at.add("Unsqueeze", steps(at, positions), at.ints(0))
    return at.add("LessOrEqual", other, at.add("Unsqueeze", own, at.ints(1)))


def padding_mask(at: Lowering, mask: Value, positions: Value, batch: Value) -> Value:
    """Return bool that broadcasts to [batch, heads, queries, positions].

    mask: [batch] lengths, [2 * batch] ends and then starts, [batch, positions],
    [batch, queries, positions] or [batch, 1, most, most].

    Raises:
        UnsupportedError: another shape.
    """
    rank = None if mask.shape is None else len(mask.shape)
    if rank in (2, 3):
        seen = at.add("Not", at.add("Equal", mask, at.like(at.scalar(0), mask)))
        return at.add("Unsqueeze", seen, at.ints(1, 2) if rank == 2 else at.ints(1))
    if rank != 1:
        raise at.refuse(f"a mask of rank {rank}", ["1", "2", "3"])
    column = at.add("Unsqueeze", steps(at, positions), at.ints(0))
    rows = at.cast(mask, "int64")
    ends = at.add("Unsqueeze", at.slice(rows, 0, at.ints(0), batch), at.ints(1))
    seen = at.add("Less", column, ends)
    if doubled(mask, batch):
        starts = at.add(
            "Unsqueeze", at.add("Slice", rows, batch, at.add("Add", batch, batch)), at.ints(1)
        )
        seen = at.add("And", seen, at.add("GreaterOrEqual", column, starts))
    return at.add("Unsqueeze", seen, at.ints(1, 2))


def doubled(mask: Value, batch: Value) -> bool:
    """Whether a vector holds ends and starts: twice as many as the batch, where both are known."""
    known = None if batch.constant is None else int(batch.constant.numpy().reshape(-1)[0])
    length = mask.shape[0] if mask.shape else None
    return known is not None and length == 2 * known and known > 0
