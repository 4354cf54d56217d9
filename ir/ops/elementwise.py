"""Operators that act on each element: arithmetic, comparison, selection, conversion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import INTEGERS
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.numerics import quiet, widened
from halfbyte.ir.ops.older_forms import broadcasting
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
        with np.errstate(all="ignore"):
            return [np.asarray(function(*inputs)).astype(np.bool_)]

    return evaluate


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


def power(base: Array, exponent: Array) -> Array:
    """Raise to a power; the result has the dtype of the base, also for negative exponents."""
    base, exponent = widened(base), widened(exponent)
    whole = base.dtype.kind in "iu"
    if whole and exponent.dtype.kind in "iu" and (exponent.size == 0 or exponent.min() >= 0):
        return np.asarray(np.power(base, exponent.astype(base.dtype)))
    if whole:
        return np.asarray(np.power(base.astype(np.float64), exponent.astype(np.float64)))
    return np.asarray(np.power(base, exponent.astype(base.dtype)))


@quiet
def evaluate_modulus(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return the remainder; its sign is the divisor's, with `fmod` the dividend's."""
    left, right = (widened(v) for v in inputs)
    result = np.fmod(left, right) if attributes["fmod"] else np.remainder(left, right)
    return [np.asarray(result).astype(np.asarray(inputs[0]).dtype, copy=False)]


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


def binary(op: str, function: Function, versions: tuple[int, ...], **changes: Any) -> OpSpec:
    """Return the spec of an operator on two broadcast inputs."""
    spec = {"infer": infer_broadcast, "evaluate": elementwise(function), "cases": pair_cases}
    names: dict[str, Any] = {"inputs": ("A", "B"), "outputs": ("C",)}
    return OpSpec(op, versions, **(names | spec | changes))


def unary(op: str, function: Function, versions: tuple[int, ...], **changes: Any) -> OpSpec:
    """Return the spec of an operator on one input."""
    spec = {"infer": same_as_first, "evaluate": elementwise(function), "cases": single_cases}
    names: dict[str, Any] = {"inputs": ("X",), "outputs": ("Y",)}
    return OpSpec(op, versions, **(names | spec | changes))


def comparison(op: str, function: Function, versions: tuple[int, ...], **changes: Any) -> OpSpec:
    """Return the spec of an operator from two broadcast inputs to bool."""
    spec = {"infer": infer_comparison, "evaluate": predicate(function)}
    return binary(op, function, versions, **(spec | changes))


def with_old_broadcast(newer: OpSpec, *versions: int) -> tuple[OpSpec, OpSpec]:
    """Return both forms of an operator that once broadcast by attributes."""
    return broadcasting(newer, *versions), newer


def power_cases() -> list[Case]:
    """Return a square and an integer exponent."""
    return [
        Case("square", [normal(11, 3, 4), np.asarray(2.0, np.float32)]),
        Case("integer_exponent", [normal(11, 3, 4), np.asarray(3, np.int64)]),
    ]


def modulus_cases() -> list[Case]:
    """Return both remainders of integers and of floats."""
    whole, divisor = np.arange(-6, 6, dtype=np.int64), np.asarray([5, -4, 3] * 4, np.int64)
    a, b = normal(13, 3, 4) * 9, normal(14, 3, 4)
    return [
        Case(f"{name}_{fmod}", list(pair), {"fmod": fmod})
        for name, pair in (("integers", (whole, divisor)), ("floats", (a, b)))
        for fmod in (0, 1)
    ]


SPECS: tuple[OpSpec, ...] = (
    *with_old_broadcast(binary("Add", np.add, ARITHMETIC), 1, 6),
    *with_old_broadcast(binary("Sub", np.subtract, ARITHMETIC), 1, 6),
    *with_old_broadcast(binary("Mul", np.multiply, ARITHMETIC), 1, 6),
    *with_old_broadcast(binary("Div", divide, ARITHMETIC), 1, 6),
    *with_old_broadcast(
        binary(
            "Pow",
            power,
            (7, 12, 13, 15),
            inputs=("X", "Y"),
            outputs=("Z",),
            infer=infer_power,
            cases=power_cases,
        ),
        1,
    ),
    binary(
        "Mod",
        np.remainder,
        (10, 13, 28),
        evaluate=evaluate_modulus,
        attributes={"fmod": Attribute("int", 0)},
        cases=modulus_cases,
    ),
    *with_old_broadcast(comparison("Greater", np.greater, (7, 9, 13)), 1),
    *with_old_broadcast(comparison("Less", np.less, (7, 9, 13)), 1),
    *with_old_broadcast(comparison("Equal", np.equal, (7, 11, 13, 19)), 1),
    comparison("GreaterOrEqual", np.greater_equal, (12, 16)),
    comparison("LessOrEqual", np.less_equal, (12, 16)),
    *with_old_broadcast(comparison("And", np.logical_and, (7,), cases=bool_cases), 1),
    *with_old_broadcast(comparison("Or", np.logical_or, (7,), cases=bool_cases), 1),
    *with_old_broadcast(comparison("Xor", np.logical_xor, (7,), cases=bool_cases), 1),
    OpSpec(
        "Where",
        (9, 16),
        ("condition", "X", "Y"),
        ("output",),
        infer=infer_where,
        evaluate=evaluate_where,
        cases=where_cases,
    ),
)
