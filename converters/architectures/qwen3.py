"""Qwen3: Qwen2 with a norm on each query and key head and no biases unless asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from halfbyte.converters.architectures.architecture import Config
from halfbyte.converters.architectures.config import WHERE
from halfbyte.converters.architectures.llama import Llama
from halfbyte.converters.architectures.qwen2 import Qwen2
from halfbyte.errors import UnsupportedError
from halfbyte.ir.roles import Role


class Qwen3(Qwen2):
    """Model type `qwen3`."""

    model_type = "qwen3"
    gguf_name = "qwen3"
    hugging_face_class = "Qwen3ForCausalLM"
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        **Qwen2.EXAMPLE,
        "model_type": "qwen3",
        "head_dim": 32,
    }
    defaults: ClassVar[Mapping[str, Any]] = {**Qwen2.defaults, "head_dim": 128}
    bias_flags: ClassVar[Mapping[str, tuple[Role, ...]]] = {
        "attention_bias": Llama.bias_flags["attention_bias"]
    }
    has_head_norms = True

    def canonical_config(self, raw: Mapping[str, Any]) -> Config:
        """Return the canonical config; head norms know the half-split rotary order only."""
        config = super().canonical_config(raw)
        if config["rope_interleaved"]:
            raise UnsupportedError("rope_interleaved with norms of query and key heads", WHERE)
        return config

    def has_bias(self, config: Mapping[str, Any], role: Role) -> bool:
        """Whether the config asks for a bias on a linear layer."""
        return Llama.has_bias(self, config, role)


QWEN3 = Qwen3()
