"""What a weight is and which layer it belongs to.

Containers name weights each in their own way; everything between reader and writer speaks of
`WeightKey(role, layer, kind)` only.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Role(str, Enum):
    """The part a language-model weight plays."""

    TOKEN_EMBEDDING = "token_embedding"
    POSITION_EMBEDDING = "position_embedding"
    TOKEN_TYPE_EMBEDDING = "token_type_embedding"
    EMBEDDING_NORM = "embedding_norm"
    OUTPUT_NORM = "output_norm"
    OUTPUT_HEAD = "output_head"
    ROPE_DIVISORS = "rope_divisors"
    ROPE_FACTORS_LONG = "rope_factors_long"
    ROPE_FACTORS_SHORT = "rope_factors_short"
    POOLER = "pooler"
    ATTENTION_NORM = "attention_norm"
    ATTENTION_QUERY = "attention_query"
    ATTENTION_KEY = "attention_key"
    ATTENTION_VALUE = "attention_value"
    ATTENTION_QKV = "attention_qkv"
    ATTENTION_OUTPUT = "attention_output"
    ATTENTION_QUERY_NORM = "attention_query_norm"
    ATTENTION_KEY_NORM = "attention_key_norm"
    ATTENTION_OUTPUT_NORM = "attention_output_norm"
    FEED_FORWARD_NORM = "feed_forward_norm"
    FEED_FORWARD_GATE = "feed_forward_gate"
    FEED_FORWARD_UP = "feed_forward_up"
    FEED_FORWARD_DOWN = "feed_forward_down"
    FEED_FORWARD_GATE_UP = "feed_forward_gate_up"
    ROUTER = "router"
    EXPERTS_GATE = "experts_gate"
    EXPERTS_UP = "experts_up"
    EXPERTS_DOWN = "experts_down"
    SHARED_ROUTER = "shared_router"
    SHARED_GATE = "shared_gate"
    SHARED_UP = "shared_up"
    SHARED_DOWN = "shared_down"
    LAYER_OUTPUT_NORM = "layer_output_norm"

    def __str__(self) -> str:
        """Return the plain value."""
        return self.value

    @property
    def is_norm(self) -> bool:
        """Whether the weight scales or shifts a normalization."""
        return self.value.endswith("_norm")


class WeightKey(NamedTuple):
    """Identity of a weight: its role, its layer (None outside layers) and weight or bias."""

    role: Role
    layer: int | None = None
    kind: str = "weight"

    def __str__(self) -> str:
        """Return for example `layers.3.attention_query.bias`."""
        prefix = "" if self.layer is None else f"layers.{self.layer}."
        return f"{prefix}{self.role}.{self.kind}"
