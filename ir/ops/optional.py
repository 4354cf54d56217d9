"""Operators over optionals: None, or the value itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import (
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    as_array,
    input_at,
    normal,
    required_input,
)

PREFIX = "optional."


def infer_optional(node: Node) -> list[ValueType]:
    """Infer: an optional of the input's, or the attribute's, type."""
    value, given = input_at(node, 0), node.attributes.get("type")
    if value is None and given is None:
        raise GraphError(node.label, "has neither an input nor a type; give one")
    dtype = given if value is None else value.dtype
    if dtype is None:
        return [ValueType(None, None)]
    return [ValueType(PREFIX + str(dtype).removeprefix(PREFIX), None)]


def _whole(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else as_array(value)


def evaluate_optional(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Return the input, or nothing."""
    return [_whole(inputs[0]) if inputs else None]


def infer_has_element(node: Node) -> list[ValueType]:
    """Infer: one bool."""
    return [ValueType("bool", ())]


def evaluate_has_element(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Return whether there is a value."""
    return [np.asarray(bool(inputs) and inputs[0] is not None)]


def infer_get_element(node: Node) -> list[ValueType]:
    """Infer: what the optional holds; other types are themselves."""
    value = required_input(node, 0)
    dtype = None if value.dtype is None else value.dtype.removeprefix(PREFIX)
    return [ValueType(dtype, value.shape)]


def evaluate_get_element(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Return the value.

    Raises:
        ValueError: there is none.
    """
    if inputs[0] is None:
        raise ValueError("the optional is empty")
    return [_whole(inputs[0])]


def get_cases() -> list[Case]:
    """Return a tensor and a sequence, which are their own elements."""
    sequence: Any = [normal(65, 2)]
    return [Case("tensor", [normal(65, 2)]), Case("sequence", [sequence])]


SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "Optional",
        (15, 28),
        ("input?",),
        ("output",),
        infer=infer_optional,
        evaluate=evaluate_optional,
        attributes={"type": Attribute("dtype")},
        cases=lambda: [
            Case("value", [normal(65, 2)]),
            Case("empty", [], {"type": "sequence.float32"}),
        ],
    ),
    OpSpec(
        "OptionalHasElement",
        (15, 18, 28),
        ("input?",),
        ("output",),
        infer=infer_has_element,
        evaluate=evaluate_has_element,
        cases=lambda: [Case("tensor", [normal(65, 2)]), Case("none", [])],
    ),
    OpSpec(
        "OptionalGetElement",
        (15, 18, 28),
        ("input",),
        ("output",),
        infer=infer_get_element,
        evaluate=evaluate_get_element,
        cases=get_cases,
    ),
)
