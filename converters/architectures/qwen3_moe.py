"""Qwen3 with mixtures of experts, in all layers or in some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from halfbyte.converters.architectures.architecture import Config
from halfbyte.converters.architectures.config import ConfigReader
from halfbyte.converters.architectures.mixture import SparseLayers
from halfbyte.converters.architectures.qwen2 import DEFAULT_WINDOW
from halfbyte.converters.architectures.qwen3 import Qwen3


class Qwen3Moe(SparseLayers, Qwen3):
    """Model type `qwen3_moe`."""

    model_type = "qwen3_moe"
    gguf_name = "qwen3moe"
    hugging_face_class = "Qwen3MoeForCausalLM"
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        **Qwen3.EXAMPLE,
        "model_type": "qwen3_moe",
        "tie_word_embeddings": False,
        "moe_intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **Qwen3.defaults,
        "intermediate_size": 6144,
        "num_key_value_heads": 4,
        "head_dim": None,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    }

    def _windows(self, reader: ConfigReader, config: Config) -> Config:
        window = reader.optional_integer("sliding_window")
        if "sliding_window" not in reader.raw:
            window = DEFAULT_WINDOW
        used = reader.flag("use_sliding_window", False) and window is not None
        return {"use_sliding_window": used, "sliding_window": window if used else None}

    def layer_window(self, config: Mapping[str, Any], layer: int) -> int | None:
        """Return the window, the same in all layers."""
        window: int | None = config["sliding_window"]
        return window


QWEN3_MOE = Qwen3Moe()
