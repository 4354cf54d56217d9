"""Feed-forward layers."""

from __future__ import annotations

from typing import Any

from halfbyte.converters.architectures.layers.builder import LayerBuilder
from halfbyte.ir.graph import Value
from halfbyte.ir.roles import Role

_TANH = {"approximate": "tanh"}
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "silu": ("Swish", {"alpha": 1.0}),
    "swish": ("Swish", {"alpha": 1.0}),
    "quick_gelu": ("Swish", {"alpha": 1.702}),
    "gelu": ("Gelu", {"approximate": "none"}),
    "gelu_python": ("Gelu", {"approximate": "none"}),
    "gelu_new": ("Gelu", _TANH),
    "gelu_fast": ("Gelu", _TANH),
    "gelu_pytorch_tanh": ("Gelu", _TANH),
    "relu": ("Relu", {}),
}


def activation(builder: LayerBuilder, x: Value, kind: str, name: str, layer: int) -> Value:
    """Apply an activation called by its Hugging Face name."""
    op, attributes = ACTIVATIONS[kind]
    return builder.op(op, x, name=name, layer=layer, **attributes)


def gated_feed_forward(builder: LayerBuilder, x: Value, kind: str, layer: int) -> Value:
    """Return down(activation(gate(x)) * up(x))."""
    stem = f"layers.{layer}.feed_forward"
    gate = builder.linear(x, Role.FEED_FORWARD_GATE, f"{stem}.gate", layer)
    up = builder.linear(x, Role.FEED_FORWARD_UP, f"{stem}.up", layer)
    active = activation(builder, gate, kind, f"{stem}.activation", layer)
    product = builder.op("Mul", active, up, name=f"{stem}.product", layer=layer)
    return builder.linear(product, Role.FEED_FORWARD_DOWN, f"{stem}.down", layer)


def feed_forward(builder: LayerBuilder, x: Value, kind: str, layer: int) -> Value:
    """Return down(activation(up(x)))."""
    stem = f"layers.{layer}.feed_forward"
    up = builder.linear(x, Role.FEED_FORWARD_UP, f"{stem}.up", layer)
    up = activation(builder, up, kind, f"{stem}.activation", layer)
    return builder.linear(up, Role.FEED_FORWARD_DOWN, f"{stem}.down", layer)
