"""What decoders with a mixture of experts share: config keys, weights, and the sparse layers.

The experts of a layer are one weight [experts, out, in] for each of gate, up and down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from halfbyte.converters.architectures.architecture import Config, WeightSpec
from halfbyte.converters.architectures.config import ConfigReader, as_integer, reject
from halfbyte.converters.architectures.layers.builder import LayerBuilder
from halfbyte.converters.architectures.layers.experts import Routing, sparse_feed_forward
from halfbyte.converters.architectures.llama import Llama
from halfbyte.ir.graph import Value
from halfbyte.ir.roles import Role, WeightKey

MAX_EXPERTS = 1024


class Mixture(Llama):
    """Base of decoders whose feed-forward layers are mixtures of experts."""

    sparse_block: ClassVar[str] = "mlp"
    expert_names: ClassVar[Mapping[Role, str]] = {
        Role.EXPERTS_GATE: "gate_proj",
        Role.EXPERTS_UP: "up_proj",
        Role.EXPERTS_DOWN: "down_proj",
    }

    def canonical_config(self, raw: Mapping[str, Any]) -> Config:
        """Return the canonical config; see the base class."""
        config = super().canonical_config(raw)
        config.pop("num_local_experts", None)
        reader, defaults = ConfigReader(raw), self.defaults
        experts = reader.integer(
            "num_experts", "num_local_experts", default=defaults["num_experts"], high=MAX_EXPERTS
        )
        used = reader.integer("num_experts_per_tok", default=defaults["num_experts_per_tok"])
        if used > experts:
            reject("num_experts_per_tok", used, f"at most num_experts {experts}")
        return {**config, "num_experts": experts, "num_experts_per_tok": used}

    def expert_width(self, config: Mapping[str, Any]) -> int:
        """Return the inner width of one expert."""
        return int(config["moe_intermediate_size"])

    def normalises(self, config: Mapping[str, Any]) -> bool:
        """Whether the shares of a token's experts are brought to a sum of 1."""
        return bool(config["norm_topk_prob"])

    def is_sparse(self, config: Mapping[str, Any], layer: int) -> bool:
        """Whether a layer is a mixture; the others have one feed-forward for all tokens."""
        return True

    def _feed_forward_specs(self, config: Mapping[str, Any], layer: int) -> Iterator[WeightSpec]:
        if not self.is_sparse(config, layer):
            yield from super()._feed_forward_specs(config, layer)
            return
        hidden, inner = config["hidden_size"], self.expert_width(config)
        experts, stem = config["num_experts"], f"model.layers.{layer}.{self.sparse_block}"
        router = WeightKey(Role.ROUTER, layer)
        yield WeightSpec(f"{stem}.gate.weight", router, (experts, hidden))
        for role, name in self.expert_names.items():
            shape = (hidden, inner) if role is Role.EXPERTS_DOWN else (inner, hidden)
            yield WeightSpec(
                f"{stem}.experts.{name}.weight",
                WeightKey(role, layer),
                (experts, *shape),
                expert_name=f"{stem}.experts.{{}}.{name}.weight",
            )

    def _feed_forward(
        self, builder: LayerBuilder, config: Mapping[str, Any], x: Value, layer: int
    ) -> Value:
        if not self.is_sparse(config, layer):
            return super()._feed_forward(builder, config, x, layer)
        routing = Routing(config["num_experts_per_tok"], self.normalises(config))
        return sparse_feed_forward(builder, x, config["hidden_act"], routing, layer)


class SparseLayers(Mixture):
    """Mixtures as the Qwen families have them: the config says which layers are sparse."""

    def canonical_config(self, raw: Mapping[str, Any]) -> Config:
        """Return the canonical config; see the base class."""
        config, reader = super().canonical_config(raw), ConfigReader(raw)
        config["norm_topk_prob"] = reader.flag("norm_topk_prob", False)
        config["moe_intermediate_size"] = reader.integer(
            "moe_intermediate_size", default=self.defaults["moe_intermediate_size"]
        )
        config["decoder_sparse_step"] = reader.integer("decoder_sparse_step", default=1)
        dense = raw.get("mlp_only_layers")
        if not isinstance(dense, list | None):
            reject("mlp_only_layers", dense, "a list of layers")
        config["mlp_only_layers"] = [as_integer("mlp_only_layers", n, 0) for n in dense or []]
        return config

    def is_sparse(self, config: Mapping[str, Any], layer: int) -> bool:
        """Whether a layer is a mixture."""
        is_step = (layer + 1) % config["decoder_sparse_step"] == 0
        return is_step and layer not in config["mlp_only_layers"]
