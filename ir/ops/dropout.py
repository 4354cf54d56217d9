"""Dropout: everything in inference, a random part in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.ops.numerics import quiet
from halfbyte.ir.ops.older_forms import (
    CONSUMED,
    constant,
    drop_unused_outputs,
    renewed,
    set_inputs,
)
from halfbyte.ir.ops.random import seeded
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
)

NEWEST = 22


@quiet
def evaluate_dropout(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Drop elements and scale the rest in training; else return everything."""
    data = np.asarray(inputs[0])
    ratio, training = (*inputs[1:], None, None)[:2]
    share = 0.5 if ratio is None else float(np.asarray(ratio).reshape(()))
    if training is None or not bool(np.asarray(training).reshape(())):
        share = 0.0
    return dropped(data, share, attributes["seed"])[: context.outputs]


def dropped(data: Array, ratio: float, seed: int | None) -> list[Array]:
    """Return the data without a share of its elements, scaled up, and what was kept.

    Raises:
        GraphError: the share is not in [0, 1).
    """
    if not 0 <= ratio < 1:
        raise GraphError("Dropout", f"ratio {ratio} found; give at least 0 and less than 1")
    if ratio == 0:
        return [data, np.ones(data.shape, np.bool_)]
    kept = seeded(seed).random_sample(data.shape) >= ratio
    wide = data.astype(np.float64) * kept / (1 - ratio)
    return [np.asarray(wide).astype(data.dtype), kept]


@quiet
def evaluate_old_dropout(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Drop elements unless attribute `is_test` is set, or not there at all."""
    data = np.asarray(inputs[0])
    share = 0.0 if attributes.get("is_test", 1) else attributes["ratio"]
    result, kept = dropped(data, share, None)
    mask = np.bool_ if attributes["bool_mask"] else data.dtype
    return [result, kept.astype(mask)][: context.outputs]


def infer_dropout(node: Node) -> list[ValueType]:
    """Infer: like the data; the mask is bool."""
    data = required_input(node, 0)
    first = ValueType(common_dtype(node, [0]), data.shape)
    return [first, ValueType("bool", data.shape)][: len(node.outputs)]


def infer_old_dropout(node: Node) -> list[ValueType]:
    """Infer: like the data, the mask too."""
    return infer_dropout(node)[:1] * len(node.outputs)


def upgrade_dropout(graph: Graph, node: Node) -> bool:
    """Turn the ratio into an input where something is dropped; a mask of floats stays old."""
    if node.since_version < 10 and not drop_unused_outputs(graph, node, 1):
        return False
    training = node.since_version < 7 and not node.attributes.get("is_test", 0)
    values = [node.inputs[0]]
    if training:
        ratio = np.asarray(node.attributes.get("ratio", 0.5), np.float32)
        values.append(constant(graph, node, "ratio", ratio))
        values.append(constant(graph, node, "training", np.asarray(True)))
    set_inputs(graph, node, values)
    return renewed(node, NEWEST, "ratio", "is_test", "consumed_inputs")


def dropout_cases() -> list[Case]:
    """Return inference and training."""
    a, ratio = normal(153, 3, 4), np.asarray(0.25, np.float32)
    return [
        Case("inference", [a], outputs=2),
        Case("training", [a, ratio, np.asarray(True)], {"seed": 3}, outputs=2),
    ]


DROPOUT = OpSpec(
    "Dropout",
    (12, 13, 22),
    ("data", "ratio?", "training_mode?"),
    ("output", "mask?"),
    infer=infer_dropout,
    evaluate=evaluate_dropout,
    attributes={"seed": Attribute("int")},
    cases=dropout_cases,
)
RATIO = {"ratio": Attribute("float", 0.5)}
IS_TEST = {"is_test": Attribute("int", 0)}


def old_form(*versions: int, **attributes: Attribute) -> OpSpec:
    """Return a form whose ratio is an attribute; masks are bool from version 10 on."""
    masked = versions[0] >= 10

    def evaluate(inputs: Sequence[Any], given: Mapping[str, Any], context: Context) -> list[Array]:
        return evaluate_old_dropout(inputs, {**given, "bool_mask": masked}, context)

    return replace(
        DROPOUT,
        versions=versions,
        inputs=("data",),
        infer=infer_dropout if masked else infer_old_dropout,
        evaluate=evaluate,
        attributes=RATIO | attributes,
        upgrade=upgrade_dropout,
        cases=list,
    )


SPECS: tuple[OpSpec, ...] = (
    old_form(1, **IS_TEST, **CONSUMED),
    old_form(6, **IS_TEST),
    old_form(7),
    old_form(10),
    DROPOUT,
)
