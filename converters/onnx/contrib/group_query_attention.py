"""GroupQueryAttention: rotary embedding, a cache filled to a length per row, grouped heads.

Row b of the batch holds seqlens_k[b] + 1 positions after the run; what is new stands behind the
held ones, except in a first run (as many new positions as there are in all), where it starts at 0
and shorter rows are padded on the right.
"""

from __future__ import annotations

from halfbyte.converters.onnx.contrib.heads import (
    attend,
    attend_with_sink,
    merge_heads,
    steps,
)
from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.ir.graph import Graph, Node, Value

(QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE, LENGTHS, TOTAL, COS, SIN, POSITIONS) = range(10)
(ADDED, SINK, KEY_SCALE, VALUE_SCALE, QUERY_NORM, KEY_NORM) = range(10, 16)
REFUSED = ("sliding_window_cache", "qk_output", "kv_cache_bit_width")


def lower(graph: Graph, node: Node) -> None:
    """Replace the node.

    Raises:
        UnsupportedError: a quantized or windowed cache, or the scores as an output.
    """
    at = Lowering(graph, node)
    for name in REFUSED:
        if at.option(name, 0):
            raise at.refuse(f"{name} {at.option(name)}", ["0"])
    if at.given(KEY_SCALE) is not None or at.given(VALUE_SCALE) is not None:
        raise at.refuse("a quantized cache")
    query, key, value = heads_of(at)
    new, total = at.dim(query, 2), at.cast(at.reshape(at.need(TOTAL), 1), "int64")
    held = held_lengths(at, new, total)
    if at.option("do_rotary", 0):
        positions = at.given(POSITIONS) or places(at, held, new)
        query, key = rotated(at, query, positions), rotated(at, key, positions)
    keys, present_key = extended(at, key, PAST_KEY, held, total)
    values, present_value = extended(at, value, PAST_VALUE, held, total)
    mixed = mix(at, query, keys, values, visible(at, places(at, held, new), total))
    at.finish(merge_heads(at, mixed), present_key, present_value)


def heads_of(at: Lowering) -> list[Value]:
    """Return query, key and value [batch, heads, length, size], normalized where asked."""
    heads, groups = int(at.required("num_heads")), int(at.required("kv_num_heads"))
    if at.given(KEY) is None:
        packed = at.reshape(at.need(QUERY), 0, 0, heads + 2 * groups, -1)
        parts = at.many("Split", [packed, at.ints(heads, groups, groups)], 3, axis=2)
    else:
        counts = ((QUERY, heads), (KEY, groups), (VALUE, groups))
        parts = [at.reshape(at.need(index), 0, 0, count, -1) for index, count in counts]
    epsilon = float(at.option("qk_norm_epsilon", 1e-6))
    for place, weight in ((0, at.given(QUERY_NORM)), (1, at.given(KEY_NORM))):
        if weight is not None:
            parts[place] = at.add("RMSNormalization", parts[place], weight, epsilon=epsilon)
    return [at.transpose(part, 0, 2, 1, 3) for part in parts]


def held_lengths(at: Lowering, new: Value, total: Value) -> Value:
    """Return int64 [batch]: how many positions each row held before."""
    lengths = at.cast(at.reshape(at.need(LENGTHS), -1), "int64")
    before = at.add("Sub", at.add("Add", lengths, at.scalar(1)), new)
    return at.add("Where", at.add("Equal", total, new), at.scalar(0), before)


def places(at: Lowering, held: Value, new: Value) -> Value:
    """Return int64 [batch, length]: the position of each new element."""
    return at.add("Add", at.add("Unsqueeze", held, at.ints(1)), steps(at, new))


def rotated(at: Lowering, value: Value, positions: Value) -> Value:
    """Return heads turned by their positions."""
    cos = at.need(COS)
    half = cos.shape[-1] if cos.shape else None
    return at.add(
        "RotaryEmbedding",
        value,
        cos,
        at.need(SIN),
        positions,
        interleaved=int(at.option("rotary_interleaved", 0)),
        rotary_embedding_dim=2 * half if isinstance(half, int) else 0,
    )


def extended(
    at: Lowering, value: Value, past: int, held: Value, total: Value
) -> tuple[Value, Value]:
    """Return the first `total` positions after the run, and the whole buffer.

    The buffer keeps the length of the past one, or grows to `total`.
    """
    old = at.given(past)
    if old is None:
        return value, value
    room = at.add("Max", at.add("Sub", total, at.dim(old, 2)), at.ints(0))
    pads = at.add("Concat", at.ints(0, 0, 0, 0, 0, 0), room, at.ints(0), axis=0)
    buffer = at.add("TensorScatter", at.add("Pad", old, pads), value, held, axis=-2)
    return at.slice(buffer, 2, 0, total), buffer


def visible(at: Lowering, own: Value, total: Value) -> Value:
    """Return bool [batch, 1, length, total]: which positions each new element sees."""
    other = at.add("Unsqueeze", steps(at, total), at.ints(0, 1, 2))
    if not at.option("causal", 1):
        lengths = at.cast(at.reshape(at.need(LENGTHS), -1, 1, 1, 1), "int64")
        return at.add("LessOrEqual", other, lengths)
    here = at.add("Unsqueeze", own, at.ints(1, 3))
    seen = at.add("LessOrEqual", other, here)
    window = int(at.option("local_window_size", -1))
    if window > 0:
        near = at.add("Less", at.add("Sub", here, other), at.scalar(window))
        seen = at.add("And", seen, near)
    return seen


def mix(at: Lowering, query: Value, keys: Value, values: Value, seen: Value) -> Value:
    """Return attention with bias, cap and sink where given."""
    scale, softcap = float(at.option("scale", 0.0)), float(at.option("softcap", 0.0))
    added, sink = at.given(ADDED), at.given(SINK)
    heads = int(at.required("num_heads"))
    if sink is None and at.option("smooth_softmax", 0) == 1:
        sink = at.like(at.add("Expand", at.number(0.0), at.ints(heads)), query)
    if added is None and sink is None:
        return attend(at, query, keys, values, seen, scale, softcap)
    zero = at.like(at.number(0.0), query) if added is None else added
    mask = at.add("Where", seen, zero, at.like(at.number(float("-inf")), query))
    if sink is None:
        return attend(at, query, keys, values, mask, scale, softcap)
    counts = heads, int(at.required("kv_num_heads"))
    return attend_with_sink(at, query, keys, values, mask, (scale, softcap), counts, sink)
