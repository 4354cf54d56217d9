"""Normalization layers."""

from __future__ import annotations

from halfbyte.converters.architectures.layers.builder import LayerBuilder
from halfbyte.ir.graph import Value
from halfbyte.ir.roles import Role


def rms_norm(
    builder: LayerBuilder, x: Value, role: Role, epsilon: float, name: str, layer: int | None = None
) -> Value:
    """Divide by the root mean square of the last axis and scale."""
    scale = builder.weight(role, layer)
    return builder.op(
        "RMSNormalization", x, scale, name=name, layer=layer, axis=-1, epsilon=epsilon
    )


def layer_norm(
    builder: LayerBuilder, x: Value, role: Role, epsilon: float, name: str, layer: int | None = None
) -> Value:
    """Bring the last axis to mean 0 and variance 1, scale and shift."""
    scale, shift = builder.weight(role, layer), builder.weight(role, layer, "bias")
    return builder.op(
        "LayerNormalization", x, scale, shift, name=name, layer=layer, axis=-1, epsilon=epsilon
    )
