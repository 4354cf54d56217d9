"""Operators that join and cut: Concat, Split, Slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Dim, Graph, Node
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
    input_at,
    integers,
    ints,
    known_ints,
    normal,
    one_case,
    operator,
    required_input,
)


def infer_concat(node: Node) -> list[ValueType]:
    """Infer: lengths added along the axis."""
    shapes = [required_input(node, i).shape for i in range(len(node.inputs))]
    dtype = common_dtype(node)
    known = [s for s in shapes if s is not None]
    if not known:
        return [ValueType(dtype, None)]
    axis = axis_of(node, node.attributes.get("axis", 1), len(known[0]))
    if any(len(shape) != len(known[0]) for shape in known):
        raise GraphError(node.label, "inputs of Concat differ in rank; make them equal")
    dims = [_agreed([shape[i] for shape in known]) for i in range(len(known[0]))]
    lengths = [shape[axis] for shape in known]
    whole = len(known) == len(shapes) and all(isinstance(n, int) for n in lengths)
    dims[axis] = sum(n for n in lengths if isinstance(n, int)) if whole else UNKNOWN
    return [ValueType(dtype, tuple(dims))]


def _agreed(dims: Sequence[Dim]) -> Dim:
    known = {d for d in dims if isinstance(d, int)}
    return known.pop() if known else next((d for d in dims if d != UNKNOWN), UNKNOWN)


def evaluate_concat(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Join along an axis."""
    return [np.concatenate([as_array(v) for v in inputs], axis=attributes["axis"])]


def upgrade_concat(graph: Graph, node: Node) -> bool:
    """Write the default axis out."""
    node.attributes = {"axis": 1} | node.attributes
    node.since_version = 4
    return True


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
        lengths = split_lengths(total, node.attributes.get("num_outputs") or count)
    dims: Sequence[Dim] = [UNKNOWN] * count if lengths is None else lengths
    if len(dims) != count or (lengths and isinstance(total, int) and sum(lengths) != total):
        raise GraphError(node.label, f"Split into {list(dims)} of {total} with {count} outputs")
    return [ValueType(dtype, (*data.shape[:axis], dim, *data.shape[axis + 1 :])) for dim in dims]


def evaluate_split(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Cut along an axis; `num_outputs`, the lengths or the number of outputs say where."""
    data, axis = as_array(inputs[0]), attributes["axis"]
    total = data.shape[axis]
    if len(inputs) > 1 and inputs[1] is not None:
        lengths = integers(inputs[1])
    else:
        lengths = split_lengths(total, attributes.get("num_outputs") or context.outputs)
    if sum(lengths) != total or min(lengths, default=0) < 0:
        raise ValueError(f"lengths {lengths} do not add up to {total}")
    return np.split(data, np.cumsum(lengths)[:-1], axis)


def slice_index(
    starts: Any, ends: Any, axes: Any, steps: Any, shape: Sequence[Dim]
) -> tuple[slice, ...]:
    """Return the numpy index of an ai.onnx Slice over a shape.

    Raises:
        ValueError: the lists differ in length, or a step is zero.
    """
    first, last = integers(starts), integers(ends)
    places = list(range(len(first))) if axes is None else integers(axes)
    strides = [1] * len(first) if steps is None else integers(steps)
    rank = len(shape)
    index = [slice(None)] * rank
    for start, end, axis, step in zip(first, last, places, strides, strict=True):
        if step == 0 or not -rank <= axis < rank:
            raise ValueError(f"step {step} along axis {axis} of {rank}")
        dim = shape[axis]
        if step < 0 and isinstance(dim, int):
            # Unlike numpy, a backward cut from before the first element takes that element.
            start = max(start, -dim)
        index[axis] = slice(start, end, step)
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
    try:
        cut = slice_index(values[0], values[1], values[2], values[3], data.shape)
    except ValueError as error:
        raise GraphError(node.label, f"starts, ends, axes and steps do not fit: {error}") from None
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
    return [data[slice_index(bounds[0], bounds[1], bounds[2], bounds[3], data.shape)]]


def slice_cases() -> list[Case]:
    """Return plain, strided, backward and clipped cuts."""
    a = normal(30, 4, 6)
    return [
        Case("rows", [a, ints(1), ints(3)]),
        Case("columns", [a, ints(0), ints(-1), ints(1)]),
        Case("stride", [a, ints(0, 1), ints(4, 100), ints(0, 1), ints(1, 2)]),
        Case("backward", [a, ints(-1), ints(-(1 << 62)), ints(1), ints(-1)]),
        Case("nothing", [a, ints(3), ints(1)]),
    ]


CONCAT = operator(
    "Concat",
    (4, 11, 13),
    "inputs* -> concat_result",
    infer=infer_concat,
    evaluate=evaluate_concat,
    attributes={"axis": Attribute("int", required=True)},
    cases=one_case("last", normal(37, 2, 3), normal(38, 2, 2), axis=-1),
)
SPLIT = OpSpec(
    "Split",
    (18,),
    ("input", "split?"),
    ("outputs*",),
    infer=infer_split,
    evaluate=evaluate_split,
    attributes={"axis": Attribute("int", 0), "num_outputs": Attribute("int")},
    cases=lambda: [
        Case("lengths", [normal(39, 2, 6), ints(1, 5)], {"axis": 1}, outputs=2),
        Case("equal", [normal(39, 5, 2)], {"num_outputs": 3}, outputs=3),
    ],
)
LENGTHS = {"split": Attribute("ints")}


def upgrade_split(graph: Graph, node: Node) -> bool:
    """Write down how many outputs there are where lengths are not given."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes = node.attributes | {"num_outputs": len(node.outputs)}
    node.since_version = 18
    return True


SPLIT_13 = replace(
    SPLIT,
    versions=(13,),
    attributes={"axis": Attribute("int", 0)},
    upgrade=upgrade_split,
    cases=list,
)
SLICE = operator(
    "Slice",
    (10, 11, 13),
    "data starts ends axes? steps? -> output",
    infer=infer_slice,
    evaluate=evaluate_slice,
    cases=slice_cases,
)
SPECS: tuple[OpSpec, ...] = (
    CONCAT,
    renumbered(CONCAT, (1,), attributes={"axis": Attribute("int", 1)}, upgrade=upgrade_concat),
    SPLIT,
    SPLIT_13,
    older(SPLIT_13, (2, 11), {"split": Lift(1)}, LENGTHS),
    older(SPLIT_13, (1,), {"split": Lift(1)}, LENGTHS, inputs=("input", "split?")),
    SLICE,
    older(
        SLICE,
        (1,),
        {"starts": Lift(1), "ends": Lift(2), "axes": Lift(3)},
        {
            "starts": Attribute("ints", required=True),
            "ends": Attribute("ints", required=True),
            "axes": Attribute("ints"),
        },
    ),
)
