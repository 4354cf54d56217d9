"""Operators of the runtime only: a convolution or Linear with what follows it.

Passes put them into a session's copy of the graph; readers never make them, no file holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from halfbyte.ir.graph import HALFBYTE_DOMAIN, Node
from halfbyte.ir.ops import op_key, op_spec, spec_of
from halfbyte.ir.ops.convolution import CONV_ATTRIBUTES, evaluate_conv, infer_conv
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    input_at,
    known_array,
    normal,
)

LARGEST = float(np.finfo(np.float32).max)


class Activation(NamedTuple):
    """A function of one value by the kernels' name, with its parameters."""

    function: str
    alpha: float = 0.0
    beta: float = 0.0


# The ai.onnx operator of each function, and which attributes alpha and beta are.
OPERATORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Relu": ("relu", ()),
    "LeakyRelu": ("leaky_relu", ("alpha",)),
    "Sigmoid": ("sigmoid", ()),
    "HardSigmoid": ("hard_sigmoid", ("alpha", "beta")),
    "HardSwish": ("hard_swish", ()),
    "Swish": ("swish", ("alpha",)),
    "Tanh": ("tanh", ()),
    "Elu": ("elu", ("alpha",)),
    "Mish": ("mish", ()),
    "Softplus": ("softplus", ()),
    "Exp": ("exp", ()),
    "Erf": ("erf", ()),
}
FUNCTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    function: (op, names) for op, (function, names) in OPERATORS.items()
}


def activation_of(op: str, attributes: Mapping[str, Any]) -> Activation | None:
    """Return what an operator of one input computes; attributes with their defaults."""
    if op == "Gelu":
        tanh = attributes.get("approximate") == "tanh"
        return Activation("gelu_tanh" if tanh else "gelu_erf")
    if op not in OPERATORS:
        return None
    function, names = OPERATORS[op]
    return Activation(function, *(float(attributes[name]) for name in names))


def clip_of(low: Array | None, high: Array | None) -> Activation:
    """Return Clip between two scalars that may be missing."""
    least = -np.inf if low is None else float(low.reshape(-1)[0])
    most = np.inf if high is None else float(high.reshape(-1)[0])
    return Activation("clip", least, most)


def node_activation(node: Node) -> Activation | None:
    """Return the activation that a node is, None for other nodes."""
    if node.domain or not node.inputs:
        return None
    spec = spec_of(node)
    if spec is not op_spec(op_key(node.op)):
        return None
    if node.op == "Clip":
        bounds = [input_at(node, 1), input_at(node, 2)]
        found = [known_array(value) for value in bounds]
        missing = any(a is None and v is not None for a, v in zip(found, bounds, strict=True))
        return None if missing else clip_of(*found)
    return activation_of(node.op, spec.with_defaults(node.attributes))


def activate(x: Array, activation: Activation) -> Array:
    """Return the activation of every element, in the dtype of x."""
    function, alpha, beta = activation
    if function == "none":
        return x
    if function == "clip":
        return np.asarray(np.minimum(np.maximum(x, alpha), beta).astype(x.dtype))
    if function in ("gelu_erf", "gelu_tanh"):
        op, held = "Gelu", {"approximate": "tanh" if function == "gelu_tanh" else "none"}
    else:
        op, names = FUNCTIONS[function]
        held = dict(zip(names, (alpha, beta), strict=False))  # type: ignore[arg-type]
    spec = op_spec(op)
    return np.asarray(spec.evaluate([x], spec.with_defaults(held), Context())[0])


def of_attributes(attributes: Mapping[str, Any]) -> Activation:
    """Return the activation that a fused node's attributes name."""
    return Activation(attributes["activation"], attributes["alpha"], attributes["beta"])


Evaluate = Callable[[Sequence[Any], Mapping[str, Any], Context], list[Array]]


def followed(evaluate: Evaluate, residual: int) -> Evaluate:
    """Return an evaluation that adds input `residual` and applies the activation."""

    def fused(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        result = evaluate(inputs[:residual], attributes, context)[0]
        if len(inputs) > residual and inputs[residual] is not None:
            result = result + inputs[residual]
        return [activate(result, of_attributes(attributes))]

    return fused


def evaluate_linear(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Linear."""
    return op_spec("halfbyte.Linear").evaluate(inputs, {}, context)


def infer_linear(node: Node) -> list[ValueType]:
    """Infer as Linear does."""
    return op_spec("halfbyte.Linear").infer(node)


def conv_cases() -> list[Case]:
    """Return activations with and without bias and residual."""
    x, w = normal(900, 2, 4, 7, 9), normal(901, 6, 4, 3, 3) * np.float32(0.2)
    bias, added = normal(902, 6), normal(903, 2, 6, 7, 9)
    pads = {"pads": [1, 1, 1, 1]}
    return [
        Case("relu", [x, w, bias, added], pads | {"activation": "relu"}),
        Case("plain", [x, w, None, added], pads),
        Case("clip", [x, w, bias], pads | {"activation": "clip", "alpha": 0.0, "beta": 0.5}),
        Case("swish", [x, w, bias], pads | {"activation": "swish", "alpha": 1.0}),
    ]


def linear_cases() -> list[Case]:
    """Return activations with and without bias."""
    x, w = normal(904, 2, 3, 40), normal(905, 24, 40) * np.float32(0.2)
    return [
        Case("gelu", [x, w, normal(906, 24)], {"activation": "gelu_erf"}),
        Case("tanh", [x, w], {"activation": "tanh"}),
    ]


ACTIVATION = {
    "activation": Attribute("string", "none"),
    "alpha": Attribute("float", 0.0),
    "beta": Attribute("float", 0.0),
}
SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "FusedConv",
        (1,),
        ("X", "W", "B?", "R?"),
        ("Y",),
        infer=infer_conv,
        evaluate=followed(evaluate_conv, 3),
        attributes=CONV_ATTRIBUTES | ACTIVATION,
        domain=HALFBYTE_DOMAIN,
        cases=conv_cases,
    ),
    OpSpec(
        "FusedLinear",
        (1,),
        ("x", "W", "bias?"),
        ("y",),
        infer=infer_linear,
        evaluate=followed(evaluate_linear, 3),
        attributes=ACTIVATION,
        domain=HALFBYTE_DOMAIN,
        encoded=frozenset({1}),
        cases=linear_cases,
    ),
)
