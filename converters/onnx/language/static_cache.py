"""Attention over caches of a fixed length: TensorScatter writes them, Attention reads them.

Every layer has `key_cache.N` and `value_cache.N` [batch, key-value heads, capacity, head], which
leave as `updated_...` in the same shape, so that a runtime may write them in place.
`write_indices` [batch] says how many positions each sequence holds, `nonpad_kv_seqlen` [batch] how
many it holds after this step. Shorter texts of a batch are padded on the right: what follows a
position is never seen, and the next step overwrites it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from halfbyte.converters.onnx.language.attention import (
    BATCH,
    IDS,
    SEQUENCE,
    attention_scale,
    dimension,
    layer_of,
)
from halfbyte.converters.onnx.language.builder import FLOAT32, OnnxBuilder
from halfbyte.ir.graph import Node, Value

if TYPE_CHECKING:
    from halfbyte.converters.onnx.language.lowering import Lowering

WRITE_INDICES, LENGTHS, CAPACITY = "write_indices", "nonpad_kv_seqlen", "capacity"
CACHE, UPDATED = "{}_cache.{}", "updated_{}_cache.{}"
OPSET = 24  # the first with TensorScatter, and with nonpad_kv_seqlen


def external_cache(lowering: Lowering, node: Node) -> Value:
    """Lower halfbyte.CachedAttention to TensorScatter and Attention."""
    builder, attributes = lowering.builder, node.attributes
    heads, groups = attributes["num_heads"], attributes["num_kv_heads"]
    query, key, value = (lowering.required(v) for v in node.inputs[:3])
    window = int(attributes.get("window") or 0)
    caches = [
        _written(lowering, node, name, _split(builder, new, groups))
        for name, new in (("key", key), ("value", value))
    ]
    # onnxruntime has no left_window_size.
    mask = builder.once(("near", window), lambda: _near(lowering, window)) if window else None
    split = _split(builder, query, heads)
    name = node.outputs[0].name
    width = (value.shape or (0,))[-1]
    size = int(width) // groups if isinstance(width, int) else "head"
    mixed = builder.op(
        "Attention",
        *(split, *caches, mask, None, None, _lengths(builder)),
        name=f"{name}/heads",
        shape=(BATCH, heads, SEQUENCE, size),
        layer=node.layer,
        is_causal=1,
        scale=attention_scale(node, query, heads),
        softcap=float(attributes.get("softcap") or 0.0),
    )
    return _joined(builder, mixed, name)


def _lengths(builder: OnnxBuilder) -> Value:
    """Return the input that says how many positions each sequence holds with this step."""
    return builder.once(LENGTHS, lambda: builder.graph.add_input(LENGTHS, "int64", (BATCH,)))


def _starts(builder: OnnxBuilder) -> Value:
    """Return the input that says how many positions each sequence holds before this step."""
    make = builder.graph.add_input
    return builder.once(WRITE_INDICES, lambda: make(WRITE_INDICES, "int64", (BATCH,)))


def _written(lowering: Lowering, node: Node, name: str, new: Value) -> Value:
    """Return a layer's cache with new keys or values [batch, heads, sequence, head] in it."""
    builder, layer = lowering.builder, layer_of(node)
    state = lowering.source.states[node.attributes[f"{name}_state"]]
    shape = (BATCH, state.shape[1], CAPACITY, state.shape[3])
    starts = _starts(builder)
    _lengths(builder)
    cache = builder.graph.add_input(CACHE.format(name, layer), FLOAT32, shape)
    updated = builder.op(
        "TensorScatter",
        *(cache, new, starts),
        name=UPDATED.format(name, layer),
        shape=shape,
        layer=node.layer,
        axis=-2,
        mode="linear",
    )
    lowering.cache.past.append(cache)
    lowering.cache.present.append(updated)
    return updated


def _split(builder: OnnxBuilder, x: Value, heads: int) -> Value:
    """Return [batch, sequence, heads * head] as [batch, heads, sequence, head]."""
    width = (x.shape or (0,))[-1]
    size = int(width) // heads if isinstance(width, int) else "head"
    split = builder.op(
        "Reshape", x, builder.ints(0, 0, heads, -1), name=f"{x.name}/split",
        shape=(BATCH, SEQUENCE, heads, size), allowzero=0,
    )  # fmt: skip
    return builder.op(
        "Transpose", split, name=f"{x.name}/heads", shape=(BATCH, heads, SEQUENCE, size),
        perm=[0, 2, 1, 3],
    )  # fmt: skip


def _joined(builder: OnnxBuilder, x: Value, name: str) -> Value:
    """Return [batch, heads, sequence, head] as [batch, sequence, heads * head]."""
    batch, heads, sequence, size = x.shape or ()
    width = heads * size if isinstance(heads, int) and isinstance(size, int) else "hidden"
    turned = builder.op(
        "Transpose", x, name=f"{name}/turned", shape=(batch, sequence, heads, size),
        perm=[0, 2, 1, 3],
    )  # fmt: skip
    return builder.op(
        "Reshape", turned, builder.ints(0, 0, -1), name=name, shape=(batch, sequence, width),
        allowzero=0,
    )  # fmt: skip


def _near(lowering: Lowering, window: int) -> Value:
    """Return [batch, 1, sequence, capacity] bool: which positions are not too far back.

    A position p sees those above p - window; causality is Attention's own matter.
    """
    builder, stem = lowering.builder, "/attention/mask"
    first = builder.op(
        "Unsqueeze", _starts(builder), builder.ints(1, 2, 3), name=f"{stem}/first", dtype="int64",
        shape=(BATCH, 1, 1, 1),
    )  # fmt: skip
    steps = builder.once("steps", lambda: _steps(lowering))
    places = builder.op(
        "Add", first, steps, name=f"{stem}/places_{window}", dtype="int64",
        shape=(BATCH, 1, SEQUENCE, 1),
    )  # fmt: skip
    edge = builder.op(
        "Sub", places, builder.scalar(window), name=f"{stem}/edge_{window}", dtype="int64",
        shape=(BATCH, 1, SEQUENCE, 1),
    )  # fmt: skip
    keys = builder.once("slots", lambda: _range(lowering, lowering.cache.past[0], 2, CAPACITY))
    return builder.op(
        "Greater", keys, edge, name=f"{stem}/near_{window}", dtype="bool",
        shape=(BATCH, 1, SEQUENCE, CAPACITY),
    )  # fmt: skip


def _steps(lowering: Lowering) -> Value:
    """Return the new positions of a step from 0 on, [sequence, 1]."""
    ids = lowering.required(next(v for v in lowering.source.inputs if v.name == IDS))
    return lowering.builder.op(
        "Unsqueeze", _range(lowering, ids, 1, SEQUENCE), lowering.builder.ints(-1),
        name="/attention/mask/steps", dtype="int64", shape=(SEQUENCE, 1),
    )  # fmt: skip


def _range(lowering: Lowering, value: Value, axis: int, length: str) -> Value:
    """Return 0, 1, ... as many as a dimension has, [length]."""
    builder, stem = lowering.builder, f"/attention/{length}"
    count = dimension(builder, value, axis, stem)
    zero, one = builder.scalar(0), builder.scalar(1)
    return builder.op(
        "Range", zero, count, one, name=f"{stem}/Range", dtype="int64", shape=(length,)
    )
