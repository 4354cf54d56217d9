"""Names of weights in GGUF files, to and from roles.

Source: LLM_TENSOR_NAMES in src/llama-arch.cpp of llama.cpp.
"""

from __future__ import annotations

import re

from halfbyte.ir.roles import Role, WeightKey

GLOBAL_NAMES: dict[Role, str] = {
    Role.TOKEN_EMBEDDING: "token_embd",
    Role.POSITION_EMBEDDING: "position_embd",
    Role.TOKEN_TYPE_EMBEDDING: "token_types",
    Role.EMBEDDING_NORM: "token_embd_norm",
    Role.OUTPUT_NORM: "output_norm",
    Role.OUTPUT_HEAD: "output",
    Role.ROPE_DIVISORS: "rope_freqs",
    Role.ROPE_FACTORS_LONG: "rope_factors_long",
    Role.ROPE_FACTORS_SHORT: "rope_factors_short",
}

LAYER_NAMES: dict[Role, str] = {
    Role.ATTENTION_NORM: "attn_norm",
    Role.ATTENTION_QUERY: "attn_q",
    Role.ATTENTION_KEY: "attn_k",
    Role.ATTENTION_VALUE: "attn_v",
    Role.ATTENTION_QKV: "attn_qkv",
    Role.ATTENTION_OUTPUT: "attn_output",
    Role.ATTENTION_QUERY_NORM: "attn_q_norm",
    Role.ATTENTION_KEY_NORM: "attn_k_norm",
    Role.ATTENTION_OUTPUT_NORM: "attn_output_norm",
    Role.FEED_FORWARD_NORM: "ffn_norm",
    Role.FEED_FORWARD_GATE: "ffn_gate",
    Role.FEED_FORWARD_UP: "ffn_up",
    Role.FEED_FORWARD_DOWN: "ffn_down",
    Role.ROUTER: "ffn_gate_inp",
    Role.EXPERTS_GATE: "ffn_gate_exps",
    Role.EXPERTS_UP: "ffn_up_exps",
    Role.EXPERTS_DOWN: "ffn_down_exps",
    Role.SHARED_ROUTER: "ffn_gate_inp_shexp",
    Role.SHARED_GATE: "ffn_gate_shexp",
    Role.SHARED_UP: "ffn_up_shexp",
    Role.SHARED_DOWN: "ffn_down_shexp",
    Role.LAYER_OUTPUT_NORM: "layer_output_norm",
}

_GLOBAL_ROLES = {name: role for role, name in GLOBAL_NAMES.items()}
_LAYER_ROLES = {name: role for role, name in LAYER_NAMES.items()}
_PATTERN = re.compile(r"(?:blk\.(0|[1-9][0-9]{0,3})\.)?([a-z_]+)\.(weight|bias)", re.ASCII)


def gguf_name(key: WeightKey) -> str:
    """Return the tensor name of a weight.

    Raises:
        KeyError: GGUF has no name for this role.
    """
    if key.layer is None:
        return f"{GLOBAL_NAMES[key.role]}.{key.kind}"
    return f"blk.{key.layer}.{LAYER_NAMES[key.role]}.{key.kind}"


def key_of(name: str) -> WeightKey | None:
    """Return role, layer and kind of a tensor name, or None if it has no role here."""
    match = _PATTERN.fullmatch(name)
    if match is None:
        return None
    layer, stem, kind = match.groups()
    role = (_GLOBAL_ROLES if layer is None else _LAYER_ROLES).get(stem)
    return None if role is None else WeightKey(role, None if layer is None else int(layer), kind)
