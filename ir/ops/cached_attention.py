"""Attention over a session's states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.softmax import softmax
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    common_dtype,
    normal,
    required_input,
)


def infer_attention(node: Node) -> list[ValueType]:
    """Infer: like the query, with the size of a value head; widths agree with the head counts."""
    query, key, mixed = (required_input(node, i) for i in range(3))
    heads, groups = node.attributes.get("num_heads"), node.attributes.get("num_kv_heads")
    if not heads or not groups or heads % groups:
        raise GraphError(
            node.label, f"num_heads {heads} must be a multiple of num_kv_heads {groups}"
        )
    for name in ("key_state", "value_state"):
        if bool(node.attributes.get(name)) != bool(node.attributes.get("key_state")):
            raise GraphError(node.label, "key_state and value_state go together; give both")
    for value, count in ((query, heads), (key, groups), (mixed, groups)):
        if value.shape is None:
            continue
        width = value.shape[-1]
        if len(value.shape) != 3 or (isinstance(width, int) and width % count):
            raise GraphError(node.label, f"shape {list(value.shape)} is no [b, s, {count} * d]")
    shape = query.shape
    if shape is not None and mixed.shape is not None:
        width = mixed.shape[-1]
        shape = (*shape[:-1], width // groups * heads if isinstance(width, int) else UNKNOWN)
    return [ValueType(common_dtype(node, [0, 1, 2]), shape)]


def visible(queries: int, positions: int, causal: bool, window: int) -> NDArray[np.bool_]:
    """Return [queries, positions]: which positions the last `queries` positions may see.

    window: how many positions back, its own included; 0 means all.
    """
    own = np.arange(positions - queries, positions)[:, None]
    other = np.arange(positions)[None, :]
    seen = np.ones((queries, positions), np.bool_)
    if causal:
        seen &= other <= own
    if window > 0:
        seen &= own - other < window
    return seen


def attend(
    query: Array, keys: Array, values: Array, seen: Array, scale: float, softcap: float
) -> Array:
    """Return attention of grouped heads, computed in float64.

    query: [b, heads, s, d]; keys, values: [b, kv_heads, positions, d]; seen broadcasts to
    [b, kv_heads, heads / kv_heads, s, positions]; returns [b, s, heads * d] float64.
    """
    batch, heads, length, size = query.shape
    groups = keys.shape[1]
    grouped = query.reshape(batch, groups, heads // groups, length, size).astype(np.float64)
    scores = grouped @ keys[:, :, None].astype(np.float64).swapaxes(-1, -2) * scale
    if softcap:
        scores = np.tanh(scores / softcap) * softcap
    scores = np.where(seen, scores, -np.inf)
    # A row that sees nothing (a padded batch entry) becomes zeros, not NaN.
    blind = ~np.isfinite(scores.max(axis=-1, keepdims=True, initial=-np.inf))
    weights = softmax(np.where(blind, 0.0, scores), -1) * ~blind
    mixed = weights @ values[:, :, None].astype(np.float64)
    return np.asarray(
        mixed.reshape(batch, heads, length, -1).transpose(0, 2, 1, 3).reshape(batch, length, -1)
    )


def split_heads(data: Array, heads: int) -> Array:
    """Return [b, s, heads * d] as [b, heads, s, d]."""
    return np.asarray(data.reshape(data.shape[0], data.shape[1], heads, -1).transpose(0, 2, 1, 3))


def evaluate_attention(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate CachedAttention; states, where named, are extended in place."""
    query, keys, values = (np.asarray(v) for v in inputs[:3])
    heads, groups = attributes["num_heads"], attributes["num_kv_heads"]
    q, k, v = split_heads(query, heads), split_heads(keys, groups), split_heads(values, groups)
    if attributes["key_state"]:
        if context.cache is None:
            raise GraphError(attributes["key_state"], "a state needs a session; run through one")
        k = context.cache.extend(attributes["key_state"], k)
        v = context.cache.extend(attributes["value_state"], v)
    seen = visible(q.shape[2], k.shape[2], bool(attributes["causal"]), attributes["window"])
    if len(inputs) > 3 and inputs[3] is not None:
        mask = np.asarray(inputs[3]) != 0
        seen = seen & mask[:, None, None, None, :]
    scale = attributes["scale"] or 1.0 / np.sqrt(q.shape[-1])
    result = attend(q, k, v, seen, scale, attributes["softcap"])
    return [result.astype(query.dtype)]


def attention_cases() -> list[Case]:
    """Return plain, masked, causal, windowed, capped attention; with and without states."""
    q, k, v = normal(140, 2, 5, 32), normal(141, 2, 5, 16), normal(142, 2, 5, 16)
    base = {"num_heads": 4, "num_kv_heads": 2, "scale": 0.35}
    mask = np.asarray([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int64)
    held = {"k": normal(143, 2, 2, 6, 8), "v": normal(144, 2, 2, 6, 8)}
    named = base | {"key_state": "k", "value_state": "v"}
    step = [normal(145, 2, 1, 32), normal(146, 2, 1, 16), normal(147, 2, 1, 16)]
    return [
        Case("plain", [q, k, v], base | {"causal": 0}),
        Case("mask", [q, k, v, mask], base | {"causal": 0}),
        Case("causal", [q, k, v], base),
        Case("window", [q, k, v], base | {"window": 2}),
        Case("softcap", [q, k, v], base | {"softcap": 5.0}),
        Case("states_prefill", [q, k, v], named, states=held),
        Case("states_step", step, named, states=held),
        Case("states_window", step, named | {"window": 3}, states=held),
        Case("states_empty", [q, k, v], named, states={n: s[:, :, :0] for n, s in held.items()}),
    ]


SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "CachedAttention",
        (1,),
        ("Q", "K", "V", "mask?"),
        ("Y",),
        infer=infer_attention,
        evaluate=evaluate_attention,
        attributes={
            "num_heads": Attribute("int", required=True),
            "num_kv_heads": Attribute("int", required=True),
            "scale": Attribute("float", 0.0),
            "key_state": Attribute("string"),
            "value_state": Attribute("string"),
            "causal": Attribute("int", 1),
            "window": Attribute("int", 0),
            "softcap": Attribute("float", 0.0),
        },
        domain="halfbyte",
        cases=attention_cases,
    ),
)
