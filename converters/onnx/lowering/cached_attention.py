"""`halfbyte.CachedAttention` without states: Attention from opset 23 on, else matrix products."""

from __future__ import annotations

import math
from typing import Any

from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import Node, Value
from halfbyte.ir.ops.spec import attribute, input_at, required_input

ATTENTION_OPSET = 23
LOWEST = {"float16": -65504.0, "bfloat16": -3.3e38, "float32": -3.4e38, "float64": -1.7e308}


def lower(rewriter: Rewriter, node: Node) -> None:
    """Replace the node.

    Raises:
        UnsupportedError: it keeps states between runs, or its head size is not known.
    """
    if attribute(node, "key_state"):
        raise UnsupportedError(
            "attention over a state", f"node {node.label}", advice="write it as a language model"
        )
    window = int(attribute(node, "window", 0))
    if rewriter.opset >= ATTENTION_OPSET and window == 0:
        rewriter.replace(node, _attention(rewriter, node))
    else:
        rewriter.replace(node, _decomposed(rewriter, node, window))


def _key_mask(rewriter: Rewriter, node: Node, rank: int) -> Value | None:
    """Return the mask [batch, positions] as bool with axes of 1 between, None without one."""
    mask = input_at(node, 3)
    if mask is None:
        return None
    shape = rewriter.constant("mask_axes", [0, *(1,) * (rank - 2), -1])
    if mask.dtype != "bool":
        mask = rewriter.add("Cast", mask, to="bool")
    return rewriter.add("Reshape", mask, shape)


def _joined_axes(rewriter: Rewriter, axes: list[Value]) -> Value:
    return rewriter.add("Concat", *axes, axis=0)


def _attention(rewriter: Rewriter, node: Node) -> Value:
    query, key, value = (required_input(node, i) for i in range(3))
    extra: dict[str, Any] = {}
    if attribute(node, "scale", 0.0):
        extra["scale"] = float(attribute(node, "scale"))
    if attribute(node, "softcap", 0.0):
        extra["softcap"] = float(attribute(node, "softcap"))
    inputs = [query, key, value]
    mask = _key_mask(rewriter, node, 4)
    if mask is not None:
        # onnxruntime wants the queries' axis spelled out.
        ones = rewriter.constant("one_axis", [1])
        length = rewriter.add("Shape", query, start=1, end=2)
        inputs.append(
            rewriter.add("Expand", mask, _joined_axes(rewriter, [ones, ones, length, ones]))
        )
    return rewriter.add(
        "Attention",
        *inputs,
        q_num_heads=int(attribute(node, "num_heads")),
        kv_num_heads=int(attribute(node, "num_kv_heads")),
        is_causal=int(attribute(node, "causal", 1)),
        **extra,
    )


def _decomposed(rewriter: Rewriter, node: Node, window: int) -> Value:
    """Return softmax(scale * Q K^T, masked) V; [batch, kv_heads, (group,) sequence, size]."""
    heads, groups = int(attribute(node, "num_heads")), int(attribute(node, "num_kv_heads"))
    query, key, value = (required_input(node, i) for i in range(3))
    dtype = query.dtype or "float32"
    grouped = heads != groups
    split = [0, 0, groups, heads // groups, -1] if grouped else [0, 0, heads, -1]
    q = _turned(rewriter, query, split, [0, 2, 3, 1, 4] if grouped else [0, 2, 1, 3])
    narrow = [0, 0, groups, 1, -1] if grouped else [0, 0, groups, -1]
    k = _turned(rewriter, key, narrow, [0, 2, 3, 4, 1] if grouped else [0, 2, 3, 1])
    v = _turned(rewriter, value, narrow, [0, 2, 3, 1, 4] if grouped else [0, 2, 1, 3])
    scale = float(attribute(node, "scale", 0.0)) or _default_scale(node, query, heads)
    scores = rewriter.add("Mul", rewriter.add("MatMul", q, k), _number(rewriter, scale, dtype))
    softcap = float(attribute(node, "softcap", 0.0))
    if softcap:
        cap = _number(rewriter, softcap, dtype)
        scores = rewriter.add("Mul", rewriter.add("Tanh", rewriter.add("Div", scores, cap)), cap)
    weights = _weights(rewriter, node, scores, window, dtype, 5 if grouped else 4)
    mixed = rewriter.add("MatMul", weights, v)
    joined = rewriter.add("Transpose", mixed, perm=[0, 3, 1, 2, 4] if grouped else [0, 2, 1, 3])
    return rewriter.add(
        "Reshape", joined, rewriter.constant("join_heads", _joined(value, groups, heads))
    )


def _joined(value: Value, groups: int, heads: int) -> list[int]:
    width = value.shape[-1] if value.shape is not None else None
    return [0, 0, width // groups * heads if isinstance(width, int) else -1]


def _turned(rewriter: Rewriter, value: Value, shape: list[int], order: list[int]) -> Value:
    split = rewriter.add("Reshape", value, rewriter.constant("split_heads", shape))
    return rewriter.add("Transpose", split, perm=order)


def _default_scale(node: Node, query: Value, heads: int) -> float:
    width = query.shape[-1] if query.shape is not None else None
    if not isinstance(width, int):
        raise UnsupportedError("attention of unknown head size", f"node {node.label}")
    return 1.0 / math.sqrt(width // heads)


def _number(rewriter: Rewriter, value: float, dtype: str) -> Value:
    return rewriter.constant("attention", value, dtype)


def _weights(
    rewriter: Rewriter, node: Node, scores: Value, window: int, dtype: str, rank: int
) -> Value:
    """Return the softmax of the scores that may be seen; a row that sees nothing gets zeros."""
    key_mask = _key_mask(rewriter, node, rank)
    seen = _seen_positions(rewriter, scores, bool(attribute(node, "causal", 1)), window)
    if key_mask is not None:
        seen = key_mask if seen is None else rewriter.add("And", seen, key_mask)
    if seen is None:
        return rewriter.add("Softmax", scores, axis=-1)
    hidden = rewriter.add("Where", seen, scores, _number(rewriter, LOWEST[dtype], dtype))
    weights = rewriter.add("Softmax", hidden, axis=-1)
    if key_mask is None:
        return weights
    return rewriter.add("Where", seen, weights, _number(rewriter, 0.0, dtype))


def _seen_positions(rewriter: Rewriter, scores: Value, causal: bool, window: int) -> Value | None:
    """Return [sequence, sequence] bool: what each position may see, None for everything."""
    if not causal and not window:
        return None
    length = rewriter.add("Gather", rewriter.add("Shape", scores), rewriter.constant("last", -1))
    zero, one = rewriter.constant("zero", 0), rewriter.constant("one", 1)
    positions = rewriter.add("Range", zero, length, one)
    own = rewriter.add("Reshape", positions, rewriter.constant("column", [-1, 1]))
    distance = rewriter.add("Sub", own, positions)
    seen = None
    if causal:
        seen = rewriter.add("Greater", distance, rewriter.constant("before", -1))
    if window:
        near = rewriter.add("Less", distance, rewriter.constant("window", window))
        seen = near if seen is None else rewriter.add("And", seen, near)
    return seen
