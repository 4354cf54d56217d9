"""What the rules of mixes look at: layers, grouping of heads, experts; from GGUF keys or a config.

GGUF's own keys are enough, so the rules hold for files of architectures that are unknown here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halfbyte.ir.model import Model
from halfbyte.ir.tensor import Tensor

# As GGUF calls the architectures whose largest model has this many layers: the "70B" class.
_LAYERS_OF_70B = {"llama": 80, "llama-embed": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")
_LAYER = re.compile(r"blk\.(\d+)\.", re.ASCII)


@dataclass(frozen=True)
class ModelFacts:
    """architecture: as GGUF names it; grouping: query heads per key head in the first layer."""

    architecture: str = ""
    layers: int = 0
    grouping: int = 1
    experts: int = 0
    is_70b: bool = False


def layer_of(tensor: Tensor) -> int | None:
    """Return the layer that a weight is in, by its role or its GGUF name."""
    if tensor.role is not None:
        return tensor.layer
    match = _LAYER.match(tensor.name)
    return None if match is None else int(match[1])


def facts_of(model: Model, architecture: str = "") -> ModelFacts:
    """Return the facts of a model; architecture: GGUF's name for models from elsewhere."""
    pairs = model.metadata.get("gguf")
    if pairs is None:
        return _from_config(model, architecture or model.architecture)
    name = _pair(pairs, "general.architecture")
    name = name if isinstance(name, str) else ""
    layers = _number(_pair(pairs, f"{name}.block_count")) or _layers_of(model)
    heads = _number(_pair(pairs, f"{name}.attention.head_count"))
    kept = _pair(pairs, f"{name}.attention.head_count_kv")
    key_heads = heads if kept is None else _number(kept)
    nextn = _number(_pair(pairs, f"{name}.nextn_predict_layers"))
    experts = _number(_pair(pairs, f"{name}.expert_count"))
    return _facts(name, layers, layers - nextn, heads, key_heads, experts)


def _pair(pairs: Mapping[str, Any], key: str) -> Any:
    entry = pairs.get(key)
    return None if entry is None else entry.value


def _number(value: Any) -> int:
    """Return a whole number, that of the first layer where there is one for each; else 0."""
    if isinstance(value, (str, bytes, bool)) or value is None:
        return 0
    try:
        first = value if not hasattr(value, "__len__") else value[0]
        return max(0, int(first))
    except (IndexError, TypeError, ValueError):
        return 0


def _layers_of(model: Model) -> int:
    return 1 + max((layer_of(t) or 0 for t in model.weights.values()), default=-1)


def _from_config(model: Model, architecture: str) -> ModelFacts:
    config = model.config
    layers = _number(config.get("num_hidden_layers")) or _layers_of(model)
    heads = _number(config.get("num_attention_heads"))
    kept = config.get("num_key_value_heads")
    key_heads = heads if kept is None else _number(kept)
    experts = next((_number(config[key]) for key in _EXPERT_KEYS if config.get(key)), 0)
    return _facts(architecture, layers, layers, heads, key_heads, experts)


def _facts(
    architecture: str, layers: int, main_layers: int, heads: int, key_heads: int, experts: int
) -> ModelFacts:
    is_llama = architecture in ("llama", "llama-embed")
    is_70b = main_layers == _LAYERS_OF_70B.get(architecture) and not (
        is_llama and (heads == key_heads or experts == 8)
    )
    grouping = heads // key_heads if key_heads else 0
    return ModelFacts(architecture, layers, grouping, experts, is_70b)
