"""Qwen2: llama with biases on query, key and value and an optional window in some layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from halfbyte.converters.architectures.architecture import Config
from halfbyte.converters.architectures.config import ConfigReader, reject
from halfbyte.converters.architectures.llama import Llama
from halfbyte.ir.roles import Role

DEFAULT_WINDOW = 4096
FULL, SLIDING = "full_attention", "sliding_attention"


class Qwen2(Llama):
    """Model type `qwen2`."""

    model_type = "qwen2"
    gguf_name = "qwen2"
    hugging_face_class = "Qwen2ForCausalLM"
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        **Llama.EXAMPLE,
        "model_type": "qwen2",
        "tie_word_embeddings": True,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **Llama.defaults,
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    }
    bias_flags: ClassVar[Mapping[str, tuple[Role, ...]]] = {}

    def has_bias(self, config: Mapping[str, Any], role: Role) -> bool:
        """Whether the role is query, key or value."""
        return role in (Role.ATTENTION_QUERY, Role.ATTENTION_KEY, Role.ATTENTION_VALUE)

    def _windows(self, reader: ConfigReader, config: Config) -> Config:
        layers = config["num_hidden_layers"]
        window = reader.optional_integer("sliding_window")
        if "sliding_window" not in reader.raw:
            window = DEFAULT_WINDOW
        used = reader.flag("use_sliding_window", False) and window is not None
        first = reader.integer("max_window_layers", default=28, low=0)
        default = [SLIDING if used and layer >= first else FULL for layer in range(layers)]
        types = reader.raw.get("layer_types")
        types = default if types is None else types
        if not isinstance(types, list) or len(types) != layers or not {*types} <= {FULL, SLIDING}:
            reject("layer_types", types, f"{layers} of {FULL!r} or {SLIDING!r}")
        if SLIDING in types and not used:
            reject(
                "layer_types", types, "use_sliding_window with a sliding_window for these layers"
            )
        return {
            "use_sliding_window": used,
            "sliding_window": window if used else None,
            "max_window_layers": first,
            "layer_types": types,
        }

    def layer_window(self, config: Mapping[str, Any], layer: int) -> int | None:
        """Return the window of layers whose type says so."""
        window: int | None = config["sliding_window"]
        return window if config["layer_types"][layer] == SLIDING else None


QWEN2 = Qwen2()
