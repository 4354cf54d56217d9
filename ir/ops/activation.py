"""Activation functions and softmax."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.elementwise import infer_broadcast, unary
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    axis_of,
    common_dtype,
    normal,
    required_input,
    same_as_first,
)

_erf = np.frompyfunc(math.erf, 1, 1)


def erf(values: Array) -> NDArray[np.float64]:
    """Return the error function of each element, in float64."""
    return np.asarray(_erf(values), dtype=np.float64).reshape(np.shape(values))


def sigmoid(values: Array) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-x)) in float64, without overflow."""
    wide = np.asarray(values, np.float64)
    decayed = np.exp(-np.abs(wide))
    return np.where(wide >= 0, 1.0, decayed) / (1.0 + decayed)


def swish(values: Array, alpha: float = 1.0) -> Array:
    """Return x * sigmoid(alpha * x), computed in float64."""
    wide = np.asarray(values, np.float64)
    return np.asarray(wide * sigmoid(alpha * wide)).astype(np.asarray(values).dtype)


def gelu(values: Array, approximate: str = "none") -> Array:
    """Return GELU, by erf or by the tanh formula, computed in float64."""
    wide = np.asarray(values, np.float64)
    if approximate == "tanh":
        inner = np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))
    else:
        inner = erf(wide / math.sqrt(2))
    return np.asarray(0.5 * wide * (1 + inner)).astype(np.asarray(values).dtype)


def softmax(values: Array, axis: int) -> Array:
    """Return softmax along an axis, summed in float64."""
    wide = np.asarray(values, np.float64)
    if wide.size == 0:
        return np.array(values)
    weights = np.exp(wide - wide.max(axis=axis, keepdims=True))
    return np.asarray(weights / weights.sum(axis=axis, keepdims=True)).astype(
        np.asarray(values).dtype
    )


def evaluate_swish(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Swish."""
    return [swish(inputs[0], attributes["alpha"])]


def evaluate_gelu(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Gelu."""
    return [gelu(inputs[0], attributes["approximate"])]


def evaluate_softmax(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Softmax."""
    return [softmax(inputs[0], attributes["axis"])]


def evaluate_swiglu(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate swish(gate) * up."""
    gate, up = inputs
    return [swish(gate, 1.0) * up]


def infer_softmax(node: Node) -> list[ValueType]:
    """Infer: like the input; the axis must exist."""
    value = required_input(node, 0)
    if value.shape is not None:
        axis_of(node, node.attributes.get("axis", -1), len(value.shape))
    return same_as_first(node)


def infer_gelu(node: Node) -> list[ValueType]:
    """Infer: like the input; the approximation must be one of two."""
    if node.attributes.get("approximate", "none") not in ("none", "tanh"):
        raise GraphError(node.label, "approximate must be 'none' or 'tanh'; give one of them")
    return [ValueType(common_dtype(node, [0]), required_input(node, 0).shape)]


def wide_cases() -> list[Case]:
    """Return values from -30 to 30 and a plain sample."""
    return [
        Case("plain", [normal(20, 2, 3, 7)]),
        Case("wide", [np.linspace(-30, 30, 61, dtype=np.float32)]),
    ]


SPECS: tuple[OpSpec, ...] = (
    unary("Relu", lambda x: np.maximum(x, 0), (6, 13, 14), cases=wide_cases),
    unary("Sigmoid", sigmoid, (6, 13), cases=wide_cases),
    unary("Tanh", np.tanh, (6, 13), cases=wide_cases),
    unary("Erf", erf, (9, 13), cases=wide_cases),
    OpSpec(
        "Swish",
        (24,),
        ("X",),
        ("Y",),
        infer=same_as_first,
        evaluate=evaluate_swish,
        attributes={"alpha": Attribute("float", 1.0)},
        cases=wide_cases,
    ),
    OpSpec(
        "Gelu",
        (20,),
        ("X",),
        ("Y",),
        infer=infer_gelu,
        evaluate=evaluate_gelu,
        attributes={"approximate": Attribute("string", "none")},
        cases=lambda: [
            Case(f"{case.name}_{kind}", case.inputs, {"approximate": kind})
            for case in wide_cases()
            for kind in ("none", "tanh")
        ],
    ),
    OpSpec(
        "Softmax",
        (13,),
        ("input",),
        ("output",),
        infer=infer_softmax,
        evaluate=evaluate_softmax,
        attributes={"axis": Attribute("int", -1)},
        cases=lambda: [
            Case("last", [normal(21, 2, 3, 7)]),
            Case("first", [normal(21, 2, 3, 7) * 50], {"axis": 0}),
        ],
    ),
    OpSpec(
        "SwiGLU",
        (1,),
        ("gate", "up"),
        ("Y",),
        infer=infer_broadcast,
        evaluate=evaluate_swiglu,
        domain="halfbyte",
        cases=lambda: [
            Case("plain", [normal(22, 2, 3, 8), normal(23, 2, 3, 8)]),
            Case("one_row", [normal(22, 1, 37), normal(23, 1, 37)]),
        ],
    ),
)
