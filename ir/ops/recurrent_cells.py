"""One step of RNN, GRU and LSTM, and the activations that they may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.ops.spec import Array

Activation = Callable[[Array], Array]
Step = Callable[[Array, list[Array]], list[Array]]
"""From the projected input and the states before a step to the states after it."""


class Kind(NamedTuple):
    """An activation of a value, alpha and beta; a default of None means it takes none."""

    function: Callable[[Array, float, float], Array]
    alpha: float | None = None
    beta: float | None = None


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


KINDS: dict[str, Kind] = {
    "relu": Kind(lambda x, a, b: np.maximum(x, 0)),
    "tanh": Kind(lambda x, a, b: np.tanh(x)),
    "sigmoid": Kind(lambda x, a, b: sigmoid(x)),
    "affine": Kind(lambda x, a, b: a * x + b, 1.0, 0.0),
    "leakyrelu": Kind(lambda x, a, b: np.where(x >= 0, x, a * x), 0.01),
    "thresholdedrelu": Kind(lambda x, a, b: np.where(x >= a, x, 0), 1.0),
    "scaledtanh": Kind(lambda x, a, b: a * np.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": Kind(lambda x, a, b: np.clip(a * x + b, 0, 1), 0.2, 0.5),
    "elu": Kind(lambda x, a, b: np.where(x >= 0, x, a * np.expm1(np.minimum(x, 0))), 1.0),
    "softsign": Kind(lambda x, a, b: x / (1 + np.abs(x))),
    "softplus": Kind(lambda x, a, b: np.logaddexp(0, x).astype(x.dtype)),
}


def activation_functions(
    attributes: Mapping[str, Any], defaults: Sequence[str]
) -> list[Activation]:
    """Return as many activations as there are defaults.

    `activation_alpha` and `activation_beta` are taken in order by those that have one.

    Raises:
        GraphError: an activation is unknown.
    """
    names = list(attributes.get("activations") or defaults)
    if len(names) * 2 == len(defaults):
        names *= 2
    alphas = iter(attributes.get("activation_alpha") or ())
    betas = iter(attributes.get("activation_beta") or ())
    clip = attributes.get("clip")
    found = []
    for name in names[: len(defaults)]:
        kind = KINDS.get(name.lower())
        if kind is None:
            raise GraphError(
                "recurrent operator", f"activation {name!r} is unknown; known: {', '.join(KINDS)}"
            )
        alpha = 0.0 if kind.alpha is None else next(alphas, kind.alpha)
        beta = 0.0 if kind.beta is None else next(betas, kind.beta)
        found.append(clipped(kind.function, alpha, beta, clip))
    if len(found) < len(defaults):
        raise GraphError(
            "recurrent operator", f"{len(found)} activations, {len(defaults)} were required"
        )
    return found


def clipped(
    function: Callable[[Array, float, float], Array], alpha: float, beta: float, clip: float | None
) -> Activation:
    """Return an activation whose input is kept within [-clip, clip]."""
    if not clip:
        return lambda x: function(x, alpha, beta)
    return lambda x: function(np.clip(x, -clip, clip), alpha, beta)


def rnn(
    attributes: Mapping[str, Any],
    recurrence: Array,
    bias: Array,
    peephole: Array | None,
    functions: list[Activation],
) -> Step:
    """Return the step of a plain recurrent cell."""

    def step(projected: Array, states: list[Array]) -> list[Array]:
        return [functions[0](projected + states[0] @ recurrence.T + bias)]

    return step


def gru(
    attributes: Mapping[str, Any],
    recurrence: Array,
    bias: Array,
    peephole: Array | None,
    functions: list[Activation],
) -> Step:
    """Return the step of a gated recurrent unit; gates in the order update, reset, hidden."""
    size = recurrence.shape[1]
    gate, candidate = functions
    linear_first = bool(attributes.get("linear_before_reset"))

    def step(projected: Array, states: list[Array]) -> list[Array]:
        held = states[0]
        gates = gate(projected[:, : 2 * size] + held @ recurrence[: 2 * size].T + bias[: 2 * size])
        update, reset = gates[:, :size], gates[:, size:]
        last = recurrence[2 * size :].T
        if linear_first:
            inner = reset * (held @ last + bias[2 * size :])
        else:
            inner = (reset * held) @ last + bias[2 * size :]
        new = candidate(projected[:, 2 * size :] + inner)
        return [(1 - update) * new + update * held]

    return step


def lstm(
    attributes: Mapping[str, Any],
    recurrence: Array,
    bias: Array,
    peephole: Array | None,
    functions: list[Activation],
) -> Step:
    """Return the step of a long short-term memory; gates in the order input, output, forget, cell.

    peephole: what the cell state adds to the input, output and forget gates.
    """
    size = recurrence.shape[1]
    gate, candidate, outer = functions
    coupled = bool(attributes.get("input_forget"))
    peeps = np.zeros((3, size), recurrence.dtype) if peephole is None else peephole.reshape(3, size)

    def step(projected: Array, states: list[Array]) -> list[Array]:
        held, cell = states
        parts = (projected + held @ recurrence.T + bias).reshape(len(held), 4, size)
        let_in = gate(parts[:, 0] + peeps[0] * cell)
        keep = 1 - let_in if coupled else gate(parts[:, 2] + peeps[2] * cell)
        new = keep * cell + let_in * candidate(parts[:, 3])
        let_out = gate(parts[:, 1] + peeps[1] * new)
        return [let_out * outer(new), new]

    return step
