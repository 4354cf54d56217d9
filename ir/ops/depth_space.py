"""Blocks of a plane moved into its depth and back: DepthToSpace, SpaceToDepth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Dim, Node
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

BLOCK_MODES = ("DCR", "CRD")


def block_shape(node: Node) -> tuple[int, tuple[Dim, ...] | None]:
    """Return the block size and the shape of the data.

    Raises:
        GraphError: the mode is unknown, the size is none, or the data has no four axes.
    """
    mode, shape = node.attributes.get("mode") or "DCR", required_input(node, 0).shape
    if mode not in BLOCK_MODES:
        raise GraphError(node.label, f"mode is {mode!r}; give one of {', '.join(BLOCK_MODES)}")
    if shape is not None and len(shape) != 4:
        raise GraphError(node.label, f"rank {len(shape)}, 4 was required; give [n, c, h, w]")
    size = int(node.attributes["blocksize"])
    if size < 1:
        raise GraphError(node.label, f"blocksize is {size}; give at least 1")
    return size, shape


def divided(node: Node, dim: Dim, by: int) -> Dim:
    """Return a dimension divided, `?` for a symbol.

    Raises:
        GraphError: it leaves a rest.
    """
    if not isinstance(dim, int):
        return UNKNOWN
    if dim % by:
        raise GraphError(node.label, f"length {dim} is no multiple of {by}; pad or crop it")
    return dim // by


def times(dim: Dim, factor: int) -> Dim:
    """Return a dimension multiplied, `?` for a symbol."""
    return dim * factor if isinstance(dim, int) else UNKNOWN


def infer_depth_to_space(node: Node) -> list[ValueType]:
    """Infer: channels divided by the block, height and width multiplied."""
    size, shape = block_shape(node)
    dtype = common_dtype(node, [0])
    if shape is None:
        return [ValueType(dtype, None)]
    channels = divided(node, shape[1], size * size)
    return [ValueType(dtype, (shape[0], channels, *(times(d, size) for d in shape[2:])))]


def infer_space_to_depth(node: Node) -> list[ValueType]:
    """Infer: channels multiplied by the block, height and width divided."""
    size, shape = block_shape(node)
    dtype = common_dtype(node, [0])
    if shape is None:
        return [ValueType(dtype, None)]
    sides = (divided(node, d, size) for d in shape[2:])
    return [ValueType(dtype, (shape[0], times(shape[1], size * size), *sides))]


def evaluate_depth_to_space(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Move blocks of channels into space; the mode says whether the block comes first."""
    data, size = np.asarray(inputs[0]), attributes["blocksize"]
    n, c, h, w = data.shape
    depth = c // (size * size)
    if attributes["mode"] == "CRD":
        moved = data.reshape(n, depth, size, size, h, w).transpose(0, 1, 4, 2, 5, 3)
    else:
        moved = data.reshape(n, size, size, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    return [moved.reshape(n, depth, h * size, w * size)]


def evaluate_space_to_depth(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Move blocks of space into channels; the mode says whether the block comes first."""
    data, size = np.asarray(inputs[0]), attributes["blocksize"]
    n, c, h, w = data.shape
    blocks = data.reshape(n, c, h // size, size, w // size, size)
    order = (0, 1, 3, 5, 2, 4) if attributes["mode"] == "CRD" else (0, 3, 5, 1, 2, 4)
    return [blocks.transpose(order).reshape(n, c * size * size, h // size, w // size)]


def depth_cases() -> list[Case]:
    """Return both orders of blocks."""
    x = normal(350, 2, 8, 2, 3)
    return [
        Case("depth_first", [x], {"blocksize": 2}),
        Case("columns_first", [x], {"blocksize": 2, "mode": "CRD"}),
    ]


def space_cases() -> list[Case]:
    """Return both orders of blocks."""
    x = normal(351, 1, 2, 4, 6)
    return [
        Case("depth_first", [x], {"blocksize": 2}),
        Case("columns_first", [x], {"blocksize": 2, "mode": "CRD"}),
    ]


BLOCK_ATTRIBUTES = {
    "blocksize": Attribute("int", required=True),
    "mode": Attribute("string", "DCR"),
}
SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "DepthToSpace",
        (1, 11, 13, 28),
        ("input",),
        ("output",),
        infer=infer_depth_to_space,
        evaluate=evaluate_depth_to_space,
        attributes=BLOCK_ATTRIBUTES,
        cases=depth_cases,
    ),
    OpSpec(
        "SpaceToDepth",
        (1, 13, 28),
        ("input",),
        ("output",),
        infer=infer_space_to_depth,
        evaluate=evaluate_space_to_depth,
        attributes=BLOCK_ATTRIBUTES,
        cases=space_cases,
    ),
)
