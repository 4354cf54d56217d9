"""Losses of classification: data [batch, classes, ...], targets [batch, ...]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.numerics import quiet
from halfbyte.ir.ops.softmax import log_softmax
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    common_dtype,
    generator,
    normal,
    required_input,
)


def likelihood_loss(
    logarithms: Array, target: Array, weight: Array | None, attributes: Mapping[str, Any]
) -> Array:
    """Return minus the weighted logarithm of each target's probability, reduced, in float64."""
    ignored = attributes["ignore_index"]
    skip = np.zeros(target.shape, np.bool_) if ignored is None else target == ignored
    classes = np.where(skip, 0, target)
    picked = np.take_along_axis(logarithms, np.expand_dims(classes, 1), 1).squeeze(1)
    factors = np.ones(target.shape) if weight is None else np.asarray(weight, np.float64)[classes]
    factors = np.where(skip, 0.0, factors)
    losses = np.where(skip, 0.0, -picked * factors)
    if attributes["reduction"] == "none":
        return losses
    total = losses.sum()
    return np.asarray(total / factors.sum() if attributes["reduction"] == "mean" else total)


@quiet
def evaluate_likelihood(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate NegativeLogLikelihoodLoss."""
    data, target = (np.asarray(v) for v in inputs[:2])
    weight = inputs[2] if len(inputs) > 2 else None
    loss = likelihood_loss(data.astype(np.float64), target, weight, attributes)
    return [loss.astype(data.dtype)]


@quiet
def evaluate_cross_entropy(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate SoftmaxCrossEntropyLoss."""
    data, target = (np.asarray(v) for v in inputs[:2])
    weight = inputs[2] if len(inputs) > 2 else None
    logarithms = log_softmax(data.astype(np.float64), 1)
    loss = likelihood_loss(logarithms, target, weight, attributes)
    return [loss.astype(data.dtype), logarithms.astype(data.dtype)][: context.outputs]


def infer_loss(node: Node) -> list[ValueType]:
    """Infer: one loss, or one per target; then logarithms like the scores."""
    data, target = required_input(node, 0), required_input(node, 1)
    dtype = common_dtype(node, [0])
    reduction = node.attributes.get("reduction", "mean")
    if reduction not in ("none", "mean", "sum"):
        raise GraphError(node.label, f"reduction {reduction!r}; give 'none', 'mean' or 'sum'")
    loss = ValueType(dtype, target.shape if reduction == "none" else ())
    return [loss, ValueType(dtype, data.shape)][: len(node.outputs)]


def loss_cases() -> list[Case]:
    """Return each reduction, weights, ignored targets."""
    data, weight = normal(157, 3, 5, 2), np.abs(normal(158, 5))
    target = generator(159).integers(0, 5, (3, 2))
    return [
        Case("mean", [data, target]),
        Case("weights", [data, target, weight], {"reduction": "sum"}),
        Case("ignored", [data, target, weight], {"ignore_index": int(target[0, 0])}),
        Case("none", [data, target], {"reduction": "none"}),
    ]


LOSS = {"ignore_index": Attribute("int"), "reduction": Attribute("string", "mean")}
SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "NegativeLogLikelihoodLoss",
        (12, 13, 22),
        ("input", "target", "weight?"),
        ("loss",),
        infer=infer_loss,
        evaluate=evaluate_likelihood,
        attributes=LOSS,
        cases=loss_cases,
    ),
    OpSpec(
        "SoftmaxCrossEntropyLoss",
        (12, 13),
        ("scores", "labels", "weights?"),
        ("output", "log_prob?"),
        infer=infer_loss,
        evaluate=evaluate_cross_entropy,
        attributes=LOSS,
        cases=lambda: [
            *loss_cases(),
            Case("both", loss_cases()[0].inputs, outputs=2),
        ],
    ),
)
