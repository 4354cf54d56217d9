"""The standard's Attention and TensorScatter, which writes the caches that it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import dtype_name, numpy_dtype
from halfbyte.ir.graph import Dim, Node
from halfbyte.ir.ops.cached_attention import split_heads
from halfbyte.ir.ops.convolution import work_dtype
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    axis_of,
    common_dtype,
    input_at,
    normal,
    required_input,
)

SCATTER_MODES = ("linear", "circular")


def head_dims(node: Node, index: int, name: str) -> tuple[Dim, ...] | None:
    """Return [batch, heads, sequence, size] of an input of rank 3 or 4.

    Raises:
        GraphError: the rank is another, or the heads do not divide the width.
    """
    shape = required_input(node, index).shape
    if shape is None or len(shape) == 4:
        return shape
    heads = node.attributes.get(name)
    if len(shape) != 3 or not heads:
        raise GraphError(
            node.label, f"input {index} has rank {len(shape)}; give rank 4, or rank 3 with {name}"
        )
    width = shape[2]
    if isinstance(width, int) and width % heads:
        raise GraphError(node.label, f"width {width} is no multiple of {name} {heads}")
    return (shape[0], heads, shape[1], width // heads if isinstance(width, int) else UNKNOWN)


def added(past: Dim | None, new: Dim) -> Dim:
    """Return the sum of two lengths, `?` where it is not known."""
    if past is None:
        return new
    return past + new if isinstance(past, int) and isinstance(new, int) else UNKNOWN


def infer_attention(node: Node) -> list[ValueType]:
    """Infer: like the query with the size of a value head, the caches, the scores.

    Raises:
        GraphError: heads or inputs do not fit each other.
    """
    query, key = head_dims(node, 0, "q_num_heads"), head_dims(node, 1, "kv_num_heads")
    value = head_dims(node, 2, "kv_num_heads")
    pasts = [input_at(node, i) for i in (4, 5)]
    if (pasts[0] is None) != (pasts[1] is None):
        raise GraphError(node.label, "past_key and past_value go together; give both")
    if pasts[0] is not None and input_at(node, 6) is not None:
        raise GraphError(node.label, "nonpad_kv_seqlen is for caches kept outside; give no past")
    dtype, value_dtype = common_dtype(node, [0, 1]), common_dtype(node, [2])
    kinds = [ValueType(dtype, None), *[ValueType(t, None) for t in (dtype, value_dtype, dtype)]]
    if query is None or key is None or value is None:
        return kinds[: max(1, len(node.outputs))]
    heads, groups = query[1], key[1]
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise GraphError(node.label, f"{heads} query heads are no multiple of {groups}")
    past = pasts[0].shape[2] if pasts[0] is not None and pasts[0].shape else None
    total = UNKNOWN if pasts[0] is not None and past is None else added(past, key[2])
    result: tuple[Dim, ...] = (*query[:3], value[3])
    if len(required_input(node, 0).shape or ()) == 3:
        size, width = value[3], UNKNOWN
        if isinstance(heads, int) and isinstance(size, int):
            width = heads * size
        result = (query[0], query[2], width)
    shapes = [result, (*key[:2], total, key[3]), (*value[:2], total, value[3]), (*query[:3], total)]
    typed = [ValueType(k.dtype, s) for k, s in zip(kinds, shapes, strict=True)]
    return typed[: max(1, len(node.outputs))]


def allowed(
    queries: int, keys: int, offset: NDArray[np.int64], attributes: Mapping[str, Any]
) -> NDArray[np.bool_]:
    """Return [batch or 1, 1, queries, keys]: what causality and the window let a query see.

    offset: the position of the first query, one per sample or one for all.
    """
    distance = np.arange(keys) - (np.arange(queries)[:, None] + offset.reshape(-1, 1, 1, 1))
    seen = np.ones(distance.shape, np.bool_)
    left, right = (attributes.get(f"{side}_window_size", -1) for side in ("left", "right"))
    if attributes["is_causal"]:
        seen &= distance <= 0
    if left >= 0:
        seen &= -distance <= left
    if right >= 0:
        seen &= distance <= right
    return seen


def seen_keys(
    queries: int, keys: int, held: int | None, valid: Array | None, attributes: Mapping[str, Any]
) -> NDArray[np.bool_]:
    """Return [batch or 1, 1, queries, keys]: which keys each query may see.

    held: keys of the past, where they are an input. valid: how many keys count, [batch].
    """
    offset = np.zeros(1, np.int64)
    if held is not None:
        offset = np.asarray([held])
    elif valid is not None:
        offset = valid.reshape(-1).astype(np.int64) - queries
    seen = allowed(queries, keys, offset, attributes)
    return seen if valid is None else seen & (np.arange(keys) < valid.reshape(-1, 1, 1, 1))


def bias_of(mask: Array | None, seen: NDArray[np.bool_], keys: int) -> NDArray[np.float64]:
    """Return what is added to the scores: the mask, and minus infinity where nothing is seen."""
    bias: NDArray[np.float64] = np.where(seen, 0.0, -np.inf)
    if mask is None:
        return bias
    missing = [(0, 0)] * (mask.ndim - 1) + [(0, max(0, keys - mask.shape[-1]))]
    shown = np.where(mask, 0.0, -np.inf) if mask.dtype == np.bool_ else mask.astype(np.float64)
    return bias + np.pad(shown, missing, constant_values=-np.inf)


def probabilities(scores: Array, bias: Array, dtype: np.dtype[Any]) -> Array:
    """Return the softmax over the last axis in a dtype; rows that see nothing become zeros."""
    given = scores.astype(dtype)
    top = given.max(axis=-1, keepdims=True, initial=-np.inf)
    blind = np.isneginf(bias.max(axis=-1, keepdims=True, initial=-np.inf)) | np.isneginf(top)
    powers = np.exp(given - np.where(blind, np.zeros((), dtype), top))
    total = powers.sum(axis=-1, keepdims=True)
    return np.where(blind, np.zeros((), dtype), powers / np.where(blind, 1, total).astype(dtype))


def grouped_product(left: Array, right: Array) -> Array:
    """Return left [b, heads, m, k] times right [b, groups, k, n], heads sharing a group."""
    batch, heads = left.shape[:2]
    groups = right.shape[1]
    shared = left.reshape(batch, groups, heads // groups, *left.shape[2:])
    product = shared @ right[:, :, None]
    return product.reshape(batch, heads, *product.shape[3:])


def evaluate_attention(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Attention; sums run in float64 unless they are many."""
    given = [None if v is None else np.asarray(v) for v in inputs] + [None] * (7 - len(inputs))
    query, key, value, mask, past_key, past_value, valid = given
    if query is None or key is None or value is None:
        raise GraphError("Attention", "Q, K and V were required; give all of them")
    dtype, flat = query.dtype, query.ndim == 3
    if flat:
        query = split_heads(query, attributes["q_num_heads"])
        key, value = (split_heads(v, attributes["kv_num_heads"]) for v in (key, value))
    if past_key is not None and past_value is not None:
        key = np.concatenate([past_key, key], axis=2)
        value = np.concatenate([past_value, value], axis=2)
    queries, keys = query.shape[2], key.shape[2]
    held = None if past_key is None else past_key.shape[2]
    seen = seen_keys(queries, keys, held, valid, attributes)
    work = work_dtype(str(dtype), query.size * keys)
    scale = attributes["scale"]
    root = np.sqrt(1.0 / np.sqrt(query.shape[-1]) if scale is None else scale)
    half = np.asarray(root, work)
    raw = grouped_product(query.astype(work) * half, (key.astype(work) * half).swapaxes(-1, -2))
    softcap = attributes["softcap"]
    capped = np.tanh(raw / work.type(softcap)) * work.type(softcap) if softcap else raw
    bias = bias_of(mask, seen, keys)
    scores = capped + bias.astype(work)
    precision = attributes["softmax_precision"]
    asked = work if precision is None else numpy_dtype(dtype_name(precision))
    # What runs wider than asked for is only closer to the exact result.
    weights = probabilities(scores, bias, asked if asked.itemsize < 4 else work)
    mixed = grouped_product(weights.astype(work), value.astype(work)).astype(dtype)
    if flat:
        mixed = mixed.transpose(0, 2, 1, 3).reshape(mixed.shape[0], queries, -1)
    shown = (raw, capped, scores, weights)[attributes["qk_matmul_output_mode"]]
    results = [np.ascontiguousarray(mixed), key, value]
    if context.outputs > 3:
        whole = (*query.shape[:3], keys)
        results.append(np.broadcast_to(shown.astype(dtype), whole))
    return results[: max(1, context.outputs)]


def infer_scatter(node: Node) -> list[ValueType]:
    """Infer: like the cache.

    Raises:
        GraphError: the mode is unknown, or the axis is the batch.
    """
    mode, cache = node.attributes.get("mode") or "linear", required_input(node, 0)
    if mode not in SCATTER_MODES:
        known = ", ".join(SCATTER_MODES)
        raise GraphError(node.label, f"mode is {mode!r}; give one of {known}")
    if cache.shape is not None:
        axis = node.attributes.get("axis", -2)
        if axis_of(node, axis, len(cache.shape)) == 0:
            raise GraphError(node.label, f"axis {axis} is the batch; give that of the sequence")
    return [ValueType(common_dtype(node, [0, 1]), cache.shape)]


def evaluate_scatter(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate TensorScatter: a copy of the cache with each sample's update written in.

    Raises:
        GraphError: a linear update reaches past the end.
    """
    cache, update = np.asarray(inputs[0]), np.asarray(inputs[1])
    starts = np.zeros(cache.shape[0], np.int64)
    if len(inputs) > 2 and inputs[2] is not None:
        starts = np.asarray(inputs[2], np.int64)
    axis = attributes["axis"] % cache.ndim
    length, new = cache.shape[axis], update.shape[axis]
    places = starts[:, None] + np.arange(new)
    if attributes["mode"] == "circular":
        places = places % length
    elif new and starts.size and (starts.min() < 0 or starts.max() + new > length):
        raise GraphError(
            "TensorScatter", f"positions up to {starts.max() + new} of a cache of {length}; grow it"
        )
    result = cache.copy()
    # Both views have the sequence right after the batch.
    moved = np.moveaxis(result, axis, 1)
    moved[np.arange(cache.shape[0])[:, None], places] = np.moveaxis(update, axis, 1)
    return [result]


def attention_cases() -> list[Case]:
    """Return grouped heads with a mask, a causal step over caches, and a window over padding."""
    q, k, v = normal(360, 2, 4, 3, 8), normal(361, 2, 2, 5, 8), normal(362, 2, 2, 5, 6)
    mask = normal(363, 2, 1, 3, 5) > 0
    packed = [normal(364, 1, 2, 16), normal(365, 1, 2, 8), normal(366, 1, 2, 8)]
    past = [normal(367, 1, 1, 3, 8), normal(368, 1, 1, 3, 8)]
    heads = {"q_num_heads": 2, "kv_num_heads": 1, "is_causal": 1}
    window = {"left_window_size": 1, "is_causal": 1, "softcap": 2.0, "scale": 0.5}
    return [
        Case("mask", [q, k, v, mask]),
        Case("past", [*packed, None, *past], heads, outputs=3),
        Case("window", [q, k, v, None, None, None, np.asarray([5, 4])], window),
    ]


def scatter_cases() -> list[Case]:
    """Return a write at the start, one per sample, and one around the end."""
    cache, update = normal(369, 2, 2, 5, 3), normal(370, 2, 2, 2, 3)
    return [
        Case("start", [cache, update]),
        Case("samples", [cache, update, np.asarray([3, 1])]),
        Case("circular", [cache, update, np.asarray([4, 2])], {"mode": "circular"}),
    ]


SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "Attention",
        (23, 24, 25),
        ("Q", "K", "V", "attn_mask?", "past_key?", "past_value?", "nonpad_kv_seqlen?"),
        ("Y", "present_key?", "present_value?", "qk_matmul_output?"),
        infer=infer_attention,
        evaluate=evaluate_attention,
        attributes={
            "is_causal": Attribute("int", 0),
            "kv_num_heads": Attribute("int"),
            "left_window_size": Attribute("int", -1),
            "q_num_heads": Attribute("int"),
            "qk_matmul_output_mode": Attribute("int", 0),
            "right_window_size": Attribute("int", -1),
            "scale": Attribute("float"),
            "softcap": Attribute("float", 0.0),
            "softmax_precision": Attribute("dtype"),
        },
        cases=attention_cases,
    ),
    OpSpec(
        "TensorScatter",
        (24,),
        ("past_cache", "update", "write_indices?"),
        ("present_cache",),
        infer=infer_scatter,
        evaluate=evaluate_scatter,
        attributes={"axis": Attribute("int", -2), "mode": Attribute("string", "linear")},
        cases=scatter_cases,
    ),
)
