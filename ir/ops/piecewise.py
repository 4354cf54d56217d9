"""Activation functions made of pieces: linear, exponential, saturating."""

from __future__ import annotations

from typing import Any

import numpy as np

from halfbyte.ir.ops.elementwise import unary
from halfbyte.ir.ops.numerics import pointwise
from halfbyte.ir.ops.older_forms import consuming
from halfbyte.ir.ops.spec import Array, Attribute, Case, OpSpec, normal
from halfbyte.ir.ops.unary import IN_OUT


def leaky_relu(data: Array, alpha: float) -> Array:
    """Return data, times alpha where it is negative."""
    return np.asarray(np.maximum(data, 0) + data.dtype.type(alpha) * np.minimum(data, 0))


def elu(data: Array, alpha: float) -> Array:
    """Return data, alpha * (exp(x) - 1) where it is negative."""
    return np.where(data < 0, alpha * np.expm1(np.minimum(data, 0)), data)


def celu(data: Array, alpha: float) -> Array:
    """Return data, alpha * (exp(x / alpha) - 1) where it is negative."""
    return np.where(data < 0, alpha * np.expm1(np.minimum(data, 0) / alpha), data)


def selu(data: Array, alpha: float, gamma: float) -> Array:
    """Return gamma times Elu."""
    return np.asarray(gamma * elu(data, alpha))


def hard_sigmoid(data: Array, alpha: float, beta: float) -> Array:
    """Return alpha * x + beta between 0 and 1."""
    return np.clip(alpha * data + beta, 0, 1)


def hard_swish(data: Array) -> Array:
    """Return x times x / 6 + 0.5 between 0 and 1."""
    return np.asarray(data * np.clip(data / 6 + 0.5, 0, 1))


def softplus(data: Array) -> Array:
    """Return log(1 + exp(x)), without overflow."""
    return np.asarray(np.maximum(data, 0) + np.log1p(np.exp(-np.abs(data))))


def softsign(data: Array) -> Array:
    """Return x / (1 + |x|)."""
    return np.asarray(data / (1 + np.abs(data)))


def mish(data: Array) -> Array:
    """Return x * tanh(softplus(x))."""
    return np.asarray(data * np.tanh(softplus(data)))


def thresholded_relu(data: Array, alpha: float) -> Array:
    """Return data where it is above alpha, 0 elsewhere."""
    return np.where(data > alpha, data, np.zeros((), data.dtype))


def shrink(data: Array, bias: float, lambd: float) -> Array:
    """Return data moved towards 0 by bias where beyond lambd, 0 elsewhere."""
    wide = data if data.dtype.kind == "f" else data.astype(np.float64)
    outer = np.where(wide < -lambd, wide + bias, np.zeros((), wide.dtype))
    return np.where(wide > lambd, wide - bias, outer)


def wide_cases() -> list[Case]:
    """Return values from -30 to 30 and a plain sample."""
    return [
        Case("plain", [normal(20, 2, 3, 7)]),
        Case("wide", [np.linspace(-30, 30, 61, dtype=np.float32)]),
    ]


def activation(op: str, function: Any, versions: tuple[int, ...], **defaults: float) -> OpSpec:
    """Return the spec of one function; its attributes are floats with these defaults."""
    return unary(
        op,
        function,
        versions,
        evaluate=pointwise(function, *defaults),
        attributes={name: Attribute("float", value) for name, value in defaults.items()},
        cases=wide_cases,
    )


def legacy_form(newer: OpSpec, **defaults: float) -> tuple[OpSpec, OpSpec]:
    """Return the first form, which may have other defaults, and the newer one."""
    changed = {name: Attribute("float", value) for name, value in defaults.items()}
    first = consuming(newer, attributes=changed)
    if not defaults:
        return first, newer
    from dataclasses import replace

    return replace(first, upgrade=with_defaults(first, newer)), newer


def with_defaults(first: OpSpec, newer: OpSpec) -> Any:
    """Return an upgrade that writes out defaults which the newer form does not have."""

    def upgrade(graph: Any, node: Any) -> bool:
        node.attributes = {**first.with_defaults(node.attributes)}
        node.attributes.pop("consumed_inputs")
        node.since_version = newer.versions[-1]
        return True

    return upgrade


SELU = activation("Selu", selu, (6, 22), alpha=1.6732631921768188, gamma=1.0507010221481323)
SHRINK = activation("Shrink", shrink, (9,), bias=0.0, lambd=0.5)
SPECS: tuple[OpSpec, ...] = (
    *legacy_form(activation("LeakyRelu", leaky_relu, (6, 16), alpha=0.01)),
    *legacy_form(activation("Elu", elu, (6, 22), alpha=1.0)),
    activation("Celu", celu, (12, 28), alpha=1.0),
    *legacy_form(SELU, alpha=1.673200011253357, gamma=1.0506999492645264),
    *legacy_form(activation("HardSigmoid", hard_sigmoid, (6, 22), alpha=0.2, beta=0.5)),
    activation("HardSwish", hard_swish, (14, 22)),
    activation("Softplus", softplus, (1, 22)),
    unary("Softsign", softsign, (1, 22), evaluate=pointwise(softsign), cases=wide_cases, **IN_OUT),
    activation("Mish", mish, (18, 22)),
    activation("ThresholdedRelu", thresholded_relu, (10, 22), alpha=1.0),
    unary(
        "Shrink",
        shrink,
        (9,),
        evaluate=SHRINK.evaluate,
        attributes=SHRINK.attributes,
        cases=wide_cases,
        **IN_OUT,
    ),
)
