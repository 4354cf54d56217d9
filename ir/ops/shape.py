"""Operators about shapes: reshape, transpose, expand, range, constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
