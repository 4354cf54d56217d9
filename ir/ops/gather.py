"""Operators that pick values: Gather, GatherElements, GatherND, Compress, OneHot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import FLOATING
from halfbyte.ir.graph import Dim, Node
from halfbyte.ir.ops.older_forms import renumbered
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    adapts,
    as_array,
    axis_of,
    common_dtype,
    integers,
    ints,
    known_array,
    known_ints,
    normal,
    one_case,
    operator,
    required_input,
)
from halfbyte.ir.tensor import Tensor


def infer_gather(node: Node) -> list[ValueType]:
    """Infer: the indexed axis replaced by the shape of the indices.

    A stored floating table gives the dtype that the output declares, float32 if none.
    """
    data, indices = required_input(node, 0), required_input(node, 1)
    dtype = data.dtype
    if adapts(data):
        declared = node.outputs[0].dtype
        dtype = declared if declared in FLOATING else "float32"
    if indices.dtype not in (None, "int64", "int32"):
        raise GraphError(node.label, f"indices are {indices.dtype}, int64 or int32 was required")
    if data.shape is None or indices.shape is None:
        return [ValueType(dtype, None)]
    axis = axis_of(node, node.attributes.get("axis", 0), len(data.shape))
    return [ValueType(dtype, (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]))]


def evaluate_gather(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Take slices by index; rows of an encoded table are decoded one by one."""
    table, indices = inputs[0], np.asarray(inputs[1])
    if not isinstance(table, Tensor):
        return [np.take(table, indices, axis=attributes["axis"])]
    if attributes["axis"] != 0 or len(table.shape) != 2:
        return [np.take(table.numpy(), indices, axis=attributes["axis"])]
    rows = np.empty((indices.size, table.columns), np.float32)
    for place, index in enumerate(indices.reshape(-1)):
        row = int(index) + (table.rows if index < 0 else 0)
        rows[place] = table.float32(row, row + 1)[0]
    return [rows.reshape(*indices.shape, table.columns)]


def infer_gather_elements(node: Node) -> list[ValueType]:
    """Infer: the shape of the indices."""
    shape = required_input(node, 0).shape
    if shape is not None:
        axis_of(node, node.attributes.get("axis", 0), len(shape))
    return [ValueType(common_dtype(node, [0]), required_input(node, 1).shape)]


def element_index(indices: Array, axis: int, shape: Sequence[int]) -> tuple[Array, ...]:
    """Return the index of one element for each of `indices`, which count along `axis`."""
    grid = list(np.ogrid[tuple(slice(n) for n in indices.shape)])
    length = shape[axis]
    if indices.size and (indices.min() < -length or indices.max() >= length):
        raise IndexError(f"an index is outside -{length}..{length - 1}")
    grid[axis] = np.where(indices < 0, indices + length, indices)
    return tuple(grid)


def evaluate_gather_elements(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Take one element for each index."""
    data, indices = as_array(inputs[0]), np.asarray(inputs[1])
    return [data[element_index(indices, attributes["axis"] % data.ndim, data.shape)]]


def infer_gather_nd(node: Node) -> list[ValueType]:
    """Infer: the shape of the indices but the last axis, then what is left of the data's."""
    data, indices = required_input(node, 0), required_input(node, 1)
    dtype, batch = common_dtype(node, [0]), node.attributes.get("batch_dims", 0)
    if data.shape is None or not indices.shape or not isinstance(indices.shape[-1], int):
        return [ValueType(dtype, None)]
    used = batch + indices.shape[-1]
    if used > len(data.shape):
        raise GraphError(node.label, f"indices name {used} axes of {len(data.shape)}")
    return [ValueType(dtype, (*indices.shape[:-1], *data.shape[used:]))]


def evaluate_gather_nd(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Take the slices that the rows of the indices name."""
    data, indices, batch = as_array(inputs[0]), np.asarray(inputs[1]), attributes["batch_dims"]
    count = math.prod(data.shape[:batch])
    flat = data.reshape(count, *data.shape[batch:])
    wanted = indices.reshape(count, -1, indices.shape[-1])
    index = (np.arange(count)[:, None], *np.moveaxis(wanted, -1, 0))
    found = flat[index]
    rest = data.shape[batch + indices.shape[-1] :]
    return [found.reshape((*indices.shape[:-1], *rest))]


def infer_compress(node: Node) -> list[ValueType]:
    """Infer: the axis as long as the constant condition holds."""
    data, condition = required_input(node, 0), known_array(required_input(node, 1))
    dtype, axis = common_dtype(node, [0]), node.attributes.get("axis")
    kept: Dim = UNKNOWN if condition is None else int(np.count_nonzero(condition))
    if axis is None:
        return [ValueType(dtype, (kept,))]
    if data.shape is None:
        return [ValueType(dtype, None)]
    place = axis_of(node, axis, len(data.shape))
    return [ValueType(dtype, (*data.shape[:place], kept, *data.shape[place + 1 :]))]


def evaluate_compress(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Keep the slices, or elements, whose condition holds."""
    places = np.flatnonzero(np.asarray(inputs[1]))
    return [np.take(as_array(inputs[0]), places, attributes["axis"])]


def infer_one_hot(node: Node) -> list[ValueType]:
    """Infer: one more axis, as long as the constant depth."""
    indices, depth = required_input(node, 0), known_ints(required_input(node, 1))
    dtype = common_dtype(node, [2])
    if indices.shape is None:
        return [ValueType(dtype, None)]
    axis = axis_of(node, node.attributes.get("axis", -1), len(indices.shape) + 1)
    length: Dim = UNKNOWN if depth is None else depth[0]
    return [ValueType(dtype, (*indices.shape[:axis], length, *indices.shape[axis:]))]


def evaluate_one_hot(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Mark the place that each index names, along a new axis."""
    places, depth = np.asarray(inputs[0]).astype(np.int64), integers(inputs[1])[0]
    values = as_array(inputs[2])
    axis = attributes["axis"] % (places.ndim + 1)
    wanted = np.expand_dims(np.where(places < 0, places + depth, places), axis)
    classes = np.arange(depth).reshape(-1, *[1] * (places.ndim - axis))
    return [values[(wanted == classes).astype(np.int64)]]


def gather_cases() -> list[Case]:
    """Return a table of rows, columns by index, negative indices, none."""
    a = normal(31, 5, 6)
    return [
        Case("rows", [a, np.asarray([[0, 4, 2]])]),
        Case("columns", [normal(32, 2, 5, 3), ints(3, 0)], {"axis": 1}),
        Case("negative", [a, ints(-1, -5)]),
        Case("none", [a, ints()]),
    ]


GATHER_ND = operator(
    "GatherND",
    (12, 13),
    "data indices -> output",
    infer=infer_gather_nd,
    evaluate=evaluate_gather_nd,
    attributes={"batch_dims": Attribute("int", 0)},
    cases=lambda: [
        Case("rows", [normal(52, 3, 4, 2), np.asarray([[[2, -1]], [[0, 3]]])]),
        Case("batch", [normal(52, 2, 4, 3), np.asarray([[3], [0]])], {"batch_dims": 1}),
    ],
)
SPECS: tuple[OpSpec, ...] = (
    operator(
        "Gather",
        (1, 11, 13),
        "data indices -> output",
        infer=infer_gather,
        evaluate=evaluate_gather,
        attributes={"axis": Attribute("int", 0)},
        encoded=frozenset({0}),
        cases=gather_cases,
    ),
    operator(
        "GatherElements",
        (11, 13),
        "data indices -> output",
        infer=infer_gather_elements,
        evaluate=evaluate_gather_elements,
        attributes={"axis": Attribute("int", 0)},
        cases=one_case("fewer", normal(51, 3, 4), np.asarray([[0, -1], [2, 1]]), axis=1),
    ),
    GATHER_ND,
    renumbered(GATHER_ND, (11,), attributes={}),
    operator(
        "Compress",
        (9, 11, 28),
        "input condition -> output",
        infer=infer_compress,
        evaluate=evaluate_compress,
        attributes={"axis": Attribute("int")},
        cases=lambda: [
            Case("flat", [normal(53, 2, 3), np.asarray([False, True, True])]),
            Case("rows", [normal(53, 3, 2), np.asarray([True, False, True])], {"axis": 0}),
        ],
    ),
    operator(
        "OneHot",
        (9, 11, 28),
        "indices depth values -> output",
        infer=infer_one_hot,
        evaluate=evaluate_one_hot,
        attributes={"axis": Attribute("int", -1)},
        cases=lambda: [
            Case("last", [np.asarray([0, -1, 7]), np.asarray(4), np.asarray([2, 5], np.float32)]),
            Case("first", [np.asarray([[1, 0]]), np.asarray(2), ints(0, 1)], {"axis": 0}),
        ],
    ),
)
