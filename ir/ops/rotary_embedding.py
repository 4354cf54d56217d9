"""RotaryEmbedding: pairs of a head's values turned by angles of their position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import (
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


def infer_rotary(node: Node) -> list[ValueType]:
    """Infer: like the input; a rank 3 input needs `num_heads`."""
    data = required_input(node, 0)
    if data.shape is not None:
        if len(data.shape) not in (3, 4):
            raise GraphError(node.label, f"rank {len(data.shape)}, 3 or 4 was required")
        if len(data.shape) == 3 and not node.attributes.get("num_heads"):
            raise GraphError(node.label, "a rank 3 input needs attribute num_heads")
    return [ValueType(common_dtype(node, [0, 1, 2]), data.shape)]


def rotate(heads: Array, cos: Array, sin: Array, dim: int, interleaved: bool) -> Array:
    """Rotate the first `dim` of each head.

    heads: [batch, sequence, heads, size]; cos, sin: [batch, sequence, dim / 2].
    """
    wide = heads.astype(np.float64)
    half = dim // 2
    first = slice(0, dim, 2) if interleaved else slice(0, half)
    second = slice(1, dim, 2) if interleaved else slice(half, dim)
    c = np.asarray(cos, np.float64)[:, :, None, :]
    s = np.asarray(sin, np.float64)[:, :, None, :]
    result = wide.copy()
    result[..., first] = c * wide[..., first] - s * wide[..., second]
    result[..., second] = s * wide[..., first] + c * wide[..., second]
    return np.asarray(result.astype(heads.dtype))


def evaluate_rotary(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate RotaryEmbedding; input [b, s, heads * d] or [b, heads, s, d]."""
    data, cos, sin = inputs[:3]
    if len(inputs) > 3 and inputs[3] is not None:
        cos, sin = np.asarray(cos)[inputs[3]], np.asarray(sin)[inputs[3]]
    batch_first = data.ndim == 3
    heads = (
        data.reshape(*data.shape[:2], attributes["num_heads"], -1)
        if batch_first
        else data.transpose(0, 2, 1, 3)
    )
    dim = attributes["rotary_embedding_dim"] or heads.shape[-1]
    turned = rotate(heads, cos, sin, dim, bool(attributes["interleaved"]))
    if batch_first:
        return [turned.reshape(data.shape)]
    return [np.asarray(turned.transpose(0, 2, 1, 3), order="C")]


def rotary_cases() -> list[Case]:
    """Return both pair orders, partial rotation, rank 4, position ids."""
    angles = normal(130, 2, 3, 4)
    cos, sin = np.cos(angles), np.sin(angles)
    data = normal(131, 2, 3, 32)
    tables = [np.cos(normal(132, 9, 4)), np.sin(normal(132, 9, 4))]
    ids = np.asarray([[0, 1, 2], [6, 7, 8]])
    return [
        Case("half", [data, cos, sin], {"num_heads": 4}),
        Case("pairs", [data, cos, sin], {"num_heads": 4, "interleaved": 1}),
        Case("partial", [data, cos, sin], {"num_heads": 2, "rotary_embedding_dim": 8}),
        Case("rank4", [normal(133, 2, 4, 3, 8), cos, sin]),
        Case("ids", [data, *tables, ids], {"num_heads": 4}),
    ]


SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "RotaryEmbedding",
        (23,),
        ("X", "cos_cache", "sin_cache", "position_ids?"),
        ("Y",),
        infer=infer_rotary,
        evaluate=evaluate_rotary,
        attributes={
            "interleaved": Attribute("int", 0),
            "num_heads": Attribute("int"),
            "rotary_embedding_dim": Attribute("int", 0),
        },
        cases=rotary_cases,
    ),
)
