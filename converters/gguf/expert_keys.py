"""Mixtures of experts as `%arch%.expert_*` keys, both ways.

How shares are brought to a sum of 1 stands in no key for these architectures: llama.cpp's code
fixes it. A file of the architecture llama with experts is a mixtral.

Source: src/llama-model.cpp, src/models/{llama,qwen2moe,qwen3moe}.cpp and conversion/{base,qwen}.py
of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.converters.gguf.hyperparameters import Hyperparameters
from halfbyte.converters.gguf.model_card import size_label
from halfbyte.errors import UnsupportedError
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import Tensor

MODEL_TYPES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
"""Model types of the architectures that only mixtures have."""
NORMALISED = {"llama": True, "qwen2moe": False, "qwen3moe": True}
"""Whether llama.cpp brings the shares of a token's experts to a sum of 1."""
STACKS = frozenset({Role.EXPERTS_GATE, Role.EXPERTS_UP, Role.EXPERTS_DOWN})
_SOFTMAX = 1
_SHARED_WIDTH = "expert_shared_feed_forward_length"
WITH_SHARED = ("qwen2moe",)
"""Those with an expert that all tokens meet."""


def model_type_of(architecture: str, keys: Hyperparameters) -> str:
    """Return the model type of a file's architecture, which may be unknown here."""
    if architecture == "llama" and keys.integer("expert_count", 0, 0):
        return "mixtral"
    return MODEL_TYPES.get(architecture, architecture)


def is_mixture(config: Mapping[str, Any]) -> bool:
    """Whether a canonical config is that of a mixture."""
    return config.get("model_type") in ("mixtral", *MODEL_TYPES.values())


def count_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many experts there are and how many a token meets."""
    if not is_mixture(config):
        return {}
    return {
        "expert_count": config["num_experts"],
        "expert_used_count": config["num_experts_per_tok"],
    }


def width_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inner widths of experts where they are not that of the model."""
    if config.get("model_type") not in MODEL_TYPES.values():
        return {}
    found = {"expert_feed_forward_length": config["moe_intermediate_size"]}
    if config["model_type"] == "qwen2_moe":
        found[_SHARED_WIDTH] = config["shared_expert_intermediate_size"]
    return found


def experts_label(tensors: Sequence[Tensor]) -> str:
    """Return a mixture's size as people say it, 8x7B; empty for a model without experts."""
    stacks = [tensor for tensor in tensors if tensor.role in STACKS and len(tensor.shape) == 3]
    if not stacks:
        return ""
    counts = [tensor.shape[0] for tensor in stacks]
    stacked = sum(tensor.size for tensor in stacks)
    one = sum(tensor.size // tensor.shape[0] for tensor in stacks)
    shared = sum(tensor.size for tensor in tensors) - stacked
    return f"{sum(counts) // len(counts)}x{size_label(shared + one)}"


def read_experts(keys: Hyperparameters) -> dict[str, Any]:
    """Return the config keys of a mixture; none for a file without experts.

    Raises:
        FormatError: a key is missing, or has the wrong type or range.
        UnsupportedError: the keys ask for something that is missing here.
    """
    experts, name = keys.integer("expert_count", 0, 0), keys.prefix
    if not experts and name not in MODEL_TYPES:
        return {}
    where = f"{keys.where} ({name})"
    if name not in NORMALISED:
        raise UnsupportedError("a mixture of experts", where)
    if keys.integer("expert_gating_func", _SOFTMAX) != _SOFTMAX:
        raise UnsupportedError("experts chosen by another function than softmax", where)
    if keys.integer("expert_group_count", 1, 0) > 1:
        raise UnsupportedError("experts in groups", where)
    if keys.number("expert_weights_scale", 1.0) not in (0.0, 1.0):
        raise UnsupportedError("scaled shares of experts", where)
    shared = keys.integer(_SHARED_WIDTH, 0, 0)
    if name not in WITH_SHARED and (shared or keys.integer("expert_shared_count", 0, 0)):
        raise UnsupportedError("an expert that all tokens meet", where)
    used = keys.integer("expert_used_count")
    found: dict[str, Any] = {
        "num_experts": keys.integer("expert_count"),
        "num_experts_per_tok": used,
    }
    if name in MODEL_TYPES:
        default = max(1, keys.integer("feed_forward_length") // used)
        width = keys.integer("expert_feed_forward_length", 0, 0)
        found["moe_intermediate_size"] = width or default
        found["norm_topk_prob"] = NORMALISED[name]
    if name in WITH_SHARED:
        found["shared_expert_intermediate_size"] = shared or keys.integer("feed_forward_length")
    return found


def check_experts(config: Mapping[str, Any], architecture: str) -> None:
    """Check that GGUF can say the mixture of a canonical config.

    Raises:
        UnsupportedError: it cannot; the reason is named.
    """
    if not is_mixture(config) or config["model_type"] == "mixtral":
        return
    where, wanted = f"GGUF architecture {architecture}", NORMALISED[architecture]
    if config["norm_topk_prob"] != wanted:
        advice = "llama.cpp computes this architecture's shares in one way only"
        what = f"norm_topk_prob {config['norm_topk_prob']}"
        raise UnsupportedError(what, where, [str(wanted)], advice)
    if config["mlp_only_layers"] or config["decoder_sparse_step"] != 1:
        advice = "llama.cpp has experts in every layer of this architecture"
        raise UnsupportedError("layers without experts", where, (), advice)
