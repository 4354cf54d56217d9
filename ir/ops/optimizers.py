"""One step of optimizers of ai.onnx.preview.training, for any number of tensors.

Inputs are the rate R, the count of updates T, then all X, all gradients and all states in groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.numerics import quiet
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

Step = Callable[[float, int, Sequence[Array], Mapping[str, Any]], list[Array]]


def adagrad(
    rate: float, count: int, group: Sequence[Array], given: Mapping[str, Any]
) -> list[Array]:
    """Return the new tensor and its sum of squared gradients."""
    tensor, gradient, squares = group
    gradient = given["norm_coefficient"] * tensor + gradient
    squares = squares + gradient * gradient
    step = rate / (1 + count * given["decay_factor"])
    return [tensor - step * gradient / (np.sqrt(squares) + given["epsilon"]), squares]


def momentum(
    rate: float, count: int, group: Sequence[Array], given: Mapping[str, Any]
) -> list[Array]:
    """Return the new tensor and its momentum, standard or Nesterov's."""
    tensor, gradient, held = group
    gradient = given["norm_coefficient"] * tensor + gradient
    held = given["alpha"] * held + (given["beta"] if count > 0 else 1.0) * gradient
    nesterov = given["mode"] == "nesterov"
    direction = gradient + given["alpha"] * held if nesterov else held
    return [tensor - rate * direction, held]


def adam(rate: float, count: int, group: Sequence[Array], given: Mapping[str, Any]) -> list[Array]:
    """Return the new tensor and its averages of gradients and of their squares."""
    tensor, gradient, average, squares = group
    alpha, beta = given["alpha"], given["beta"]
    gradient = given["norm_coefficient"] * tensor + gradient
    average = alpha * average + (1 - alpha) * gradient
    squares = beta * squares + (1 - beta) * gradient * gradient
    if count > 0:
        rate = rate * np.sqrt(1 - beta**count) / (1 - alpha**count)
    tensor = tensor - rate * average / (np.sqrt(squares) + given["epsilon"])
    return [(1 - given["norm_coefficient_post"]) * tensor, average, squares]


def optimizer(op: str, step: Step, parts: int, **attributes: Attribute) -> OpSpec:
    """Return the spec of an optimizer that has `parts` arrays for each tensor."""

    @quiet
    def evaluate(inputs: Sequence[Any], given: Mapping[str, Any], context: Context) -> list[Array]:
        rate, count = float(np.asarray(inputs[0])), int(np.asarray(inputs[1]))
        arrays = [np.asarray(v) for v in inputs[2:]]
        tensors = len(arrays) // parts
        results = []
        for index in range(tensors):
            group = arrays[index::tensors]
            wide = step(rate, count, [a.astype(np.float64) for a in group], given)
            results.append([new.astype(group[0].dtype) for new in wide])
        return [result[part] for part in range(parts - 1) for result in results]

    def infer(node: Node) -> list[ValueType]:
        tensors, rest = divmod(len(node.inputs) - 2, parts)
        if rest or len(node.outputs) != tensors * (parts - 1):
            found = f"{len(node.inputs) - 2} arrays for {len(node.outputs)} results"
            raise GraphError(node.label, f"{found}; give {parts} for each tensor")
        # all but the gradients come back
        kept = [i for i in range(2, len(node.inputs)) if (i - 2) // tensors != 1]
        return [ValueType(common_dtype(node, [i]), required_input(node, i).shape) for i in kept]

    one = [normal(163 + i, 3, 4) for i in range(parts - 1)] + [np.abs(normal(167, 3, 4))]
    return OpSpec(
        op,
        (1,),
        ("R", "T", "inputs*"),
        ("outputs*",),
        infer=infer,
        evaluate=evaluate,
        attributes=attributes,
        domain="ai.onnx.preview.training",
        cases=lambda: [
            Case(
                "step",
                [np.asarray(0.1, np.float32), np.asarray(2, np.int64), *one],
                {n: 0.5 for n, a in attributes.items() if a.required and a.kind == "float"}
                | {n: "nesterov" for n in attributes if n == "mode"},
                outputs=parts - 1,
            )
        ],
    )


ZERO, NEEDED = Attribute("float", 0.0), Attribute("float", required=True)
EPSILON = Attribute("float", 1e-6)
SPECS: tuple[OpSpec, ...] = (
    optimizer("Adagrad", adagrad, 3, epsilon=EPSILON, decay_factor=ZERO, norm_coefficient=ZERO),
    optimizer(
        "Momentum",
        momentum,
        3,
        alpha=NEEDED,
        beta=NEEDED,
        mode=Attribute("string", required=True),
        norm_coefficient=NEEDED,
    ),
    optimizer(
        "Adam",
        adam,
        4,
        alpha=Attribute("float", 0.9),
        beta=Attribute("float", 0.999),
        epsilon=EPSILON,
        norm_coefficient=ZERO,
        norm_coefficient_post=ZERO,
    ),
)
