"""Operators that join, cut and pick: Concat, Split, Slice, Gather."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import FLOATING
from halfbyte.ir.graph import Dim, Node
from halfbyte.ir.ops.shape import integers, ints, moved, one
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
    input_at,
    known_ints,
    normal,
    required_input,
)
from halfbyte.ir.tensor import Tensor


def infer_concat(node: Node) -> list[ValueType]:
    """Infer: lengths added along the axis."""
    shapes = [required_input(node, i).shape for i in range(len(node.inputs))]
    dtype = common_dtype(node)
    if any(s is None for s in shapes):
        return [ValueType(dtype, None)]
    known = [s for s in shapes if s is not None]
    axis = axis_of(node, node.attributes["axis"], len(known[0]))
    total = 0
    for shape in known:
        if len(shape) != len(known[0]):
            raise GraphError(node.label, "inputs of Concat differ in rank; make them equal")
        length = shape[axis]
        total = total + length if isinstance(length, int) and total >= 0 else -1
    joined: Dim = total if total >= 0 else UNKNOWN
    return [ValueType(dtype, (*known[0][:axis], joined, *known[0][axis + 1 :]))]


def evaluate_concat(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Join along an axis."""
    return [np.concatenate([as_array(v) for v in inputs], axis=attributes["axis"])]


def split_lengths(total: int, count: int) -> list[int]:
    """Return the lengths of `count` nearly equal pieces, the last one smaller."""
    step = -(-total // count)
    return [max(0, min(step, total - i * step)) for i in range(count)]


def infer_split(node: Node) -> list[ValueType]:
    """Infer: one output per length."""
    data, lengths_value = required_input(node, 0), input_at(node, 1)
    dtype, count = common_dtype(node, [0]), len(node.outputs)
    if data.shape is None:
        return [ValueType(dtype, None)] * count
    axis = axis_of(node, node.attributes.get("axis", 0), len(data.shape))
    total, lengths = data.shape[axis], known_ints(lengths_value)
    if lengths_value is None and isinstance(total, int):
        lengths = split_lengths(total, count)
    dims: Sequence[Dim] = [UNKNOWN] * count if lengths is None else lengths
    if len(dims) != count or (lengths and isinstance(total, int) and sum(lengths) != total):
        raise GraphError(node.label, f"Split into {list(dims)} of {total} with {count} outputs")
    return [ValueType(dtype, (*data.shape[:axis], dim, *data.shape[axis + 1 :])) for dim in dims]


def evaluate_split(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Cut along an axis; `num_outputs` or the lengths say where."""
    data, axis = as_array(inputs[0]), attributes["axis"]
    if len(inputs) > 1 and inputs[1] is not None:
        lengths = integers(inputs[1])
    else:
        lengths = split_lengths(data.shape[axis], attributes["num_outputs"])
    return [np.array(p, order="C") for p in np.split(data, np.cumsum(lengths)[:-1], axis)]


def slice_index(starts: Any, ends: Any, axes: Any, steps: Any, rank: int) -> tuple[slice, ...]:
    """Return the numpy index of an ai.onnx Slice."""
    first, last = integers(starts), integers(ends)
    places = list(range(len(first))) if axes is None else integers(axes)
    strides = [1] * len(first) if steps is None else integers(steps)
    index = [slice(None)] * rank
    for start, end, axis, step in zip(first, last, places, strides, strict=True):
        # A backward slice that ends before element 0 has no negative number for its end.
        stop = None if step < 0 and end < -(1 << 30) else end
        index[axis] = slice(start, stop, step)
    return tuple(index)


def infer_slice(node: Node) -> list[ValueType]:
    """Infer: lengths of the cut axes where bounds are constant and dimensions known."""
    data = required_input(node, 0)
    dtype = common_dtype(node, [0])
    values = [known_ints(input_at(node, i)) for i in range(1, 5)]
    given = [input_at(node, i) is not None for i in range(1, 5)]
    if data.shape is None:
        return [ValueType(dtype, None)]
    if any(g and v is None for g, v in zip(given, values, strict=True)):
        return [ValueType(dtype, (UNKNOWN,) * len(data.shape))]
    cut = slice_index(values[0], values[1], values[2], values[3], len(data.shape))
    full = slice(None)
    dims: list[Dim] = []
    for dim, part in zip(data.shape, cut, strict=True):
        if part == full:
            dims.append(dim)
        else:
            dims.append(len(range(dim)[part]) if isinstance(dim, int) else UNKNOWN)
    return [ValueType(dtype, tuple(dims))]


def evaluate_slice(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Cut ranges out of axes."""
    data = as_array(inputs[0])
    bounds = [inputs[i] if i < len(inputs) else None for i in range(1, 5)]
    index = slice_index(bounds[0], bounds[1], bounds[2], bounds[3], data.ndim)
    return [np.asarray(data[index], order="C")]


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


def slice_cases() -> list[Case]:
    """Return plain, strided, backward and clipped cuts."""
    a = normal(30, 4, 6)
    return [
        Case("rows", [a, ints(1), ints(3)]),
        Case("columns", [a, ints(0), ints(-1), ints(1)]),
        Case("stride", [a, ints(0, 1), ints(4, 100), ints(0, 1), ints(1, 2)]),
        Case("backward", [a, ints(-1), ints(-(1 << 62)), ints(1), ints(-1)]),
    ]


def gather_cases() -> list[Case]:
    """Return a table of rows, columns by index, negative indices, none."""
    a = normal(31, 5, 6)
    return [
        Case("rows", [a, np.asarray([[0, 4, 2]])]),
        Case("columns", [normal(32, 2, 5, 3), ints(3, 0)], {"axis": 1}),
        Case("negative", [a, ints(-1, -5)]),
        Case("none", [a, ints()]),
    ]


SPECS: tuple[OpSpec, ...] = (
    moved(
        "Concat",
        (4, 11, 13),
        "inputs*",
        infer=infer_concat,
        evaluate=evaluate_concat,
        attributes={"axis": Attribute("int", required=True)},
        cases=one("last", normal(37, 2, 3), normal(38, 2, 2), axis=-1),
    ),
    OpSpec(
        "Split",
        (13, 18),
        ("input", "split?"),
        ("outputs*",),
        infer=infer_split,
        evaluate=evaluate_split,
        attributes={"axis": Attribute("int", 0), "num_outputs": Attribute("int")},
        cases=lambda: [
            Case("lengths", [normal(39, 2, 6), ints(1, 5)], {"axis": 1}, outputs=2),
            Case("equal", [normal(39, 5, 2)], {"num_outputs": 3}, outputs=3),
        ],
    ),
    moved(
        "Slice",
        (10, 11, 13),
        "data starts ends axes? steps?",
        infer=infer_slice,
        evaluate=evaluate_slice,
        cases=slice_cases,
    ),
    moved(
        "Gather",
        (1, 11, 13),
        "data indices",
        infer=infer_gather,
        evaluate=evaluate_gather,
        attributes={"axis": Attribute("int", 0)},
        encoded=frozenset({0}),
        cases=gather_cases,
    ),
)
