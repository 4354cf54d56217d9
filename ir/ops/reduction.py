"""Reductions along axes, and the positions of extremes: ArgMax, ArgMin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.ir.graph import Dim, Graph, Node
from halfbyte.ir.ops.numerics import doubled, is_floating, quiet, widened
from halfbyte.ir.ops.older_forms import constant, renewed, set_inputs
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
    known_ints,
    normal,
    required_input,
)


def _axes(node: Node, rank: int) -> list[int] | None:
    given = input_at(node, 1)
    axes = known_ints(given) if given is not None else node.attributes.get("axes")
    if given is not None and axes is None:
        return [] if given.shape == (0,) and rank == 0 else None
    if not axes:
        return [] if node.attributes.get("noop_with_empty_axes") else list(range(rank))
    return [axis_of(node, axis, rank) for axis in axes]


def reduced_shape(node: Node) -> tuple[Dim, ...] | None:
    """Return the shape after the reduction, as far as it is known."""
    data, keep = required_input(node, 0), node.attributes.get("keepdims", 1)
    axes = None if data.shape is None else _axes(node, len(data.shape))
    if data.shape is None:
        return None
    if axes is None:
        return (UNKNOWN,) * len(data.shape) if keep else None
    dims: list[Dim] = []
    for index, dim in enumerate(data.shape):
        if index not in axes:
            dims.append(dim)
        elif keep:
            dims.append(1)
    return tuple(dims)


def infer_reduction(node: Node) -> list[ValueType]:
    """Infer: reduced axes become one, or vanish."""
    return [ValueType(common_dtype(node, [0]), reduced_shape(node))]


def extreme(function: Callable[..., Any], sign: int) -> Callable[..., Any]:
    """Return numpy's maximum or minimum with the lowest or highest value for empty sets."""

    def reduce(data: Array, axis: tuple[int, ...], keepdims: bool) -> Any:
        kind = data.dtype.kind
        if kind == "b":
            initial: Any = sign > 0
        elif kind in "iu":
            info = np.iinfo(data.dtype)
            initial = info.max if sign > 0 else info.min
        else:
            initial = data.dtype.type(sign * np.inf)
        return function(data, axis=axis, keepdims=keepdims, initial=initial)

    return reduce


def log_sum_exp(data: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    """Return log(sum(exp(x))), shifted by the maximum; -inf for empty sets."""
    top = np.max(data, axis=axis, keepdims=True, initial=-np.inf)
    shift = np.where(np.isfinite(top), top, 0)
    total = np.log(np.sum(np.exp(data - shift), axis=axis, keepdims=True)) + shift
    return np.asarray(total if keepdims else np.squeeze(total, axis))


def l1(data: Array, axis: tuple[int, ...], keepdims: bool) -> Any:
    """Return the sum of magnitudes."""
    return np.sum(np.abs(data), axis=axis, keepdims=keepdims)


def l2(data: Array, axis: tuple[int, ...], keepdims: bool) -> Any:
    """Return the root of the sum of squares."""
    wide = data.astype(np.float64, copy=False)
    return np.sqrt(np.sum(wide * wide, axis=axis, keepdims=keepdims))


def log_sum(data: Array, axis: tuple[int, ...], keepdims: bool) -> Any:
    """Return the logarithm of the sum."""
    return np.log(np.sum(data, axis=axis, keepdims=keepdims))


def sum_square(data: Array, axis: tuple[int, ...], keepdims: bool) -> Any:
    """Return the sum of squares."""
    return np.sum(data * data, axis=axis, keepdims=keepdims)


def total(data: Array, axis: tuple[int, ...], keepdims: bool) -> Any:
    """Return the sum; of floats in float64, without a copy of the data in it."""
    kind = np.float64 if is_floating(data) else None
    return np.sum(data, axis=axis, keepdims=keepdims, dtype=kind)


def mean(data: Array, axis: tuple[int, ...], keepdims: bool) -> Any:
    """Return the mean; of integers, rounded towards zero; of nothing, NaN."""
    count = int(np.prod([data.shape[a] for a in axis], dtype=np.int64))
    found = total(data, axis, keepdims)
    return found / np.float64(count) if is_floating(data) else np.trunc(found / max(count, 1))


def reduction(function: Callable[..., Any], exact: bool = False) -> Callable[..., list[Array]]:
    """Return an evaluate that reduces; exact: the function needs no floats widened for it."""

    @quiet
    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        data = as_array(inputs[0])
        axes = chosen_axes(data, inputs, attributes)
        wide = data if exact and data.dtype.kind in "biuf" else doubled(data)
        result = function(wide, axis=axes, keepdims=bool(attributes["keepdims"]))
        return [np.asarray(result).astype(data.dtype, copy=False)]

    return evaluate


def chosen_axes(
    data: Array, inputs: Sequence[Any], attributes: Mapping[str, Any]
) -> tuple[int, ...]:
    """Return the axes to reduce: the second input or attribute `axes`; all where none is given."""
    given = inputs[1] if len(inputs) > 1 and inputs[1] is not None else attributes.get("axes")
    axes = () if given is None else tuple(int(a) for a in np.asarray(given).reshape(-1))
    if axes or attributes.get("noop_with_empty_axes"):
        return tuple(axis % data.ndim for axis in axes)
    return tuple(range(data.ndim))


def upgrade_axes(version: int) -> Callable[[Graph, Node], bool]:
    """Return an upgrade that turns attribute `axes` into an input."""

    def upgrade(graph: Graph, node: Node) -> bool:
        axes = node.attributes.get("axes")
        values = [node.inputs[0]]
        if axes:
            values.append(constant(graph, node, "axes", np.asarray(axes, np.int64)))
        set_inputs(graph, node, values)
        return renewed(node, version, "axes")

    return upgrade


def reduction_cases() -> list[Case]:
    """Return axes kept and dropped, all axes, no axes."""
    a = normal(50, 2, 3, 4)
    last = np.asarray([-1], np.int64)
    return [
        Case("last", [a, last]),
        Case("dropped", [a, np.asarray([0, 2])], {"keepdims": 0}),
        Case("all", [a], {"keepdims": 0}),
        Case("noop", [a], {"noop_with_empty_axes": 1}),
    ]


def positive_cases() -> list[Case]:
    """Return the same cases on positive numbers."""
    return [
        Case(case.name, [np.abs(np.asarray(case.inputs[0])), *case.inputs[1:]], case.attributes)
        for case in reduction_cases()
    ]


def reductions(
    op: str, function: Callable[..., Any], changed: int, *types: int, **parts: Any
) -> tuple[OpSpec, OpSpec]:
    """Return both forms: axes as attribute, and from version `changed` on as input."""
    exact = parts.pop("exact", False)
    newest = OpSpec(
        op,
        (changed, *types),
        ("data", "axes?"),
        ("reduced",),
        infer=infer_reduction,
        evaluate=reduction(function, exact),
        attributes={
            "keepdims": Attribute("int", 1),
            "noop_with_empty_axes": Attribute("int", 0),
        },
        **({"cases": reduction_cases} | parts),
    )
    between = {"ReduceMax": (1, 11, 12, 13), "ReduceMin": (1, 11, 12, 13), "ReduceSum": (1, 11)}
    old = replace(
        newest,
        versions=between.get(op, (1, 11, 13)),
        inputs=("data",),
        attributes={"axes": Attribute("ints"), "keepdims": Attribute("int", 1)},
        upgrade=upgrade_axes(newest.versions[-1]),
        cases=list,
    )
    return old, newest


def infer_argument(node: Node) -> list[ValueType]:
    """Infer: int64, the axis one or gone."""
    shape = required_input(node, 0).shape
    if shape is None:
        return [ValueType("int64", None)]
    axis = axis_of(node, node.attributes.get("axis", 0), len(shape))
    kept = (1,) if node.attributes.get("keepdims", 1) and shape else ()
    return [ValueType("int64", (*shape[:axis], *kept, *shape[axis + 1 :]))]


def argument(function: Callable[..., Any]) -> Callable[..., list[Array]]:
    """Return an evaluate from numpy's argmax or argmin."""

    @quiet
    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        data, axis = widened(inputs[0]), attributes["axis"]
        if not data.ndim:
            return [np.zeros((), np.int64)]
        if attributes["select_last_index"]:
            found = data.shape[axis] - 1 - function(np.flip(data, axis), axis=axis)
        else:
            found = function(data, axis=axis)
        found = np.asarray(found, np.int64)
        return [np.expand_dims(found, axis) if attributes["keepdims"] else found]

    return evaluate


def argument_cases() -> list[Case]:
    """Return both orders of ties, kept and dropped."""
    a = np.round(normal(51, 3, 4, 5))
    return [
        Case("first", [a], {"axis": 1}),
        Case("last", [a], {"axis": -1, "select_last_index": 1, "keepdims": 0}),
    ]


def argument_spec(op: str, function: Callable[..., Any]) -> OpSpec:
    """Return the spec of one operator."""
    return OpSpec(
        op,
        (1, 11, 12, 13),
        ("data",),
        ("reduced",),
        infer=infer_argument,
        evaluate=argument(function),
        attributes={
            "axis": Attribute("int", 0),
            "keepdims": Attribute("int", 1),
            "select_last_index": Attribute("int", 0),
        },
        cases=argument_cases,
    )


SPECS: tuple[OpSpec, ...] = (
    *reductions("ReduceMax", extreme(np.max, -1), 18, 20, exact=True),
    *reductions("ReduceMin", extreme(np.min, 1), 18, 20, exact=True),
    *reductions("ReduceMean", mean, 18, exact=True),
    *reductions("ReduceSum", total, 13, exact=True),
    *reductions("ReduceProd", np.prod, 18),
    *reductions("ReduceL1", l1, 18),
    *reductions("ReduceL2", l2, 18),
    *reductions("ReduceLogSum", log_sum, 18, 28, cases=positive_cases),
    *reductions("ReduceLogSumExp", log_sum_exp, 18, 28),
    *reductions("ReduceSumSquare", sum_square, 18),
    argument_spec("ArgMax", np.argmax),
    argument_spec("ArgMin", np.argmin),
)
