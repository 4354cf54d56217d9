"""Reductions along axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.ir.graph import Dim, Node
from halfbyte.ir.ops.spec import (
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
        return None
    if not axes:
        return [] if node.attributes.get("noop_with_empty_axes") else list(range(rank))
    return [axis_of(node, axis, rank) for axis in axes]


def infer_reduction(node: Node) -> list[ValueType]:
    """Infer: reduced axes become one, or vanish."""
    data = required_input(node, 0)
    dtype = common_dtype(node, [0])
    axes = None if data.shape is None else _axes(node, len(data.shape))
    if data.shape is None or axes is None:
        return [ValueType(dtype, None)]
    keep = node.attributes.get("keepdims", 1)
    dims: list[Dim] = []
    for index, dim in enumerate(data.shape):
        if index not in axes:
            dims.append(dim)
        elif keep:
            dims.append(1)
    return [ValueType(dtype, tuple(dims))]


def reduction(function: Callable[..., Any]) -> Callable[..., list[Array]]:
    """Return an evaluate that reduces with a numpy function, floats in float64."""

    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        data = as_array(inputs[0])
        given = inputs[1] if len(inputs) > 1 and inputs[1] is not None else attributes["axes"]
        axes = () if given is None else tuple(int(a) for a in np.asarray(given).reshape(-1))
        if not axes and attributes["noop_with_empty_axes"]:
            return [data]
        wide = data.astype(np.float64) if data.dtype == np.float32 else data
        result = function(wide, axis=axes or None, keepdims=bool(attributes["keepdims"]))
        return [np.asarray(result).astype(data.dtype)]

    return evaluate


def reduction_cases() -> list[Case]:
    """Return axes as input and as attribute, kept and dropped, all axes."""
    a = normal(50, 2, 3, 4)
    last = np.asarray([-1], np.int64)
    return [
        Case("last", [a, last]),
        Case("dropped", [a, np.asarray([0, 2])], {"keepdims": 0}),
        Case("all", [a], {"keepdims": 0}),
        Case("noop", [a], {"noop_with_empty_axes": 1}),
        Case("attribute", [a], {"axes": [1]}),
    ]


def reduce_spec(op: str, function: Callable[..., Any], versions: tuple[int, ...]) -> OpSpec:
    """Return the spec of one reduction."""
    return OpSpec(
        op,
        versions,
        ("data", "axes?"),
        ("reduced",),
        infer=infer_reduction,
        evaluate=reduction(function),
        attributes={
            "axes": Attribute("ints"),
            "keepdims": Attribute("int", 1),
            "noop_with_empty_axes": Attribute("int", 0),
        },
        cases=reduction_cases,
    )


SPECS: tuple[OpSpec, ...] = (
    reduce_spec("ReduceMax", np.max, (1, 11, 12, 13, 18, 20)),
    reduce_spec("ReduceMin", np.min, (1, 11, 12, 13, 18, 20)),
    reduce_spec("ReduceMean", np.mean, (1, 11, 13, 18)),
    reduce_spec("ReduceSum", np.sum, (1, 11, 13)),
)
