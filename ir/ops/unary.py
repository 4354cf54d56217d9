"""Functions of one element: signs, rounding, powers, tests; and Clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.ir.dtypes import numpy_dtype
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.elementwise import UNARY, elementwise, predicate, unary
from halfbyte.ir.ops.numerics import quiet, widened
from halfbyte.ir.ops.older_forms import constant, consuming, renewed, set_inputs
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    normal,
    required_input,
    same_as_first,
)

IN_OUT = {"inputs": ("input",), "outputs": ("output",)}
LARGEST = 3.4028234663852886e38


def infer_predicate(node: Node) -> list[ValueType]:
    """Infer: bool, of the input's shape."""
    return [ValueType("bool", required_input(node, 0).shape)]


@quiet
def evaluate_infinite(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Find infinities of the signs asked for."""
    data = np.asarray(inputs[0])
    wide = data if data.dtype in (np.float32, np.float64) else data.astype(np.float32)
    found = np.isinf(wide)
    if not attributes["detect_negative"]:
        found = found & (wide > 0)
    if not attributes["detect_positive"]:
        found = found & (wide < 0)
    return [np.asarray(found)]


def not_a_number(data: Array) -> Array:
    """Find NaN; any float type."""
    data = np.asarray(data)
    wide = data if data.dtype in (np.float32, np.float64) else data.astype(np.float32)
    return np.asarray(np.isnan(wide))


def rounded(function: Any) -> Any:
    """Return an evaluate that computes 16-bit floats in float32."""
    return elementwise(lambda data: function(widened(data)))


def clip(data: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """Limit values; the upper limit wins, NaN stays."""
    if low is not None:
        data = np.maximum(data, np.asarray(low).astype(data.dtype).reshape(()))
    if high is not None:
        data = np.minimum(data, np.asarray(high).astype(data.dtype).reshape(()))
    return data


@quiet
def evaluate_old_clip(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Clip with limits as attributes."""
    limits = [attributes["min"], attributes["max"]]
    return [clip(np.asarray(inputs[0]), *(None if v is None else np.asarray(v) for v in limits))]


def upgrade_clip(graph: Graph, node: Node) -> bool:
    """Turn the limits into inputs; the widest float32 limits limit no float up to 32 bits."""
    data = required_input(node, 0)
    if data.dtype not in ("float16", "bfloat16", "float32", "float64"):
        return False
    values: list[Value | None] = []
    for name, widest in (("min", -LARGEST), ("max", LARGEST)):
        limit = node.attributes.get(name)
        if data.dtype == "float64" and node.since_version > 1:
            limit = widest if limit is None else limit
        if limit is None or (data.dtype != "float64" and abs(limit) >= LARGEST):
            values.append(None)
        else:
            array = np.asarray(limit).astype(numpy_dtype(data.dtype))
            values.append(constant(graph, node, name, array))
    while values and values[-1] is None:
        values.pop()
    set_inputs(graph, node, [data, *values])
    return renewed(node, 13, "min", "max", "consumed_inputs")


def positive_cases() -> list[Case]:
    """Return inputs above zero."""
    return [Case("positive", [np.abs(normal(4, 2, 5)) + np.float32(0.01)])]


def half_cases() -> list[Case]:
    """Return numbers between integers, halves included."""
    return [Case("halves", [np.arange(-10, 11, dtype=np.float32) / 4])]


def special_cases() -> list[Case]:
    """Return NaN, infinities and numbers."""
    values = np.asarray([np.nan, np.inf, -np.inf, 0, -3.5], np.float32)
    return [Case("special", [values])]


def infinite_cases() -> list[Case]:
    """Return every choice of signs."""
    (case,) = special_cases()
    return [
        *special_cases(),
        Case("positive", case.inputs, {"detect_negative": 0}),
        Case("negative", case.inputs, {"detect_positive": 0}),
    ]


def clip_cases() -> list[Case]:
    """Return both limits, one, none."""
    a, low, high = normal(15, 3, 4), np.asarray(-0.5, np.float32), np.asarray(0.5, np.float32)
    return [
        Case("both", [a, low, high]),
        Case("upper", [a, None, high]),
        Case("lower", [a, low]),
        Case("none", [a]),
    ]


def with_consumed(newer: OpSpec) -> tuple[OpSpec, OpSpec]:
    """Return both forms of an operator that once said which inputs it may overwrite."""
    return consuming(newer), newer


CLIP = OpSpec(
    "Clip",
    (11, 12, 13),
    ("input", "min?", "max?"),
    ("output",),
    infer=same_as_first,
    evaluate=elementwise(clip),
    cases=clip_cases,
)
CLIP_6 = replace(
    CLIP,
    versions=(6,),
    inputs=("input",),
    evaluate=evaluate_old_clip,
    attributes={"min": Attribute("float", -LARGEST), "max": Attribute("float", LARGEST)},
    upgrade=upgrade_clip,
    cases=list,
)
CLIP_1 = replace(
    CLIP_6,
    versions=(1,),
    attributes={
        "min": Attribute("float"),
        "max": Attribute("float"),
        "consumed_inputs": Attribute("ints"),
    },
)
SPECS: tuple[OpSpec, ...] = (
    *with_consumed(unary("Neg", np.negative, UNARY)),
    *with_consumed(unary("Abs", np.abs, UNARY)),
    unary("Sign", np.sign, (9, 13), **IN_OUT),
    *with_consumed(unary("Ceil", np.ceil, UNARY, evaluate=rounded(np.ceil), cases=half_cases)),
    *with_consumed(unary("Floor", np.floor, UNARY, evaluate=rounded(np.floor), cases=half_cases)),
    unary("Round", np.rint, (11, 22), evaluate=rounded(np.rint), cases=half_cases),
    *with_consumed(
        unary("Exp", np.exp, UNARY, cases=lambda: [Case("plain", [normal(12, 2, 5)])], **IN_OUT)
    ),
    *with_consumed(unary("Log", np.log, UNARY, cases=positive_cases, **IN_OUT)),
    *with_consumed(unary("Sqrt", np.sqrt, UNARY, cases=positive_cases)),
    *with_consumed(
        unary(
            "Reciprocal",
            np.reciprocal,
            UNARY,
            evaluate=rounded(np.reciprocal),
            cases=positive_cases,
        )
    ),
    unary(
        "IsInf",
        np.isinf,
        (10, 20),
        infer=infer_predicate,
        evaluate=evaluate_infinite,
        attributes={"detect_negative": Attribute("int", 1), "detect_positive": Attribute("int", 1)},
        cases=infinite_cases,
    ),
    unary(
        "IsNaN",
        not_a_number,
        (9, 13, 20),
        infer=infer_predicate,
        evaluate=predicate(not_a_number),
        cases=special_cases,
    ),
    unary(
        "Not",
        np.logical_not,
        (1,),
        evaluate=predicate(np.logical_not),
        cases=lambda: [Case("mask", [normal(5, 3, 4) > 0])],
    ),
    CLIP_1,
    CLIP_6,
    CLIP,
)
