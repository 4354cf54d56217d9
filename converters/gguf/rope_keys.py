"""Rotary scaling as `%arch%.rope.*` keys, both ways.

llama3 scaling has no key: it stands in the tensor `rope_freqs.weight`. llama.cpp takes yarn's
attention factor from `rope.scaling.attn_factor` (on top of its own 0.1 ln(factor) + 1) and ignores
the `yarn_*` keys for these architectures. They are written as its own script does, and read where
`attn_factor` is absent: its script says the model's settings in them alone.

Source: `hparams` loading in src/llama-model.cpp, context set-up in src/llama-context.cpp and
conversion/base.py of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from halfbyte.converters.gguf.hyperparameters import Hyperparameters
from halfbyte.errors import UnsupportedError

LLAMA_CPP_YARN = {"beta_fast": 32.0, "beta_slow": 1.0}
IGNORED_YARN_KEYS = {
    "attention_factor": "rope.scaling.yarn_attn_factor",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}
ARCHITECTURES_WITH_FACTOR_TENSORS = ("llama",)


def _magnitude(factor: float, weight: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def yarn_attention_factor(scaling: Mapping[str, Any]) -> float:
    """Return what yarn scaling multiplies cosine and sine by."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor = float(scaling["factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        numerator = _magnitude(factor, scaling["mscale"])
        return numerator / _magnitude(factor, scaling["mscale_all_dim"])
    return _magnitude(factor)


def _longrope_attention_factor(config: Mapping[str, Any], scaling: Mapping[str, Any]) -> float:
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    original = scaling["original_max_position_embeddings"]
    factor = scaling.get("factor") or config["max_position_embeddings"] / original
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def check_rope(config: Mapping[str, Any], architecture: str) -> None:
    """Check that GGUF can say the rotary scaling of a canonical config.

    Raises:
        UnsupportedError: it cannot; the reason is named.
    """
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    kind = scaling["rope_type"]
    where = f"GGUF architecture {architecture}"
    if kind == "dynamic":
        advice = "its base changes with the length of the text, a GGUF file holds one fixed base"
        raise UnsupportedError("rope_type 'dynamic'", where, ["linear", "yarn", "llama3"], advice)
    if kind in ("llama3", "longrope") and architecture not in ARCHITECTURES_WITH_FACTOR_TENSORS:
        advice = "llama.cpp reads no frequency factors for this architecture"
        raise UnsupportedError(f"rope_type {kind!r}", where, ["linear", "yarn"], advice)
    if kind != "yarn":
        return
    for name, expected in LLAMA_CPP_YARN.items():
        if scaling.get(name) not in (None, expected):
            advice = "llama.cpp ignores this key for the architecture"
            raise UnsupportedError(f"yarn {name} {scaling[name]}", where, [str(expected)], advice)
    if not scaling.get("truncate", True):
        raise UnsupportedError("yarn without truncation", where, ["truncate true"])


def rope_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `rope.*` keys of a canonical config, without the architecture's prefix."""
    found: dict[str, Any] = {}
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    kind = scaling["rope_type"]
    if kind in ("linear", "yarn"):
        found["rope.scaling.type"] = kind
        found["rope.scaling.factor"] = float(scaling["factor"])
    if kind == "yarn":
        found |= _yarn_keys(scaling)
    if kind == "longrope":
        found["rope.scaling.type"] = kind
        original = int(scaling["original_max_position_embeddings"])
        found["rope.scaling.original_context_length"] = original
        found["rope.scaling.attn_factor"] = _longrope_attention_factor(config, scaling)
    if config.get("rope_theta") is not None:
        found["rope.freq_base"] = float(config["rope_theta"])
    return found


def _yarn_keys(scaling: Mapping[str, Any]) -> dict[str, Any]:
    original = int(scaling["original_max_position_embeddings"])
    found: dict[str, Any] = {"rope.scaling.original_context_length": original}
    if scaling.get("attention_factor") is not None:
        found["rope.scaling.yarn_attn_factor"] = float(scaling["attention_factor"])
    for name in LLAMA_CPP_YARN:
        if scaling.get(name) is not None:
            found[f"rope.scaling.yarn_{name}"] = float(scaling[name])
    extra = yarn_attention_factor(scaling) / _magnitude(scaling["factor"])
    if not math.isclose(extra, 1.0, rel_tol=1e-6):
        found["rope.scaling.attn_factor"] = extra
    return found


def read_rope(keys: Hyperparameters) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` of a file, factor tensors aside.

    Raises:
        FormatError: a key has the wrong type or range.
        UnsupportedError: the kind of scaling is unknown.
    """
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0)) or 1.0
    scaling: dict[str, Any] | None = None
    if kind == "linear" and factor != 1.0:
        scaling = {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        scaling = _read_yarn(keys, factor)
    elif kind == "longrope":
        scaling = {"rope_type": "longrope", **_original_length(keys)}
        scaling["attention_factor"] = keys.number("rope.scaling.attn_factor", 1.0)
    elif kind not in ("none", "linear"):
        supported = ["none", "linear", "yarn", "longrope"]
        raise UnsupportedError(f"rope scaling {kind!r}", keys.where, supported)
    return {"rope_theta": keys.number("rope.freq_base", 10000.0), "rope_scaling": scaling}


def _original_length(keys: Hyperparameters) -> dict[str, int]:
    name = "rope.scaling.original_context_length"
    return {"original_max_position_embeddings": keys.integer(name, keys.integer("context_length"))}


def _read_yarn(keys: Hyperparameters, factor: float) -> dict[str, Any]:
    scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor, **_original_length(keys)}
    extra = keys.number("rope.scaling.attn_factor", 1.0)
    if extra != 1.0:
        scaling["attention_factor"] = extra * _magnitude(factor)
        return scaling
    for name, key in IGNORED_YARN_KEYS.items():
        value = keys.number(key, 0.0)
        if value:
            scaling[name] = value
    return scaling


def ignored_yarn(keys: Hyperparameters) -> list[str]:
    """Return the yarn keys that change the result here and that llama.cpp does not read."""
    if keys.text("rope.scaling.type", "") != "yarn":
        return []
    if keys.number("rope.scaling.attn_factor", 1.0) != 1.0:
        return []
    factor = keys.number("rope.scaling.factor", 1.0)
    usual = {**LLAMA_CPP_YARN, "attention_factor": _magnitude(factor)}
    found = {name: keys.number(key, 0.0) for name, key in IGNORED_YARN_KEYS.items()}
    return [
        IGNORED_YARN_KEYS[name]
        for name, value in found.items()
        if value and not math.isclose(value, usual[name], rel_tol=1e-6)
    ]
