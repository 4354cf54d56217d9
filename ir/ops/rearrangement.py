"""Operators that lay values out anew: transpose, expand, tile, triangles, crop, reverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Dim, Graph, Node
from halfbyte.ir.ops.older_forms import set_operand
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
    broadcast,
    common_dtype,
    integers,
    ints,
    known_ints,
    normal,
    one_case,
    operator,
    required_input,
    same_as_first,
)


def infer_transpose(node: Node) -> list[ValueType]:
    """Infer: axes in the order of `perm`."""
    data = required_input(node, 0)
    dtype = common_dtype(node, [0])
    if data.shape is None:
        order = node.attributes.get("perm")
        return [ValueType(dtype, None if order is None else (UNKNOWN,) * len(order))]
    order = node.attributes.get("perm") or list(range(len(data.shape)))[::-1]
    if sorted(order) != list(range(len(data.shape))):
        raise GraphError(node.label, f"perm {order} is no order of {len(data.shape)} axes")
    return [ValueType(dtype, tuple(data.shape[i] for i in order))]


def evaluate_transpose(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Reorder axes."""
    return [np.transpose(as_array(inputs[0]), attributes["perm"] or None)]


def infer_expand(node: Node) -> list[ValueType]:
    """Infer: broadcast against the constant shape."""
    data, wanted = required_input(node, 0), required_input(node, 1)
    target: Sequence[Dim] | None = known_ints(wanted)
    if target is None and wanted.shape and isinstance(wanted.shape[0], int):
        target = (UNKNOWN,) * wanted.shape[0]
    shape = None if target is None else broadcast(node, [data.shape, tuple(target)])
    return [ValueType(common_dtype(node, [0]), shape)]


def evaluate_expand(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Repeat axes of length one."""
    data = as_array(inputs[0])
    return [np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(integers(inputs[1]))))]


def infer_tile(node: Node) -> list[ValueType]:
    """Infer: each axis times its constant count."""
    data, counts = required_input(node, 0), known_ints(required_input(node, 1))
    dtype = common_dtype(node, [0])
    if data.shape is None:
        return [ValueType(dtype, None if counts is None else (UNKNOWN,) * len(counts))]
    if counts is None:
        return [ValueType(dtype, (UNKNOWN,) * len(data.shape))]
    if len(counts) != len(data.shape) or min(counts, default=0) < 0:
        raise GraphError(node.label, f"repeats {counts} do not fit {len(data.shape)} axes")
    return [ValueType(dtype, tuple(_times(d, n) for d, n in zip(data.shape, counts, strict=True)))]


def _times(dim: Dim, count: int) -> Dim:
    if count == 1 or isinstance(dim, int):
        return dim if count == 1 else int(dim) * count
    return UNKNOWN


def evaluate_tile(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Repeat every axis."""
    return [np.tile(as_array(inputs[0]), integers(inputs[1]))]


def infer_tile_axis(node: Node) -> list[ValueType]:
    """Infer: one axis times its constant count."""
    data = required_input(node, 0)
    tiles, axis = known_ints(required_input(node, 1)), known_ints(required_input(node, 2))
    dims: list[Dim] = list(data.shape or ())
    if data.shape is None or tiles is None or axis is None:
        return [ValueType(common_dtype(node, [0]), None)]
    dims[axis[0]] = _times(dims[axis[0]], tiles[0])
    return [ValueType(common_dtype(node, [0]), tuple(dims))]


def evaluate_tile_axis(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Repeat one axis."""
    data = as_array(inputs[0])
    counts = [1] * data.ndim
    counts[integers(inputs[2])[0]] = integers(inputs[1])[0]
    return [np.tile(data, counts)]


def upgrade_tile_axis(graph: Graph, node: Node) -> bool:
    """Put one count for every axis where count, axis and rank are known."""
    data = required_input(node, 0)
    tiles, axis = known_ints(required_input(node, 1)), known_ints(required_input(node, 2))
    if data.shape is None or tiles is None or axis is None:
        return False
    counts = np.ones(len(data.shape), np.int64)
    counts[axis[0]] = tiles[0]
    graph.set_input(node, 2, None)
    del node.inputs[2]
    set_operand(graph, node, 1, counts, "repeats")
    node.since_version = 6
    return True


def evaluate_trilu(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Keep the upper or lower triangle of the last two axes."""
    data = as_array(inputs[0])
    k = integers(inputs[1])[0] if len(inputs) > 1 and inputs[1] is not None else 0
    rows, columns = data.shape[-2:]
    distance = np.arange(columns)[None, :] - np.arange(rows)[:, None]
    out = data.copy()
    out[..., distance < k if attributes["upper"] else distance > k] = 0
    return [out]


def crop_axes(attributes: Mapping[str, Any], rank: int) -> list[int]:
    """Return the axes that CenterCropPad works on."""
    axes = attributes.get("axes")
    return list(range(rank)) if axes is None else [axis % rank for axis in axes]


def infer_center_crop_pad(node: Node) -> list[ValueType]:
    """Infer: the constant lengths on their axes."""
    data, wanted = required_input(node, 0), known_ints(required_input(node, 1))
    dtype = common_dtype(node, [0])
    if data.shape is None:
        return [ValueType(dtype, None)]
    dims: list[Dim] = list(data.shape)
    axes = crop_axes(node.attributes, len(dims))
    for place, axis in enumerate(axes):
        dims[axis] = UNKNOWN if wanted is None else wanted[place]
    return [ValueType(dtype, tuple(dims))]


def evaluate_center_crop_pad(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Cut out the middle, or surround with zeros."""
    data = as_array(inputs[0])
    shape, source, target = list(data.shape), [slice(None)] * data.ndim, [slice(None)] * data.ndim
    for axis, wanted in zip(crop_axes(attributes, data.ndim), integers(inputs[1]), strict=True):
        held = shape[axis]
        cut, gap = max(0, held - wanted) // 2, max(0, wanted - held) // 2
        kept = min(held, wanted)
        shape[axis] = wanted
        source[axis], target[axis] = slice(cut, cut + kept), slice(gap, gap + kept)
    out = np.zeros(shape, data.dtype)
    out[tuple(target)] = data[tuple(source)]
    return [out]


def infer_reverse_sequence(node: Node) -> list[ValueType]:
    """Infer: like the input, whose two axes must differ."""
    axes = node.attributes.get("time_axis", 0), node.attributes.get("batch_axis", 1)
    shape = required_input(node, 0).shape
    if shape is not None and axis_of(node, axes[0], len(shape)) == axis_of(
        node, axes[1], len(shape)
    ):
        raise GraphError(node.label, "time_axis and batch_axis are one axis; give two")
    return same_as_first(node)


def evaluate_reverse_sequence(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Reverse the first elements of each row, as many as its length says."""
    data, axes = as_array(inputs[0]), (attributes["batch_axis"], attributes["time_axis"])
    rows = np.moveaxis(data, axes, (0, 1))
    lengths = np.asarray(inputs[1]).astype(np.int64)[:, None]
    places = np.arange(rows.shape[1])[None, :]
    order = np.where(places < lengths, lengths - 1 - places, places)
    return [np.moveaxis(rows[np.arange(rows.shape[0])[:, None], order], (0, 1), axes)]


TILE = operator(
    "Tile",
    (6, 13),
    "input repeats -> output",
    infer=infer_tile,
    evaluate=evaluate_tile,
    cases=one_case("columns", normal(46, 2, 3), ints(1, 2)),
)
SPECS: tuple[OpSpec, ...] = (
    operator(
        "Transpose",
        (1, 13, 21, 23, 24, 25),
        "data -> transposed",
        infer=infer_transpose,
        evaluate=evaluate_transpose,
        attributes={"perm": Attribute("ints")},
        cases=lambda: [
            Case("reversed", [normal(36, 2, 3, 4)]),
            Case("heads", [normal(36, 2, 3, 4)], {"perm": [0, 2, 1]}),
        ],
    ),
    operator(
        "Expand",
        (8, 13),
        "input shape -> output",
        infer=infer_expand,
        evaluate=evaluate_expand,
        cases=one_case("rows", normal(41, 3, 1), ints(2, 1, 4)),
    ),
    TILE,
    operator(
        "Tile",
        (1,),
        "input tiles axis -> output",
        infer=infer_tile_axis,
        evaluate=evaluate_tile_axis,
        upgrade=upgrade_tile_axis,
    ),
    operator(
        "Trilu",
        (14,),
        "input k? -> output",
        infer=same_as_first,
        evaluate=evaluate_trilu,
        attributes={"upper": Attribute("int", 1)},
        cases=lambda: [
            Case("upper", [normal(47, 2, 3, 4)]),
            Case("lower", [normal(47, 3, 4), np.asarray(1)], {"upper": 0}),
        ],
    ),
    operator(
        "CenterCropPad",
        (18,),
        "input_data shape -> output_data",
        infer=infer_center_crop_pad,
        evaluate=evaluate_center_crop_pad,
        attributes={"axes": Attribute("ints")},
        cases=one_case("both", normal(48, 5, 2, 3), ints(2, 5), axes=[0, -1]),
    ),
    OpSpec(
        "ReverseSequence",
        (10, 28),
        ("input", "sequence_lens"),
        ("Y",),
        infer=infer_reverse_sequence,
        evaluate=evaluate_reverse_sequence,
        attributes={"time_axis": Attribute("int", 0), "batch_axis": Attribute("int", 1)},
        cases=one_case("columns", normal(49, 4, 3), ints(1, 4, 2)),
    ),
)
