"""Operators about shapes: reshape, insert and remove axes, the shape itself."""

from __future__ import annotations

import math
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
    adapts,
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

Shape = tuple[Dim, ...]


def dim_product(dims: Sequence[Dim]) -> int | None:
    """Return the product of dimensions, None when one is a symbol."""
    known = [d for d in dims if isinstance(d, int)]
    return math.prod(known) if len(known) == len(dims) else None


def merged_dim(dims: Sequence[Dim]) -> Dim:
    """Return the product of dimensions; one symbol among ones stays itself."""
    known = math.prod(d for d in dims if isinstance(d, int))
    symbols = [d for d in dims if isinstance(d, str)]
    if not symbols or not known:
        return known
    return symbols[0] if len(symbols) == 1 and known == 1 else UNKNOWN


def infer_reshape(node: Node) -> list[ValueType]:
    """Infer: the constant shape, with 0 copied and -1 solved where the rest is known."""
    data, target_value = required_input(node, 0), required_input(node, 1)
    dtype, target = common_dtype(node, [0]), known_ints(target_value)
    if target is None:
        length = target_value.shape[0] if target_value.shape else None
        return [ValueType(dtype, (UNKNOWN,) * length if isinstance(length, int) else None)]
    copies = not node.attributes.get("allowzero")
    if data.shape is None:
        return [ValueType(dtype, tuple(d if d + (not copies) > 0 else UNKNOWN for d in target))]
    if copies and any(d == 0 for d in target[len(data.shape) :]):
        raise GraphError(node.label, f"{target} copies an axis that {list(data.shape)} lacks")
    copied: list[Dim] = [data.shape[i] if d == 0 and copies else d for i, d in enumerate(target)]
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


def infer_flatten(node: Node) -> list[ValueType]:
    """Infer: two axes."""
    data = required_input(node, 0)
    dtype = common_dtype(node, [0])
    if data.shape is None:
        return [ValueType(dtype, (UNKNOWN, UNKNOWN))]
    rank, axis = len(data.shape), node.attributes.get("axis", 1)
    if not -rank <= axis <= rank:
        raise GraphError(node.label, f"axis {axis} is outside -{rank}..{rank}")
    cut = axis + rank if axis < 0 else axis
    return [ValueType(dtype, (merged_dim(data.shape[:cut]), merged_dim(data.shape[cut:])))]


def evaluate_flatten(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Join the axes before and those from `axis` on."""
    data = as_array(inputs[0])
    axis = attributes["axis"]
    cut = axis + data.ndim if axis < 0 else axis
    return [data.reshape(math.prod(data.shape[:cut]), math.prod(data.shape[cut:]))]


def infer_unsqueeze(node: Node) -> list[ValueType]:
    """Infer: ones inserted at the constant axes."""
    data, axes = required_input(node, 0), known_ints(required_input(node, 1))
    dtype = common_dtype(node, [0])
    if axes is None or data.shape is None:
        return [ValueType(dtype, None)]
    rank = len(data.shape) + len(axes)
    places = {axis_of(node, axis, rank) for axis in axes}
    if len(places) != len(axes):
        raise GraphError(node.label, f"axes {axes} repeat one; name each once")
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
    if any(isinstance(data.shape[i], int) and data.shape[i] != 1 for i in places):
        raise GraphError(node.label, f"axes {axes} of {list(data.shape)} are not all of length 1")
    return [ValueType(dtype, tuple(d for i, d in enumerate(data.shape) if i not in places))]


def evaluate_squeeze(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Remove axes of length one."""
    axes = None if len(inputs) < 2 or inputs[1] is None else tuple(integers(inputs[1]))
    return [np.squeeze(as_array(inputs[0]), axes)]


def infer_shape(node: Node) -> list[ValueType]:
    """Infer: int64, one element per axis between start and end."""
    data = required_input(node, 0)
    if data.shape is None:
        return [ValueType("int64", (UNKNOWN,))]
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return [ValueType("int64", (len(data.shape[start:end]),))]


def evaluate_shape(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return dimensions as int64."""
    shape = inputs[0].shape[attributes["start"] : attributes["end"]]
    return [np.asarray(shape, dtype=np.int64).reshape(-1)]


def infer_size(node: Node) -> list[ValueType]:
    """Infer: one int64."""
    required_input(node, 0)
    return [ValueType("int64", ())]


def evaluate_size(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return the number of elements."""
    return [np.asarray(math.prod(inputs[0].shape), np.int64)]


def infer_identity(node: Node) -> list[ValueType]:
    """Infer: the input's type, composed ones included."""
    value = required_input(node, 0)
    return [ValueType(common_dtype(node, [0]) if adapts(value) else value.dtype, value.shape)]


def evaluate_identity(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return the input: an array, a sequence or an optional."""
    plain = not (inputs[0] is None or isinstance(inputs[0], list))
    return [as_array(inputs[0]) if plain else inputs[0]]


RESHAPE = operator(
    "Reshape",
    (14, 19, 21, 23, 24, 25),
    "data shape -> reshaped",
    infer=infer_reshape,
    evaluate=evaluate_reshape,
    attributes={"allowzero": Attribute("int", 0)},
    view=True,
    cases=lambda: [
        Case("split", [normal(33, 2, 3, 8), ints(0, 0, 2, -1)]),
        Case("flat", [normal(33, 2, 3, 8), ints(-1)]),
        Case("empty", [normal(33, 0, 3), ints(3, 0)], {"allowzero": 1}),
    ],
)
UNSQUEEZE = operator(
    "Unsqueeze",
    (13, 21, 23, 24, 25),
    "data axes -> expanded",
    infer=infer_unsqueeze,
    evaluate=evaluate_unsqueeze,
    view=True,
    cases=one_case("ends", normal(34, 2, 3), ints(0, -1)),
)
SQUEEZE = operator(
    "Squeeze",
    (13, 21, 23, 24, 25),
    "data axes? -> squeezed",
    infer=infer_squeeze,
    evaluate=evaluate_squeeze,
    view=True,
    cases=lambda: [
        Case("axes", [normal(35, 1, 3, 1), ints(-1)]),
        Case("all", [normal(35, 1, 3, 1)]),
    ],
)
SHAPE = operator(
    "Shape",
    (15, 19, 21, 23, 24, 25),
    "data -> shape",
    infer=infer_shape,
    evaluate=evaluate_shape,
    attributes={"start": Attribute("int", 0), "end": Attribute("int")},
    encoded=frozenset({0}),
    cases=one_case("part", normal(40, 2, 3, 4), start=1),
)
SPECS: tuple[OpSpec, ...] = (
    RESHAPE,
    renumbered(RESHAPE, (5, 13), attributes={}),
    older(
        RESHAPE,
        (1,),
        {"shape": Lift(1)},
        {"shape": Attribute("ints"), "consumed_inputs": Attribute("ints")},
        dropped=("consumed_inputs",),
        without=("allowzero",),
    ),
    operator(
        "Flatten",
        (1, 9, 11, 13, 21, 23, 24, 25),
        "input -> output",
        infer=infer_flatten,
        evaluate=evaluate_flatten,
        attributes={"axis": Attribute("int", 1)},
        view=True,
        cases=one_case("last", normal(41, 2, 3, 4), axis=-1),
    ),
    UNSQUEEZE,
    older(UNSQUEEZE, (1, 11), {"axes": Lift(1)}, {"axes": Attribute("ints", required=True)}),
    SQUEEZE,
    older(SQUEEZE, (1, 11), {"axes": Lift(1)}, {"axes": Attribute("ints")}),
    SHAPE,
    renumbered(SHAPE, (1, 13), attributes={}),
    operator(
        "Size",
        (1, 13, 19, 21, 23, 24, 25),
        "data -> size",
        infer=infer_size,
        evaluate=evaluate_size,
        encoded=frozenset({0}),
        cases=one_case("three axes", normal(40, 2, 3, 4)),
    ),
    operator(
        "Identity",
        (1, 13, 14, 16, 19, 21, 23, 24, 25),
        "input -> output",
        infer=infer_identity,
        evaluate=evaluate_identity,
        view=True,
        cases=one_case("plain", normal(42, 2, 3)),
    ),
)
