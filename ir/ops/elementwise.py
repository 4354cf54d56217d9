"""Operators that act on each element: arithmetic, comparison, selection, conversion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import DTYPES, INTEGERS, dtype_name, numpy_dtype
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    broadcast,
    common_dtype,
    normal,
    required_input,
    same_as_first,
)

Function = Callable[..., Any]
ARITHMETIC = (7, 13, 14)
UNARY = (6, 13)


def infer_broadcast(node: Node) -> list[ValueType]:
    """Infer: all inputs of one dtype, shapes broadcast."""
    shapes = [required_input(node, i).shape for i in range(len(node.inputs))]
    return [ValueType(common_dtype(node), broadcast(node, shapes))]


def infer_comparison(node: Node) -> list[ValueType]:
    """Infer: as broadcast, but the result is bool."""
    return [ValueType("bool", infer_broadcast(node)[0].shape)]


def infer_power(node: Node) -> list[ValueType]:
    """Infer: the exponent may have its own dtype."""
    shapes = [required_input(node, i).shape for i in range(2)]
    return [ValueType(common_dtype(node, [0]), broadcast(node, shapes))]


def infer_where(node: Node) -> list[ValueType]:
    """Infer: the condition is bool, the choices share a dtype."""
    shapes = [required_input(node, i).shape for i in range(3)]
    if required_input(node, 0).dtype not in (None, "bool"):
        raise GraphError(node.label, "the condition of Where must be bool; compare first")
    return [ValueType(common_dtype(node, [1, 2]), broadcast(node, shapes))]


def infer_cast(node: Node) -> list[ValueType]:
    """Infer: the dtype that `to` names."""
    to = dtype_name(node.attributes.get("to", ""))
    if to not in DTYPES:
        raise GraphError(node.label, f"Cast to {to!r}, a numpy dtype name was required")
    return [ValueType(to, required_input(node, 0).shape)]


def elementwise(function: Function) -> Callable[..., list[Array]]:
    """Return an evaluate that keeps the dtype of the first input."""

    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        dtype = np.asarray(inputs[0]).dtype
        with np.errstate(all="ignore"):
            return [np.asarray(function(*inputs)).astype(dtype, copy=False)]

    return evaluate


def predicate(function: Function) -> Callable[..., list[Array]]:
    """Return an evaluate whose result is bool."""

    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        return [np.asarray(function(*inputs), dtype=np.bool_)]

    return evaluate


def evaluate_cast(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Convert; float8 saturates as ai.onnx asks by default."""
    to = numpy_dtype(dtype_name(attributes["to"]))
    source = np.asarray(inputs[0])
    with np.errstate(all="ignore"):
        if to.name.startswith("float8") and attributes.get("saturate", 1):
            import ml_dtypes

            finfo: Any = ml_dtypes.finfo
            limit = float(finfo(to).max)
            source = np.clip(source.astype(np.float32), -limit, limit)
        return [source.astype(to)]


def evaluate_where(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Choose elements; the result has the dtype of the choices."""
    condition, yes, no = inputs
    return [np.where(condition, yes, no).astype(np.asarray(yes).dtype, copy=False)]


def divide(left: Array, right: Array) -> Array:
    """Divide; integers round towards zero."""
    if np.asarray(left).dtype.name not in INTEGERS:
        return np.asarray(np.divide(left, right))
    quotient = np.floor_divide(left, right)
    inexact = (quotient * right != left) & ((left < 0) != (right < 0))
    return np.asarray(quotient + inexact)


def folded(function: Function) -> Function:
    """Return a function of one or more arrays from one of two."""
    return lambda *arrays: reduce(function, arrays)


def pair_cases() -> list[Case]:
    """Return equal shapes, a row, a scalar and integers."""
    a, b = normal(1, 3, 4), normal(2, 3, 4)
    three = np.asarray(3.0, np.float32)
    whole = np.arange(1, 13, dtype=np.int64).reshape(3, 4)
    return [
        Case("same_shape", [a, b]),
        Case("row", [a, b[0]]),
        Case("outer", [a[:, None, :], b[None]]),
        Case("scalar", [a, three]),
        Case("integers", [whole, whole[::-1].copy()]),
    ]


def single_cases() -> list[Case]:
    """Return a plain and a large input, zeros included."""
    a = normal(3, 2, 5)
    a[0, 0] = 0.0
    return [Case("plain", [a]), Case("large", [a * 20])]


def positive_cases() -> list[Case]:
    """Return inputs above zero."""
    return [Case("positive", [np.abs(normal(4, 2, 5)) + np.float32(0.01)])]


def bool_cases() -> list[Case]:
    """Return two masks."""
    a, b = normal(5, 3, 4) > 0, normal(6, 3, 4) > 0
    return [Case("masks", [a, b])]


def where_cases() -> list[Case]:
    """Return a full mask and a broadcast one."""
    mask, a, b = normal(7, 3, 4) > 0, normal(8, 3, 4), normal(9, 3, 4)
    return [Case("mask", [mask, a, b]), Case("broadcast", [mask[0], a, b[:, :1]])]


def cast_cases() -> list[Case]:
    """Return conversions between floats, integers and bool."""
    a = normal(10, 3, 4) * 3
    return [
        Case("to_half", [a], {"to": "float16"}),
        Case("to_integer", [a], {"to": "int64"}),
        Case("to_bool", [a], {"to": "bool"}),
        Case("from_integer", [np.arange(5)], {"to": 1}),
        Case("to_float8", [a * 300], {"to": "float8_e4m3fn"}),
    ]


def binary(op: str, function: Function, versions: tuple[int, ...], **changes: Any) -> OpSpec:
    """Return the spec of an operator on two broadcast inputs."""
    spec = {"infer": infer_broadcast, "evaluate": elementwise(function), "cases": pair_cases}
    return OpSpec(op, versions, ("A", "B"), ("C",), **(spec | changes))


def unary(op: str, function: Function, versions: tuple[int, ...], **changes: Any) -> OpSpec:
    """Return the spec of an operator on one input."""
    spec = {"infer": same_as_first, "evaluate": elementwise(function), "cases": single_cases}
    return OpSpec(op, versions, ("X",), ("Y",), **(spec | changes))


def comparison(op: str, function: Function, versions: tuple[int, ...], **changes: Any) -> OpSpec:
    """Return the spec of an operator from two broadcast inputs to bool."""
    spec = {"infer": infer_comparison, "evaluate": predicate(function)}
    return binary(op, function, versions, **(spec | changes))


def variadic(op: str, function: Function, versions: tuple[int, ...]) -> OpSpec:
    """Return the spec of an operator that folds one or more broadcast inputs."""
    return OpSpec(
        op,
        versions,
        ("data*",),
        ("result",),
        infer=infer_broadcast,
        evaluate=elementwise(folded(function)),
        cases=pair_cases,
    )


SPECS: tuple[OpSpec, ...] = (
    binary("Add", np.add, ARITHMETIC),
    binary("Sub", np.subtract, ARITHMETIC),
    binary("Mul", np.multiply, ARITHMETIC),
    binary("Div", divide, ARITHMETIC),
    binary(
        "Pow",
        np.power,
        (7, 12, 13, 15),
        infer=infer_power,
        cases=lambda: [
            Case("square", [normal(11, 3, 4), np.asarray(2.0, np.float32)]),
            Case("integer_exponent", [normal(11, 3, 4), np.asarray(3, np.int64)]),
        ],
    ),
    variadic("Min", np.minimum, (8, 12, 13)),
    variadic("Max", np.maximum, (8, 12, 13)),
    unary("Neg", np.negative, UNARY),
    unary("Abs", np.abs, UNARY),
    unary("Exp", np.exp, UNARY, cases=lambda: [Case("plain", [normal(12, 2, 5)])]),
    unary("Log", np.log, UNARY, cases=positive_cases),
    unary("Sqrt", np.sqrt, UNARY, cases=positive_cases),
    unary("Reciprocal", np.reciprocal, UNARY, cases=positive_cases),
    unary("Cos", np.cos, (7, 22)),
    unary("Sin", np.sin, (7, 22)),
    comparison("Greater", np.greater, (7, 9, 13)),
    comparison("Less", np.less, (7, 9, 13)),
    comparison("Equal", np.equal, (7, 11, 13, 19)),
    comparison("GreaterOrEqual", np.greater_equal, (12, 16)),
    comparison("LessOrEqual", np.less_equal, (12, 16)),
    comparison("And", np.logical_and, (7,), cases=bool_cases),
    comparison("Or", np.logical_or, (7,), cases=bool_cases),
    unary(
        "Not",
        np.logical_not,
        (1,),
        evaluate=predicate(np.logical_not),
        cases=lambda: [Case("mask", [normal(5, 3, 4) > 0])],
    ),
    OpSpec(
        "Where",
        (9, 16),
        ("condition", "X", "Y"),
        ("output",),
        infer=infer_where,
        evaluate=evaluate_where,
        cases=where_cases,
    ),
    OpSpec(
        "Cast",
        (6, 9, 13, 19, 21, 23, 24, 25),
        ("input",),
        ("output",),
        infer=infer_cast,
        evaluate=evaluate_cast,
        attributes={
            "to": Attribute("dtype", required=True),
            "saturate": Attribute("int", 1),
            "round_mode": Attribute("string", "up"),
        },
        cases=cast_cases,
    ),
)
