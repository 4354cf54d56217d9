"""Activation functions of one element, and gated ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.ops.elementwise import infer_broadcast, unary
from halfbyte.ir.ops.error_function import erf, fast_erf
from halfbyte.ir.ops.numerics import pointwise, quiet
from halfbyte.ir.ops.older_forms import CONSUMED, renewed, unsqueeze_end
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    common_dtype,
    normal,
    required_input,
    same_as_first,
)
from halfbyte.ir.ops.unary import IN_OUT, with_consumed


def sigmoid(values: Array) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-x)) in float64, where an infinite exponential gives 0."""
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-np.asarray(values, np.float64))))


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
        narrow = np.asarray(values).dtype != np.float64
        inner = (fast_erf if narrow else erf)(wide / math.sqrt(2))
    return np.asarray(0.5 * wide * (1 + inner)).astype(np.asarray(values).dtype)


def evaluate_swiglu(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate swish(gate) * up."""
    gate, up = inputs
    return [np.asarray(swish(gate, attributes.get("alpha", 1.0)) * up)]


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


def prelu(data: Array, slope: Array) -> Array:
    """Return data, times slope where it is negative."""
    return np.where(data < 0, data * slope, data)


def old_prelu(data: Array, slope: Array) -> Array:
    """Return PRelu with one slope for everything or one per channel."""
    if slope.size == 1:
        slope = slope.reshape(())
    elif slope.ndim == 1 and data.ndim > 1:
        slope = slope.reshape(-1, *(1,) * (data.ndim - 2))
    return prelu(data, slope)


def infer_prelu(node: Node) -> list[ValueType]:
    """Infer: like the data; the slope follows its dtype."""
    return [ValueType(common_dtype(node), required_input(node, 0).shape)]


def upgrade_prelu(graph: Graph, node: Node) -> bool:
    """Give a slope per channel the dimensions behind the channels."""
    data, slope = required_input(node, 0), required_input(node, 1)
    if data.shape is None or slope.shape is None:
        return False
    extra = len(data.shape) - 2
    if len(slope.shape) == 1 and slope.shape[0] != 1 and extra > 0:
        unsqueeze_end(graph, node, 1, extra)
    return renewed(node, 16, "consumed_inputs")


def prelu_cases() -> list[Case]:
    """Return a slope per element, per channel, one."""
    a = normal(28, 2, 3, 4)
    slopes = normal(29, 3, 4), normal(29, 3, 1), normal(29, 1)
    return [Case(f"rank{slope.ndim}", [a, slope]) for slope in slopes]


def gated_cases() -> list[Case]:
    """Return a gate and values, one row too."""
    return [
        Case("plain", [normal(22, 2, 3, 8), normal(23, 2, 3, 8)]),
        Case("one_row", [normal(22, 1, 37), normal(23, 1, 37)]),
    ]


PRELU = OpSpec(
    "PRelu",
    (7, 9, 16),
    ("X", "slope"),
    ("Y",),
    infer=infer_prelu,
    evaluate=pointwise(prelu),
    cases=prelu_cases,
)
PRELU_6 = replace(
    PRELU, versions=(6,), evaluate=pointwise(old_prelu), upgrade=upgrade_prelu, cases=list
)
SPECS: tuple[OpSpec, ...] = (
    *with_consumed(unary("Relu", lambda x: np.maximum(x, 0), (6, 13, 14), cases=wide_cases)),
    *with_consumed(
        unary("Sigmoid", sigmoid, (6, 13), evaluate=pointwise(sigmoid), cases=wide_cases)
    ),
    *with_consumed(unary("Tanh", np.tanh, (6, 13), cases=wide_cases, **IN_OUT)),
    unary("Erf", erf, (9, 13), evaluate=pointwise(erf), cases=wide_cases, **IN_OUT),
    replace(PRELU_6, versions=(1,), attributes=CONSUMED),
    PRELU_6,
    PRELU,
    OpSpec(
        "Swish",
        (24,),
        ("X",),
        ("Y",),
        infer=same_as_first,
        evaluate=pointwise(swish, "alpha"),
        attributes={"alpha": Attribute("float", 1.0)},
        cases=wide_cases,
    ),
    OpSpec(
        "Gelu",
        (20,),
        ("X",),
        ("Y",),
        infer=infer_gelu,
        evaluate=pointwise(gelu, "approximate"),
        attributes={"approximate": Attribute("string", "none")},
        cases=lambda: [
            Case(f"{case.name}_{kind}", case.inputs, {"approximate": kind})
            for case in wide_cases()
            for kind in ("none", "tanh")
        ],
    ),
    OpSpec(
        "SwiGLU",
        (28,),
        ("A", "B"),
        ("Y",),
        infer=infer_broadcast,
        evaluate=quiet(evaluate_swiglu),
        attributes={"alpha": Attribute("float", 1.0)},
        cases=gated_cases,
    ),
    OpSpec(
        "SwiGLU",
        (1,),
        ("gate", "up"),
        ("Y",),
        infer=infer_broadcast,
        evaluate=quiet(evaluate_swiglu),
        domain="halfbyte",
        cases=gated_cases,
    ),
)
