"""Operators that arrange elements anew: reshape, transpose, join, cut, gather, expand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Dim, Node
from halfbyte.ir.ops.spec import (
    FLOATING,
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
    broadcast,
    common_dtype,
    input_at,
    known_ints,
    normal,
    required_input,
    same_as_first,
)
from halfbyte.ir.tensor import Tensor

LAYOUT = (13, 14, 19, 21, 23, 24, 25)
Shape = tuple[Dim, ...]


def integers(operand: Any) -> list[int]:
    """Return an integer operand as list."""
    return [int(v) for v in np.asarray(operand).reshape(-1)]


def dim_product(dims: Sequence[Dim]) -> int | None:
    """Return the product of dimensions, None when one is a symbol."""
    known = [d for d in dims if isinstance(d, int)]
    return math.prod(known) if len(known) == len(dims) else None


def infer_reshape(node: Node) -> list[ValueType]:
    """Infer: the constant shape, with 0 copied and -1 solved where the rest is known."""
    data, target = required_input(node, 0), known_ints(required_input(node, 1))
    dtype = common_dtype(node, [0])
    if target is None or data.shape is None:
        return [ValueType(dtype, None)]
    copied: list[Dim] = [
        data.shape[i] if dim == 0 and not node.attributes.get("allowzero") else dim
        for i, dim in enumerate(target)
    ]
    if -1 in copied:
        copied[copied.index(-1)] = _solved(data.shape, [d for d in copied if d != -1])
    before, after = dim_product(data.shape), dim_product(copied)
    if before is not None and after is not None and before != after:
        raise GraphError(
            node.label, f"{list(data.shape)} cannot become {target}; element counts must agree"
        )
    return [ValueType(dtype, tuple(copied))]


def _solved(shape: Shape, others: list[Dim]) -> Dim:
    left, rest = list(shape), []
    for dim in others:
        if isinstance(dim, str) and dim in left:
            left.remove(dim)
        else:
            rest.append(dim)
    symbols = [d for d in left if isinstance(d, str)]
    total, known = dim_product([d for d in left if isinstance(d, int)]), dim_product(rest)
    if not known or total is None or (symbols and total != known):
        return UNKNOWN
    if symbols:
        return symbols[0] if len(symbols) == 1 else UNKNOWN
    return total // known


def resolved_shape(shape: Sequence[int], target: Sequence[int], allow_zero: bool) -> list[int]:
    """Return `target` with 0 copied from `shape`; -1 is left to numpy."""
    return [shape[i] if d == 0 and not allow_zero else d for i, d in enumerate(target)]


def evaluate_reshape(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Reshape."""
    data = as_array(inputs[0])
    wanted = resolved_shape(data.shape, integers(inputs[1]), bool(attributes["allowzero"]))
    return [data.reshape(wanted)]


def infer_unsqueeze(node: Node) -> list[ValueType]:
    """Infer: ones inserted at the constant axes."""
    data, axes = required_input(node, 0), known_ints(required_input(node, 1))
    dtype = common_dtype(node, [0])
    if axes is None or data.shape is None:
        return [ValueType(dtype, None)]
    rank = len(data.shape) + len(axes)
    places = {axis_of(node, axis, rank) for axis in axes}
    rest = iter(data.shape)
    return [ValueType(dtype, tuple(1 if i in places else next(rest) for i in range(rank)))]


def evaluate_unsqueeze(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Insert axes of length one."""
    return [np.expand_dims(as_array(inputs[0]), tuple(integers(inputs[1])))]


def infer_squeeze(node: Node) -> list[ValueType]:
    """Infer: the constant axes, or every axis of length one, removed."""
    data, axes_value = required_input(node, 0), input_at(node, 1)
    dtype, axes = common_dtype(node, [0]), known_ints(axes_value)
    if data.shape is None or (axes_value is not None and axes is None):
        return [ValueType(dtype, None)]
    rank = len(data.shape)
    if axes is None:
        if dim_product(data.shape) is None:
            return [ValueType(dtype, None)]
        places = {i for i, d in enumerate(data.shape) if d == 1}
    else:
        places = {axis_of(node, axis, rank) for axis in axes}
    return [ValueType(dtype, tuple(d for i, d in enumerate(data.shape) if i not in places))]


def evaluate_squeeze(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Remove axes of length one."""
    axes = None if len(inputs) < 2 or inputs[1] is None else tuple(integers(inputs[1]))
    return [np.squeeze(as_array(inputs[0]), axes)]


def infer_transpose(node: Node) -> list[ValueType]:
    """Infer: axes in the order of `perm`."""
    data = required_input(node, 0)
    dtype = common_dtype(node, [0])
    if data.shape is None:
        return [ValueType(dtype, None)]
    order = node.attributes.get("perm") or list(range(len(data.shape)))[::-1]
    if sorted(order) != list(range(len(data.shape))):
        raise GraphError(node.label, f"perm {order} is no order of {len(data.shape)} axes")
    return [ValueType(dtype, tuple(data.shape[i] for i in order))]


def evaluate_transpose(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Reorder axes."""
    return [np.asarray(np.transpose(as_array(inputs[0]), attributes["perm"]), order="C")]


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


def infer_shape(node: Node) -> list[ValueType]:
    """Infer: int64, one element per axis between start and end."""
    data = required_input(node, 0)
    if data.shape is None:
        return [ValueType("int64", None)]
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return [ValueType("int64", (len(data.shape[start:end]),))]


def evaluate_shape(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return dimensions as int64."""
    shape = inputs[0].shape[attributes["start"] : attributes["end"]]
    return [np.asarray(shape, dtype=np.int64).reshape(-1)]


def infer_expand(node: Node) -> list[ValueType]:
    """Infer: broadcast against the constant shape."""
    target = known_ints(required_input(node, 1))
    shape = None if target is None else broadcast(node, [required_input(node, 0).shape, (*target,)])
    return [ValueType(common_dtype(node, [0]), shape)]


def evaluate_expand(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Repeat axes of length one."""
    data = as_array(inputs[0])
    shape = np.broadcast_shapes(data.shape, tuple(integers(inputs[1])))
    return [np.array(np.broadcast_to(data, shape))]


def infer_range(node: Node) -> list[ValueType]:
    """Infer: the length where start, limit and step are constant."""
    values = [required_input(node, i) for i in range(3)]
    if any(v.constant is None or v.constant.size != 1 for v in values):
        return [ValueType(values[0].dtype, (UNKNOWN,))]
    start, limit, step = (v.constant.numpy().reshape(()).item() for v in values if v.constant)
    return [ValueType(values[0].dtype, (max(0, math.ceil((limit - start) / step)),))]


def evaluate_range(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Count from start to limit by step."""
    start, limit, step = (np.asarray(v).reshape(()) for v in inputs)
    return [np.arange(start.item(), limit.item(), step.item()).astype(start.dtype)]


def evaluate_identity(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return the input."""
    return [as_array(inputs[0])]


CONSTANT_DTYPES = {
    "value_float": "float32",
    "value_floats": "float32",
    "value_int": "int64",
    "value_ints": "int64",
}


def constant_array(attributes: Mapping[str, Any]) -> Array:
    """Return the values of a Constant node."""
    for name, dtype in CONSTANT_DTYPES.items():
        if attributes.get(name) is not None:
            return np.asarray(attributes[name], dtype=dtype)
    return as_array(attributes["value"])


def infer_constant(node: Node) -> list[ValueType]:
    """Infer: dtype and shape of the attribute."""
    if sum(v is not None for v in node.attributes.values()) != 1:
        raise GraphError(node.label, "Constant must have exactly one value attribute")
    array = constant_array(node.attributes)
    return [ValueType(array.dtype.name, array.shape)]


def evaluate_constant(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return the attribute's values."""
    return [constant_array(attributes)]


def ints(*values: int) -> Array:
    """Return an int64 vector."""
    return np.asarray(values, dtype=np.int64)


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


def moved(op: str, versions: tuple[int, ...], names: str, **parts: Any) -> OpSpec:
    """Return the spec of an operator with one output; `names` lists the inputs."""
    return OpSpec(op, versions, tuple(names.split()), ("output",), **parts)


def one(case: str, *inputs: Any, **attributes: Any) -> Callable[[], list[Case]]:
    """Return a maker of one case."""
    return lambda: [Case(case, list(inputs), attributes)]


SPECS: tuple[OpSpec, ...] = (
    moved(
        "Reshape",
        (5, *LAYOUT),
        "data shape",
        infer=infer_reshape,
        evaluate=evaluate_reshape,
        attributes={"allowzero": Attribute("int", 0)},
        view=True,
        cases=lambda: [
            Case("split", [normal(33, 2, 3, 8), ints(0, 0, 2, -1)]),
            Case("flat", [normal(33, 2, 3, 8), ints(-1)]),
        ],
    ),
    moved(
        "Unsqueeze",
        (13, 21, 23, 24, 25),
        "data axes",
        infer=infer_unsqueeze,
        evaluate=evaluate_unsqueeze,
        view=True,
        cases=one("ends", normal(34, 2, 3), ints(0, -1)),
    ),
    moved(
        "Squeeze",
        (13, 21, 23, 24, 25),
        "data axes?",
        infer=infer_squeeze,
        evaluate=evaluate_squeeze,
        view=True,
        cases=lambda: [
            Case("axes", [normal(35, 1, 3, 1), ints(-1)]),
            Case("all", [normal(35, 1, 3, 1)]),
        ],
    ),
    moved(
        "Transpose",
        (1, 13, 21, 23, 24, 25),
        "data",
        infer=infer_transpose,
        evaluate=evaluate_transpose,
        attributes={"perm": Attribute("ints")},
        cases=lambda: [
            Case("reversed", [normal(36, 2, 3, 4)]),
            Case("heads", [normal(36, 2, 3, 4)], {"perm": [0, 2, 1]}),
        ],
    ),
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
    moved(
        "Shape",
        (1, 13, 15, 19, 21, 23, 24, 25),
        "data",
        infer=infer_shape,
        evaluate=evaluate_shape,
        attributes={"start": Attribute("int", 0), "end": Attribute("int")},
        encoded=frozenset({0}),
        cases=one("part", normal(40, 2, 3, 4), start=1),
    ),
    moved(
        "Expand",
        (8, 13),
        "input shape",
        infer=infer_expand,
        evaluate=evaluate_expand,
        cases=one("rows", normal(41, 3, 1), ints(2, 1, 4)),
    ),
    moved(
        "Range",
        (11,),
        "start limit delta",
        infer=infer_range,
        evaluate=evaluate_range,
        cases=one("down", np.asarray(5), np.asarray(-3), np.asarray(-2)),
    ),
    moved(
        "Identity",
        (1, *LAYOUT, 16),
        "input",
        infer=same_as_first,
        evaluate=evaluate_identity,
        view=True,
        cases=one("plain", normal(42, 2, 3)),
    ),
    OpSpec(
        "Constant",
        (9, 11, 12, 13, 19, 21, 23, 24, 25),
        (),
        ("output",),
        infer=infer_constant,
        evaluate=evaluate_constant,
        attributes={
            "value": Attribute("tensor"),
            "value_float": Attribute("float"),
            "value_floats": Attribute("floats"),
            "value_int": Attribute("int"),
            "value_ints": Attribute("ints"),
        },
        cases=lambda: [
            Case("ints", [], {"value_ints": [1, 2]}),
            Case("tensor", [], {"value": normal(43, 2)}),
        ],
    ),
)
