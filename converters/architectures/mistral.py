"""Mistral: llama with a sliding window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from halfbyte.converters.architectures.architecture import Config
from halfbyte.converters.architectures.config import ConfigReader
from halfbyte.converters.architectures.llama import Llama
from halfbyte.ir.roles import Role

DEFAULT_WINDOW = 4096


class Mistral(Llama):
    """Model type `mistral`."""

    model_type = "mistral"
    hugging_face_class = "MistralForCausalLM"
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        **Llama.EXAMPLE,
        "model_type": "mistral",
        "sliding_window": 8,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **Llama.defaults,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    }
    bias_flags: ClassVar[Mapping[str, tuple[Role, ...]]] = {}

    def _windows(self, reader: ConfigReader, config: Config) -> Config:
        window = reader.optional_integer("sliding_window")
        absent = "sliding_window" not in reader.raw
        return {"sliding_window": DEFAULT_WINDOW if absent else window}

    def layer_window(self, config: Mapping[str, Any], layer: int) -> int | None:
        """Return the window, the same in all layers."""
        window: int | None = config["sliding_window"]
        return window


MISTRAL = Mistral()
