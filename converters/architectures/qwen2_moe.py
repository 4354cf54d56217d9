"""Qwen2 with mixtures of experts, and beside them one expert that every token meets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from halfbyte.converters.architectures.architecture import Config, WeightSpec
from halfbyte.converters.architectures.config import ConfigReader, reject
from halfbyte.converters.architectures.layers.builder import LayerBuilder
from halfbyte.converters.architectures.layers.experts import shared_feed_forward
from halfbyte.converters.architectures.llama import Llama
from halfbyte.converters.architectures.mixture import SparseLayers
from halfbyte.converters.architectures.qwen2 import DEFAULT_WINDOW, FULL, SLIDING, Qwen2
from halfbyte.ir.graph import Value
from halfbyte.ir.roles import Role, WeightKey

_SHARED = {
    Role.SHARED_GATE: "gate_proj",
    Role.SHARED_UP: "up_proj",
    Role.SHARED_DOWN: "down_proj",
}


class Qwen2Moe(SparseLayers, Qwen2):
    """Model type `qwen2_moe`."""

    model_type = "qwen2_moe"
    gguf_name = "qwen2moe"
    hugging_face_class = "Qwen2MoeForCausalLM"
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        **Llama.EXAMPLE,
        "model_type": "qwen2_moe",
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
        "num_experts": 8,
        "num_experts_per_tok": 3,
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        **Qwen2.defaults,
        "intermediate_size": 5632,
        "num_key_value_heads": 16,
        "moe_intermediate_size": 1408,
        "num_experts": 60,
        "num_experts_per_tok": 4,
    }
    bias_flags: ClassVar[Mapping[str, tuple[Role, ...]]] = {
        "qkv_bias": (Role.ATTENTION_QUERY, Role.ATTENTION_KEY, Role.ATTENTION_VALUE)
    }

    def canonical_config(self, raw: Mapping[str, Any]) -> Config:
        """Return the canonical config; see the base class."""
        config = super().canonical_config({"qkv_bias": True, **raw})
        config["shared_expert_intermediate_size"] = ConfigReader(raw).integer(
            "shared_expert_intermediate_size", default=5632
        )
        return config

    def has_bias(self, config: Mapping[str, Any], role: Role) -> bool:
        """Whether the config asks for a bias on a linear layer."""
        return Llama.has_bias(self, config, role)

    def _windows(self, reader: ConfigReader, config: Config) -> Config:
        layers, given = config["num_hidden_layers"], reader.raw.get("sliding_window")
        window = reader.integer("sliding_window", default=DEFAULT_WINDOW, low=0)
        used = reader.flag("use_sliding_window", False) and window > 0
        used = used and not ("sliding_window" in reader.raw and given is None)
        first = reader.integer("max_window_layers", default=28, low=0)
        default = [
            SLIDING if used and layer % 2 == 0 and layer < first else FULL
            for layer in range(layers)
        ]
        types = reader.raw.get("layer_types")
        types = default if types is None else types
        if not isinstance(types, list) or len(types) != layers or not {*types} <= {FULL, SLIDING}:
            reject("layer_types", types, f"{layers} of {FULL!r} or {SLIDING!r}")
        if SLIDING in types and not used:
            wanted = "use_sliding_window with a sliding_window for these layers"
            reject("layer_types", types, wanted)
        return {
            "use_sliding_window": used,
            "sliding_window": window if used else None,
            "max_window_layers": first,
            "layer_types": types,
        }

    def _feed_forward_specs(self, config: Mapping[str, Any], layer: int) -> Iterator[WeightSpec]:
        yield from super()._feed_forward_specs(config, layer)
        if not self.is_sparse(config, layer):
            return
        hidden, inner = config["hidden_size"], config["shared_expert_intermediate_size"]
        stem = f"model.layers.{layer}.mlp.shared_expert"
        for role, name in _SHARED.items():
            shape = (hidden, inner) if role is Role.SHARED_DOWN else (inner, hidden)
            yield WeightSpec(f"{stem}.{name}.weight", WeightKey(role, layer), shape)
        yield WeightSpec(f"{stem}_gate.weight", WeightKey(Role.SHARED_ROUTER, layer), (1, hidden))

    def _feed_forward(
        self, builder: LayerBuilder, config: Mapping[str, Any], x: Value, layer: int
    ) -> Value:
        found = super()._feed_forward(builder, config, x, layer)
        if not self.is_sparse(config, layer):
            return found
        shared = shared_feed_forward(builder, x, config["hidden_act"], layer)
        name = f"layers.{layer}.feed_forward.with_shared"
        return builder.op("Add", found, shared, name=name, layer=layer)


QWEN2_MOE = Qwen2Moe()
