"""What a GGUF architecture cannot say, refused by name instead of dropped.

A config value is expressible if llama.cpp computes it for the architecture, or if it changes
nothing. The tensors are those that its loader takes.

Source: src/models/*.cpp and conversion/*.py of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from halfbyte.converters.gguf.expert_keys import check_experts
from halfbyte.converters.gguf.rope_keys import check_rope
from halfbyte.errors import UnsupportedError
from halfbyte.ir.roles import Role, WeightKey

_DECODER = {
    (Role.TOKEN_EMBEDDING, "weight"),
    (Role.OUTPUT_NORM, "weight"),
    (Role.OUTPUT_HEAD, "weight"),
    (Role.ATTENTION_NORM, "weight"),
    (Role.ATTENTION_OUTPUT, "weight"),
    (Role.FEED_FORWARD_NORM, "weight"),
    (Role.FEED_FORWARD_GATE, "weight"),
    (Role.FEED_FORWARD_UP, "weight"),
    (Role.FEED_FORWARD_DOWN, "weight"),
} | {
    (role, kind)
    for role in (Role.ATTENTION_QUERY, Role.ATTENTION_KEY, Role.ATTENTION_VALUE)
    for kind in ("weight", "bias")
}
_LLAMA_EXTRA = {
    (Role.ATTENTION_OUTPUT, "bias"),
    (Role.FEED_FORWARD_GATE, "bias"),
    (Role.FEED_FORWARD_UP, "bias"),
    (Role.FEED_FORWARD_DOWN, "bias"),
    (Role.ROPE_DIVISORS, "weight"),
    (Role.ROPE_FACTORS_LONG, "weight"),
    (Role.ROPE_FACTORS_SHORT, "weight"),
}
_HEAD_NORMS = {(Role.ATTENTION_QUERY_NORM, "weight"), (Role.ATTENTION_KEY_NORM, "weight")}
_EXPERTS = {
    (Role.ROUTER, "weight"),
    (Role.EXPERTS_GATE, "weight"),
    (Role.EXPERTS_UP, "weight"),
    (Role.EXPERTS_DOWN, "weight"),
}
_SHARED_EXPERT = {
    (Role.SHARED_ROUTER, "weight"),
    (Role.SHARED_GATE, "weight"),
    (Role.SHARED_UP, "weight"),
    (Role.SHARED_DOWN, "weight"),
}
_GPT2 = {(Role.TOKEN_EMBEDDING, "weight"), (Role.POSITION_EMBEDDING, "weight")} | {
    (role, kind)
    for role in (
        Role.OUTPUT_NORM,
        Role.ATTENTION_NORM,
        Role.ATTENTION_QKV,
        Role.ATTENTION_OUTPUT,
        Role.FEED_FORWARD_NORM,
        Role.FEED_FORWARD_UP,
        Role.FEED_FORWARD_DOWN,
    )
    for kind in ("weight", "bias")
}
_BERT = {
    (Role.TOKEN_EMBEDDING, "weight"),
    (Role.POSITION_EMBEDDING, "weight"),
    (Role.TOKEN_TYPE_EMBEDDING, "weight"),
} | {
    (role, kind)
    for role in (
        Role.EMBEDDING_NORM,
        Role.ATTENTION_QUERY,
        Role.ATTENTION_KEY,
        Role.ATTENTION_VALUE,
        Role.ATTENTION_OUTPUT,
        Role.ATTENTION_OUTPUT_NORM,
        Role.FEED_FORWARD_UP,
        Role.FEED_FORWARD_DOWN,
        Role.LAYER_OUTPUT_NORM,
    )
    for kind in ("weight", "bias")
}

WEIGHTS: dict[str, set[tuple[Role, str]]] = {
    "llama": _DECODER | _LLAMA_EXTRA | _EXPERTS,
    "qwen2": _DECODER | {(Role.OUTPUT_HEAD, "bias")},
    "qwen3": _DECODER | _HEAD_NORMS,
    "qwen2moe": _DECODER | _EXPERTS | _SHARED_EXPERT,
    "qwen3moe": _DECODER | _HEAD_NORMS | _EXPERTS,
    "gpt2": _GPT2 | {(Role.OUTPUT_HEAD, "weight")},
    "bert": _BERT,
}

DROPPED: dict[str, frozenset[Role]] = {"bert": frozenset({Role.POOLER})}
"""Weights that llama.cpp does without, as its converter does; the writer says so."""

ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "llama": ("silu", "swish"),
    "qwen2": ("silu", "swish"),
    "qwen3": ("silu", "swish"),
    "qwen2moe": ("silu", "swish"),
    "qwen3moe": ("silu", "swish"),
    "gpt2": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "bert": ("gelu",),
}

# Config keys that change the computation, with the values that leave it as GGUF means it.
_FIXED: dict[str, tuple[object, ...]] = {
    "partial_rotary_factor": (1, 1.0),
    "attention_multiplier": (),
    "logit_scale": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "is_decoder": (False,),
    "position_embedding_type": ("absolute",),
}


def _window_in_use(config: Mapping[str, Any]) -> bool:
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return False
    return bool(window < config["max_position_embeddings"])


def check_config(config: Mapping[str, Any], architecture: str) -> None:
    """Check that a canonical config means the same in a GGUF file of `architecture`.

    Raises:
        UnsupportedError: it asks for something llama.cpp does not compute for the architecture.
    """
    where = f"GGUF architecture {architecture}"
    activation = config.get("hidden_act", ACTIVATIONS[architecture][0])
    if activation not in ACTIVATIONS[architecture]:
        raise UnsupportedError(f"activation {activation!r}", where, ACTIVATIONS[architecture])
    if _window_in_use(config):
        what = f"sliding_window {config['sliding_window']}"
        raise UnsupportedError(what, where, advice="set sliding_window to null to attend to all")
    for key, accepted in _FIXED.items():
        found = config.get(key)
        if found is not None and found not in accepted:
            raise UnsupportedError(f"{key} {found!r}", where, [repr(value) for value in accepted])
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or width // heads
    if architecture in ("qwen2", "qwen2moe", "gpt2", "bert") and head_dim * heads != width:
        raise UnsupportedError(f"head_dim {head_dim}", where, [f"{width // heads}"])
    check_experts(config, architecture)
    check_rope(config, architecture)


def check_keys(keys: Iterable[WeightKey], architecture: str) -> None:
    """Check that every weight has a place in the architecture.

    Raises:
        UnsupportedError: llama.cpp loads no such tensor.
    """
    allowed = WEIGHTS[architecture]
    dropped = DROPPED.get(architecture, frozenset())
    for key in keys:
        if (key.role, key.kind) not in allowed and key.role not in dropped:
            advice = "llama.cpp has no such tensor there"
            raise UnsupportedError(f"weight {key}", f"GGUF architecture {architecture}", (), advice)
