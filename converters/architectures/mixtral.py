"""Mixtral: Mistral with eight experts of which every token meets two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from halfbyte.converters.architectures.architecture import Config
from halfbyte.converters.architectures.config import ConfigReader
from halfbyte.converters.architectures.llama import Llama
from halfbyte.converters.architectures.mistral import Mistral
from halfbyte.converters.architectures.mixture import Mixture
from halfbyte.ir.roles import Role

_THETA, _EPSILON = 1e6, 1e-5
_ROPE_KEYS = ("rope_theta", "rope_parameters", "rope_scaling")


class Mixtral(Mixture):
    """Model type `mixtral`; GGUF calls it llama."""

    model_type = "mixtral"
    hugging_face_class = "MixtralForCausalLM"
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        **Llama.EXAMPLE,
        "model_type": "mixtral",
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **Mistral.defaults,
        "num_experts": 8,
        "num_experts_per_tok": 2,
    }
    bias_flags: ClassVar[Mapping[str, tuple[Role, ...]]] = {}
    sparse_block = "block_sparse_moe"
    expert_names: ClassVar[Mapping[Role, str]] = {
        Role.EXPERTS_GATE: "w1",
        Role.EXPERTS_DOWN: "w2",
        Role.EXPERTS_UP: "w3",
    }

    def canonical_config(self, raw: Mapping[str, Any]) -> Config:
        """Return the canonical config; base and epsilon have defaults of their own."""
        given = {"rms_norm_eps": _EPSILON, **raw}
        if all(raw.get(key) is None for key in _ROPE_KEYS):
            given["rope_theta"] = _THETA
        return super().canonical_config(given)

    def hugging_face_config(self, config: Mapping[str, Any]) -> Config:
        """Return config.json, which counts the experts as local ones."""
        written = super().hugging_face_config(config)
        written["num_local_experts"] = written.pop("num_experts")
        return written

    def _windows(self, reader: ConfigReader, config: Config) -> Config:
        return {"sliding_window": reader.optional_integer("sliding_window")}

    def layer_window(self, config: Mapping[str, Any], layer: int) -> int | None:
        """Return the window, the same in all layers."""
        window: int | None = config["sliding_window"]
        return window

    def expert_width(self, config: Mapping[str, Any]) -> int:
        """Return the inner width of one expert."""
        return int(config["intermediate_size"])

    def normalises(self, config: Mapping[str, Any]) -> bool:
        """Whether shares are brought to a sum of 1: always."""
        return True


MIXTRAL = Mixtral()
