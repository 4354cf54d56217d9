"""Attention over the session's cache, and plain attention for encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from halfbyte.converters.architectures.layers.builder import FLOAT32, LayerBuilder
from halfbyte.converters.architectures.layers.norm import rms_norm
from halfbyte.converters.architectures.layers.rope import Rotary
from halfbyte.ir.graph import State, Value
from halfbyte.ir.roles import Role, WeightKey


@dataclass(frozen=True)
class Heads:
    """Shape and scale of an attention; window 0 sees every position."""

    query: int
    key_value: int
    size: int
    scale: float
    window: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any], window: int | None = None) -> Heads:
        """Return the heads of a canonical config, with the usual scale."""
        size = int(config["head_dim"])
        query, key_value = config["num_attention_heads"], config["num_key_value_heads"]
        return cls(query, key_value, size, size**-0.5, window or 0)


def cached_attention(
    builder: LayerBuilder, query: Value, key: Value, value: Value, heads: Heads, layer: int
) -> Value:
    """Append key and value [batch, sequence, kv_heads * size] to the cache and attend causally."""
    for name in ("key_cache", "value_cache"):
        shape = ("batch", heads.key_value, "capacity", heads.size)
        window = heads.window or None
        builder.graph.add_state(State(f"{name}.{layer}", FLOAT32, shape, 2, window, layer))
    return builder.op(
        "CachedAttention",
        query,
        key,
        value,
        name=f"layers.{layer}.attention.context",
        layer=layer,
        causal=1,
        key_state=f"key_cache.{layer}",
        value_state=f"value_cache.{layer}",
        **_attributes(heads),
    )


def encoder_attention(
    builder: LayerBuilder,
    states: tuple[Value, Value, Value],
    mask: Value,
    heads: Heads,
    layer: int,
) -> Value:
    """Attend over the whole sequence where mask [batch, sequence] is 1."""
    name = f"layers.{layer}.attention.context"
    attributes = _attributes(heads)
    return builder.op(
        "CachedAttention", *states, mask, name=name, layer=layer, causal=0, **attributes
    )


def _attributes(heads: Heads) -> dict[str, Any]:
    return {
        "num_heads": heads.query,
        "num_kv_heads": heads.key_value,
        "scale": heads.scale,
        "window": heads.window,
        "softcap": 0.0,
    }


def self_attention(
    builder: LayerBuilder, x: Value, heads: Heads, rope: Rotary, epsilon: float, layer: int
) -> Value:
    """Project, normalize heads where the model has such norms, rotate, attend, project back."""
    stem = f"layers.{layer}.attention"
    query = builder.linear(x, Role.ATTENTION_QUERY, f"{stem}.query", layer)
    key = builder.linear(x, Role.ATTENTION_KEY, f"{stem}.key", layer)
    value = builder.linear(x, Role.ATTENTION_VALUE, f"{stem}.value", layer)
    norms = ((Role.ATTENTION_QUERY_NORM, "query"), (Role.ATTENTION_KEY_NORM, "key"))
    pair = [(query, heads.query), (key, heads.key_value)]
    for index, (role, name) in enumerate(norms):
        states, count = pair[index]
        if WeightKey(role, layer) in builder.weights:
            states = _head_norm(builder, states, role, (count, heads.size, epsilon), layer, name)
        pair[index] = rope.apply(builder, states, count, f"{stem}.rotated_{name}", layer), count
    context = cached_attention(builder, pair[0][0], pair[1][0], value, heads, layer)
    return builder.linear(context, Role.ATTENTION_OUTPUT, f"{stem}.output", layer)


def _head_norm(
    builder: LayerBuilder,
    x: Value,
    role: Role,
    shape: tuple[int, int, float],
    layer: int,
    name: str,
) -> Value:
    """Normalize each head of x [batch, sequence, heads * size] by itself."""
    count, size, epsilon = shape
    stem = f"layers.{layer}.attention.{name}"
    leading = (x.shape or ())[:-1]
    split = builder.constant(f"split_{count}_heads", np.asarray([0, 0, count, size], np.int64))
    joined = builder.constant(f"join_{count}_heads", np.asarray([0, 0, count * size], np.int64))
    heads = builder.op(
        "Reshape", x, split, name=f"{stem}_heads", layer=layer, shape=(*leading, count, size)
    )
    normed = rms_norm(builder, heads, role, epsilon, f"{stem}_norm", layer)
    return builder.op("Reshape", normed, joined, name=f"{stem}_normed", layer=layer, shape=x.shape)
