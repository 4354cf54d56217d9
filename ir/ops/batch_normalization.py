"""BatchNormalization, by given statistics or by those of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.ops.numerics import quiet
from halfbyte.ir.ops.older_forms import drop_unused_outputs, renewed
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

NEWEST = 15


def per_channel(values: Array, data: Array) -> Array:
    """Return statistics [channels] or [channels, ...] in a float64 shape that broadcasts."""
    wide = np.asarray(values, np.float64)
    if data.ndim < 2 or wide.ndim > 1:
        return wide
    return wide.reshape(-1, *(1,) * (data.ndim - 2))


def normalized(data: Array, parameters: Sequence[Array], epsilon: float) -> Array:
    """Return (x - mean) / sqrt(variance + epsilon) * scale + bias in the dtype of the data."""
    scale, bias, mean, variance = (per_channel(p, data) for p in parameters)
    factor = scale / np.sqrt(variance + epsilon)
    result = (data.astype(np.float64) - mean) * factor + bias
    return np.asarray(result.astype(data.dtype))


def batch_statistics(data: Array, spatial: bool = True) -> tuple[Array, Array]:
    """Return mean and variance of the batch: per channel, or of every position by itself."""
    axes = tuple(i for i in range(data.ndim) if i != 1) if spatial else (0,)
    wide = data.astype(np.float64)
    return np.asarray(wide.mean(axis=axes)), np.asarray(wide.var(axis=axes))


def trained(
    inputs: Sequence[Any], attributes: Mapping[str, Any], saved: bool, spatial: bool = True
) -> list[Array]:
    """Return the data normalized by its own statistics, the running ones, and if `saved` both."""
    data, scale, bias, mean, variance = (np.asarray(v) for v in inputs)
    found = batch_statistics(data, spatial)
    momentum = attributes["momentum"]
    running = [
        (old.astype(np.float64) * momentum + new * (1 - momentum)).astype(old.dtype)
        for old, new in zip((mean, variance), found, strict=True)
    ]
    result = normalized(data, [scale, bias, *found], attributes["epsilon"])
    own = [value.astype(mean.dtype) for value in found] if saved else []
    return [result, *running, *own]


@quiet
def evaluate_batch(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate BatchNormalization."""
    if attributes["training_mode"]:
        return trained(inputs, attributes, saved=False)
    return [normalized(np.asarray(inputs[0]), inputs[1:], attributes["epsilon"])]


@quiet
def evaluate_old(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate the forms that train where they are told so, or have more than one output."""
    test = attributes.get("is_test", int(context.outputs == 1))
    if test:
        return [normalized(np.asarray(inputs[0]), inputs[1:], attributes["epsilon"])]
    spatial = bool(attributes.get("spatial", 1))
    return trained(inputs, attributes, saved=True, spatial=spatial)[: context.outputs]


def infer_batch(node: Node) -> list[ValueType]:
    """Infer: data like the data, statistics like the given ones."""
    data, mean = required_input(node, 0), required_input(node, 3)
    statistics = ValueType(common_dtype(node, [3]), mean.shape)
    first = ValueType(common_dtype(node, [0]), data.shape)
    return [first] + [statistics] * (len(node.outputs) - 1)


def upgrade_batch(graph: Graph, node: Node) -> bool:
    """Say `training_mode` outright; statistics of the batch and of positions stay old."""
    spatial = node.attributes.get("spatial", 1)
    explicit = node.since_version < 7
    unused = all(not v.uses and v not in graph.outputs for v in node.outputs[1:])
    training = not node.attributes.get("is_test", 0) if explicit else len(node.outputs) > 1
    if not spatial or not drop_unused_outputs(graph, node, 3 if training and not unused else 1):
        return False
    node.attributes["training_mode"] = int(training)
    return renewed(node, NEWEST, "is_test", "spatial", "consumed_inputs")


def batch_cases() -> list[Case]:
    """Return given statistics and those of the batch."""
    vectors = [normal(135, 4), normal(136, 4), normal(137, 4), np.abs(normal(138, 4))]
    return [
        Case("image", [normal(139, 2, 4, 3, 5), *vectors]),
        Case("rows", [normal(140, 3, 4), *vectors], {"epsilon": 0.01}),
        Case("training", [normal(141, 2, 4, 6), *vectors], {"training_mode": 1}, outputs=3),
    ]


SHARED = {"epsilon": Attribute("float", 1e-5), "momentum": Attribute("float", 0.9)}
IS_TEST = {"is_test": Attribute("int", 0)}
SPATIAL = {"spatial": Attribute("int", 1)}
BATCH = OpSpec(
    "BatchNormalization",
    (14, 15),
    ("X", "scale", "B", "input_mean", "input_var"),
    ("Y", "running_mean?", "running_var?"),
    infer=infer_batch,
    evaluate=evaluate_batch,
    attributes={**SHARED, "training_mode": Attribute("int", 0)},
    cases=batch_cases,
)
BATCH_9 = replace(
    BATCH,
    versions=(9,),
    inputs=("X", "scale", "B", "mean", "var"),
    outputs=("Y", "mean?", "var?", "saved_mean?", "saved_var?"),
    evaluate=evaluate_old,
    attributes=SHARED,
    upgrade=upgrade_batch,
    cases=list,
)
BATCH_6 = replace(BATCH_9, versions=(6,), attributes=SHARED | SPATIAL | IS_TEST)
CONSUMED = {"consumed_inputs": Attribute("ints", required=True)}
SPECS: tuple[OpSpec, ...] = (
    replace(BATCH_6, versions=(1,), attributes=SHARED | SPATIAL | IS_TEST | CONSUMED),
    BATCH_6,
    replace(BATCH_9, versions=(7,), attributes=SHARED | SPATIAL),
    BATCH_9,
    BATCH,
)
