"""Positions of the largest and the smallest element along an axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    axis_of,
    normal,
    required_input,
)
from halfbyte.ir.ops.wide import quiet, widened


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
    argument_spec("ArgMax", np.argmax),
    argument_spec("ArgMin", np.argmin),
)
