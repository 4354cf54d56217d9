"""Operators that order and count: TopK, Unique, NonZero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Dim, Node
from halfbyte.ir.ops.older_forms import Lift, older, renumbered
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    as_array,
    axis_of,
    common_dtype,
    integers,
    ints,
    known_ints,
    normal,
    required_input,
)


def comparable(data: Array) -> Array:
    """Return an array that numpy can sort, in the same order."""
    return data.astype(np.float32) if data.dtype.kind == "V" else data


def infer_top_k(node: Node) -> list[ValueType]:
    """Infer: the axis as long as the constant K."""
    data, k = required_input(node, 0), known_ints(required_input(node, 1))
    dtype = common_dtype(node, [0])
    if data.shape is None:
        return [ValueType(dtype, None), ValueType("int64", None)]
    axis = axis_of(node, node.attributes.get("axis", -1), len(data.shape))
    length, wanted = data.shape[axis], UNKNOWN if k is None else k[0]
    if isinstance(length, int) and isinstance(wanted, int) and not 0 <= wanted <= length:
        raise GraphError(node.label, f"K is {wanted}, 0 to {length} was required")
    shape = (*data.shape[:axis], wanted, *data.shape[axis + 1 :])
    return [ValueType(dtype, shape), ValueType("int64", shape)]


def evaluate_top_k(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return the largest or smallest values and their places; of equals the first."""
    data, k = as_array(inputs[0]), integers(inputs[1])[0]
    axis = attributes["axis"] % data.ndim
    keys = comparable(data)
    if attributes["largest"]:
        # A stable sort of the reversed axis, read backwards, keeps the first of equals first.
        order = np.argsort(np.flip(keys, axis), axis=axis, kind="stable")
        order = keys.shape[axis] - 1 - np.flip(order, axis)
    else:
        order = np.argsort(keys, axis=axis, kind="stable")
    places = np.take(order, np.arange(k), axis).astype(np.int64)
    return [np.take_along_axis(data, places, axis), places]


def infer_unique(node: Node) -> list[ValueType]:
    """Infer: dtypes; lengths depend on values."""
    shape, axis = required_input(node, 0).shape, node.attributes.get("axis")
    dims: tuple[Dim, ...] | None = (UNKNOWN,)
    if axis is not None:
        dims = None
        if shape is not None:
            place = axis_of(node, axis, len(shape))
            dims = (*shape[:place], UNKNOWN, *shape[place + 1 :])
    counts = [ValueType("int64", (UNKNOWN,))] * 3
    return [ValueType(common_dtype(node, [0]), dims), *counts][: len(node.outputs)]


def evaluate_unique(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return distinct values or slices, first places, places in the result, counts."""
    data, axis = as_array(inputs[0]), attributes["axis"]
    # Ranks of the values order slices of any dtype, strings included.
    ranks = np.unique(comparable(data).reshape(-1), return_inverse=True)[1].reshape(-1)
    keys = ranks if axis is None else ranks.reshape(data.shape)
    _, first, inverse, counts = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    inverse = inverse.reshape(-1)
    if not attributes["sorted"]:
        order = np.argsort(first, kind="stable")
        first, counts = first[order], counts[order]
        inverse = np.argsort(order, kind="stable")[inverse]
    values = data.reshape(-1)[first] if axis is None else np.take(data, first, axis)
    return [values, *(np.asarray(v, np.int64) for v in (first, inverse, counts))]


def infer_non_zero(node: Node) -> list[ValueType]:
    """Infer: one row for each axis."""
    shape = required_input(node, 0).shape
    return [ValueType("int64", (UNKNOWN if shape is None else len(shape), UNKNOWN))]


def evaluate_non_zero(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return the places of the elements that are not zero, one column for each."""
    data = as_array(inputs[0])
    held = data.astype(bool)
    if data.ndim == 0:
        return [np.empty((0, int(held)), np.int64)]
    return [np.asarray(np.nonzero(held), np.int64)]


ORDER = {"largest": Attribute("int", 1), "sorted": Attribute("int", 1)}
TOP_K = OpSpec(
    "TopK",
    (11, 24),
    ("X", "K"),
    ("Values", "Indices"),
    infer=infer_top_k,
    evaluate=evaluate_top_k,
    attributes={"axis": Attribute("int", -1)} | ORDER,
    cases=lambda: [
        Case("largest", [normal(58, 3, 5), ints(2)], outputs=2),
        Case("smallest", [normal(58, 3, 5), ints(2)], {"largest": 0, "axis": 0}, outputs=2),
        Case("ties", [np.asarray([[1, 3, 3, 1]], np.float32), ints(3)], outputs=2),
    ],
)


TOP_K_10 = renumbered(TOP_K, (10,), attributes={"axis": Attribute("int", -1)})
SPECS: tuple[OpSpec, ...] = (
    TOP_K,
    TOP_K_10,
    older(TOP_K_10, (1,), {"k": Lift(1)}, {"k": Attribute("int", required=True)}),
    OpSpec(
        "Unique",
        (11, 28),
        ("X",),
        ("Y", "indices?", "inverse_indices?", "counts?"),
        infer=infer_unique,
        evaluate=evaluate_unique,
        attributes={"axis": Attribute("int"), "sorted": Attribute("int", 1)},
        cases=lambda: [
            Case("sorted", [np.asarray([2, 1, 1, 3], np.float32)], outputs=4),
            Case("first", [np.asarray([2, 1, 1, 3], np.float32)], {"sorted": 0}, outputs=4),
            Case("rows", [np.asarray([[1, 0], [0, 3], [1, 0]])], {"axis": 0}, outputs=4),
        ],
    ),
    OpSpec(
        "NonZero",
        (9, 13),
        ("X",),
        ("Y",),
        infer=infer_non_zero,
        evaluate=evaluate_non_zero,
        cases=lambda: [Case("places", [np.asarray([[0, 1], [2, 0]], np.float32)])],
    ),
)
