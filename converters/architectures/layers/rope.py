"""Rotary position embedding: cosine and sine once per step, applied to queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from halfbyte.converters.architectures.layers.builder import FLOAT32, LayerBuilder
from halfbyte.converters.architectures.rope_scaling import (
    ROPE_KEYS,
    Frequencies,
    frequencies,
)
from halfbyte.ir.graph import Value


@dataclass(frozen=True)
class Rotary:
    """Cosine and sine [batch, sequence, head_dim / 2] of one step, and which pairs turn."""

    cosine: Value
    sine: Value
    interleaved: bool

    def apply(self, builder: LayerBuilder, x: Value, heads: int, name: str, layer: int) -> Value:
        """Rotate x [batch, sequence, heads * head_dim]."""
        half = (self.cosine.shape or (0,))[-1]
        return builder.op(
            "RotaryEmbedding",
            x,
            self.cosine,
            self.sine,
            name=name,
            layer=layer,
            interleaved=int(self.interleaved),
            num_heads=heads,
            rotary_embedding_dim=2 * int(half),
        )


def rotary(builder: LayerBuilder, config: Mapping[str, Any], position_ids: Value) -> Rotary:
    """Add the nodes that turn positions into cosine and sine.

    Scaling that depends on length looks at the highest position of the step, as transformers does.
    """
    found = {key: builder.weights[key] for key in ROPE_KEYS if key in builder.weights}
    settings = frequencies(config, {key: t.float32().reshape(-1) for key, t in found.items()})
    inverse = _inverse_frequencies(builder, settings, position_ids)
    last = builder.constant("last_axis", np.asarray([-1], np.int64))
    positions = builder.op("Cast", position_ids, name="rope.positions", to=FLOAT32)
    column = (*(position_ids.shape or ()), 1)
    positions = builder.op("Unsqueeze", positions, last, name="rope.column", shape=column)
    shape = (*column[:-1], len(settings.inverse))
    angles = builder.op("Mul", positions, inverse, name="rope.angles", shape=shape)
    cosine = builder.op("Cos", angles, name="rope.cosine")
    sine = builder.op("Sin", angles, name="rope.sine")
    if settings.attention_factor != 1.0:
        factor = _scalar(builder, "rope.attention_factor", settings.attention_factor)
        cosine = builder.op("Mul", cosine, factor, name="rope.scaled_cosine")
        sine = builder.op("Mul", sine, factor, name="rope.scaled_sine")
    return Rotary(cosine, sine, bool(config["rope_interleaved"]))


def _scalar(builder: LayerBuilder, name: str, value: float) -> Value:
    return builder.constant(name, np.asarray(value, np.float32))


def _inverse_frequencies(
    builder: LayerBuilder, settings: Frequencies, position_ids: Value
) -> Value:
    inverse = builder.constant("rope.inverse_frequencies", settings.inverse)
    if settings.long is None and settings.dynamic_factor is None:
        return inverse
    one = builder.constant("one", np.asarray(1, np.int64))
    highest = builder.op(
        "ReduceMax", position_ids, name="rope.highest", shape=(), dtype="int64", keepdims=0
    )
    length = builder.op("Add", highest, one, name="rope.length", shape=(), dtype="int64")
    if settings.long is None:
        return _dynamic(builder, settings, inverse, length)
    long = builder.constant("rope.long_inverse_frequencies", settings.long)
    limit = builder.constant("rope.original_length", np.asarray(settings.original_length, np.int64))
    is_long = builder.op("Greater", length, limit, name="rope.is_long", shape=(), dtype="bool")
    return builder.op("Where", is_long, long, inverse, name="rope.chosen", shape=inverse.shape)


def _dynamic(builder: LayerBuilder, settings: Frequencies, inverse: Value, length: Value) -> Value:
    """Let the base grow by (f * length / original - (f - 1)) ** (d / (d - 2)); 1 up to original."""
    factor, original = settings.dynamic_factor or 1.0, settings.original_length
    dimensions = 2 * len(settings.inverse)
    steps = np.arange(0, dimensions, 2, dtype=np.float64) / -(dimensions - 2)
    real = builder.op("Cast", length, name="rope.real_length", shape=(), to=FLOAT32)
    floor = _scalar(builder, "rope.original_length", original)
    real = builder.op("Max", real, floor, name="rope.counted_length", shape=())
    slope = _scalar(builder, "rope.growth_slope", factor / original)
    growth = builder.op("Mul", real, slope, name="rope.stretched", shape=())
    offset = _scalar(builder, "rope.growth_offset", factor - 1)
    growth = builder.op("Sub", growth, offset, name="rope.growth", shape=())
    exponents = builder.constant("rope.growth_exponents", steps.astype(np.float32))
    decay = builder.op("Pow", growth, exponents, name="rope.decay", shape=inverse.shape)
    return builder.op("Mul", inverse, decay, name="rope.dynamic_frequencies", shape=inverse.shape)
