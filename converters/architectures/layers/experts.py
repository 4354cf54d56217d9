"""Feed-forward layers of which every token meets a few: mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from halfbyte.converters.architectures.layers.builder import FLOAT32, VERSIONS, LayerBuilder
from halfbyte.converters.architectures.layers.feed_forward import activation
from halfbyte.ir.graph import Node, Value
from halfbyte.ir.roles import Role


@dataclass(frozen=True)
class Routing:
    """How many experts a token meets, and whether their shares are brought to a sum of 1."""

    used: int
    normalised: bool


def choose_experts(
    builder: LayerBuilder, x: Value, routing: Routing, layer: int
) -> tuple[Value, Value]:
    """Return shares and numbers [..., used] of each token's most probable experts.

    Of experts that are equally probable the lower number is taken.
    """
    stem = f"layers.{layer}.feed_forward"
    scores = builder.linear(x, Role.ROUTER, f"{stem}.router", layer)
    odds = builder.op("Softmax", scores, name=f"{stem}.probabilities", layer=layer, axis=-1)
    count = builder.constant("experts_used", np.asarray([routing.used], np.int64))
    shape = (*(x.shape or ())[:-1], routing.used)
    names = [builder.graph.fresh_name(f"{stem}.{name}") for name in ("shares", "experts")]
    outputs = [Value(names[0], FLOAT32, shape), Value(names[1], "int64", shape)]
    node = Node("TopK", [odds, count], outputs, {"axis": -1}, "", VERSIONS["TopK"], layer)
    shares, chosen = builder.graph.insert(node).outputs
    if not routing.normalised:
        return shares, chosen
    last = builder.constant("last_axis", np.asarray([-1], np.int64))
    total = builder.op(
        "ReduceSum", shares, last, name=f"{stem}.total", layer=layer, shape=(*shape[:-1], 1)
    )
    return builder.op("Div", shares, total, name=f"{stem}.weights", layer=layer), chosen


def expert_linear(
    builder: LayerBuilder, x: Value, chosen: Value, role: Role, name: str, layer: int
) -> Value:
    """Apply each token's own matrices of weight [experts, out, in]: to [..., used, out]."""
    weight = builder.weight(role, layer)
    shape = (*(chosen.shape or ()), (weight.shape or (0, 0))[1])
    return builder.op("ExpertLinear", x, weight, chosen, name=name, layer=layer, shape=shape)


def sparse_feed_forward(
    builder: LayerBuilder, x: Value, kind: str, routing: Routing, layer: int
) -> Value:
    """Return the sum over a token's experts of share * down(activation(gate(x)) * up(x))."""
    stem = f"layers.{layer}.feed_forward"
    shares, chosen = choose_experts(builder, x, routing, layer)
    gate = expert_linear(builder, x, chosen, Role.EXPERTS_GATE, f"{stem}.gate", layer)
    up = expert_linear(builder, x, chosen, Role.EXPERTS_UP, f"{stem}.up", layer)
    active = activation(builder, gate, kind, f"{stem}.activation", layer)
    product = builder.op("Mul", active, up, name=f"{stem}.product", layer=layer)
    found = expert_linear(builder, product, chosen, Role.EXPERTS_DOWN, f"{stem}.down", layer)
    last = builder.constant("last_axis", np.asarray([-1], np.int64))
    column = (*(shares.shape or ()), 1)
    shares = builder.op("Unsqueeze", shares, last, name=f"{stem}.column", layer=layer, shape=column)
    weighted = builder.op("Mul", found, shares, name=f"{stem}.weighted", layer=layer)
    axis = builder.constant("experts_axis", np.asarray([-2], np.int64))
    return builder.op(
        *("ReduceSum", weighted, axis), name=f"{stem}.mixed", layer=layer, shape=x.shape, keepdims=0
    )


def shared_feed_forward(builder: LayerBuilder, x: Value, kind: str, layer: int) -> Value:
    """Return what the expert that every token meets adds, scaled by its own gate."""
    stem = f"layers.{layer}.feed_forward.shared"
    gate = builder.linear(x, Role.SHARED_GATE, f"{stem}_gate", layer)
    up = builder.linear(x, Role.SHARED_UP, f"{stem}_up", layer)
    active = activation(builder, gate, kind, f"{stem}_activation", layer)
    product = builder.op("Mul", active, up, name=f"{stem}_product", layer=layer)
    found = builder.linear(product, Role.SHARED_DOWN, f"{stem}_down", layer)
    score = builder.linear(x, Role.SHARED_ROUTER, f"{stem}_router", layer)
    share = builder.op("Sigmoid", score, name=f"{stem}_share", layer=layer)
    return builder.op("Mul", found, share, name=f"{stem}_weighted", layer=layer)
