"""Llama: pre-norm decoder with rotary attention and a gated feed-forward.

Mistral and the Qwen families differ only in config defaults, biases, head norms and windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.architectures.architecture import (
    Architecture,
    Config,
    WeightSpec,
    require_divisor,
)
from halfbyte.converters.architectures.config import MAX_HEADS, MAX_LAYERS, ConfigReader
from halfbyte.converters.architectures.layers.attention import Heads, self_attention
from halfbyte.converters.architectures.layers.builder import LayerBuilder
from halfbyte.converters.architectures.layers.embedding import (
    decoder_inputs,
    embed,
    output_head,
    take_positions,
)
from halfbyte.converters.architectures.layers.feed_forward import ACTIVATIONS, gated_feed_forward
from halfbyte.converters.architectures.layers.norm import rms_norm
from halfbyte.converters.architectures.layers.rope import Rotary, rotary
from halfbyte.converters.architectures.rope_scaling import (
    ROPE_KEYS,
    canonical_rope,
    hugging_face_rope,
    scaling_from_tensors,
)
from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import Tensor

_ROTARY_ROLES = (Role.ATTENTION_QUERY, Role.ATTENTION_KEY)
_ATTENTION = {
    Role.ATTENTION_QUERY: "q_proj",
    Role.ATTENTION_KEY: "k_proj",
    Role.ATTENTION_VALUE: "v_proj",
    Role.ATTENTION_OUTPUT: "o_proj",
}
_FEED_FORWARD = {
    Role.FEED_FORWARD_GATE: "gate_proj",
    Role.FEED_FORWARD_UP: "up_proj",
    Role.FEED_FORWARD_DOWN: "down_proj",
}


class Llama(Architecture):
    """Model type `llama`, and the base of its relatives."""

    model_type = "llama"
    gguf_name = "llama"
    hugging_face_class = "LlamaForCausalLM"
    prefix = "model."
    ignorable_names = (r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "model_type": "llama",
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    # defaults of the transformers config class
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "head_dim": None,
    }
    bias_flags: ClassVar[Mapping[str, tuple[Role, ...]]] = {
        "attention_bias": tuple(_ATTENTION),
        "mlp_bias": tuple(_FEED_FORWARD),
    }
    has_head_norms: ClassVar[bool] = False

    def canonical_config(self, raw: Mapping[str, Any]) -> Config:
        """Return the canonical config; see the base class."""
        reader = ConfigReader(raw)
        config: Config = {**raw, "model_type": self.model_type, **self._sizes(reader)}
        for consumed in ("rope_parameters", "original_max_position_embeddings"):
            config.pop(consumed, None)
        config["hidden_act"] = reader.choice("hidden_act", default="silu", allowed=[*ACTIVATIONS])
        config["rms_norm_eps"] = reader.number("rms_norm_eps", default=1e-6, high=1.0)
        config["tie_word_embeddings"] = reader.flag("tie_word_embeddings", False)
        for flag in self.bias_flags:
            config[flag] = reader.flag(flag, False)
        positions = config["max_position_embeddings"]
        config.update(canonical_rope(raw, positions, config["head_dim"]))
        config.update(self._windows(reader, config))
        return config

    def _sizes(self, reader: ConfigReader) -> Config:
        defaults = self.defaults
        sizes: Config = {
            "vocab_size": reader.integer("vocab_size", default=defaults["vocab_size"]),
            "hidden_size": reader.integer("hidden_size", default=4096),
            "num_hidden_layers": reader.integer("num_hidden_layers", default=32, high=MAX_LAYERS),
            "num_attention_heads": reader.integer(
                "num_attention_heads", default=32, high=MAX_HEADS
            ),
        }
        for name in ("intermediate_size", "max_position_embeddings"):
            sizes[name] = reader.integer(name, default=defaults[name])
        heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
        head_dim = reader.optional_integer("head_dim", MAX_HEADS) or defaults["head_dim"]
        if head_dim is None:
            require_divisor("num_attention_heads", heads, "hidden_size", hidden)
        # absent takes the class default; null means one key-value head for each query head
        default = heads if "num_key_value_heads" in reader.raw else defaults["num_key_value_heads"]
        groups = reader.integer("num_key_value_heads", default=default or heads)
        require_divisor("num_key_value_heads", groups, "num_attention_heads", heads)
        return {**sizes, "num_key_value_heads": groups, "head_dim": head_dim or hidden // heads}

    def _windows(self, reader: ConfigReader, config: Config) -> Config:
        return {}

    def layer_window(self, config: Mapping[str, Any], layer: int) -> int | None:
        """Return how many positions a layer sees, itself included; None for all."""
        return None

    def hugging_face_config(self, config: Mapping[str, Any]) -> Config:
        """Return config.json; rotary settings in the spelling that all versions read."""
        written = {k: v for k, v in config.items() if k != "rope_interleaved"}
        written.update(hugging_face_rope(config))
        return {"architectures": [self.hugging_face_class], **written}

    def config_for_weights(
        self, config: Mapping[str, Any], weights: Mapping[WeightKey, Tensor]
    ) -> Config:
        """Return the config with tie, bias flags and rotary scaling as the weights show them."""
        found = super().config_for_weights(config, weights)
        for flag, roles in self.bias_flags.items():
            found[flag] = all(WeightKey(role, 0, "bias") in weights for role in roles)
        tensors = {k: weights[k].float32().reshape(-1) for k in ROPE_KEYS if k in weights}
        found["rope_scaling"] = scaling_from_tensors(config, tensors)
        return found

    def weight_specs(self, config: Mapping[str, Any]) -> Iterator[WeightSpec]:
        """Yield the weights; see the base class."""
        hidden, vocabulary = config["hidden_size"], config["vocab_size"]
        embedding = WeightKey(Role.TOKEN_EMBEDDING)
        yield WeightSpec("model.embed_tokens.weight", embedding, (vocabulary, hidden))
        for layer in range(config["num_hidden_layers"]):
            yield from self._layer_specs(config, layer)
        yield WeightSpec("model.norm.weight", WeightKey(Role.OUTPUT_NORM), (hidden,))
        tied = bool(config["tie_word_embeddings"])
        head = WeightKey(Role.OUTPUT_HEAD)
        yield WeightSpec("lm_head.weight", head, (vocabulary, hidden), optional=tied)

    def _layer_specs(self, config: Mapping[str, Any], layer: int) -> Iterator[WeightSpec]:
        hidden, size = config["hidden_size"], config["head_dim"]
        query, pairs = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
        stem = f"model.layers.{layer}"
        for name, role in (
            ("input_layernorm", Role.ATTENTION_NORM),
            ("post_attention_layernorm", Role.FEED_FORWARD_NORM),
        ):
            yield WeightSpec(f"{stem}.{name}.weight", WeightKey(role, layer), (hidden,))
        if self.has_head_norms:
            for name, role in (
                ("q_norm", Role.ATTENTION_QUERY_NORM),
                ("k_norm", Role.ATTENTION_KEY_NORM),
            ):
                yield WeightSpec(f"{stem}.self_attn.{name}.weight", WeightKey(role, layer), (size,))
        outputs = (query, pairs, pairs, hidden)
        for (role, name), rows in zip(_ATTENTION.items(), outputs, strict=True):
            columns = query if role is Role.ATTENTION_OUTPUT else hidden
            full = f"{stem}.self_attn.{name}"
            yield from self._linear_specs(config, full, WeightKey(role, layer), (rows, columns))
        yield from self._feed_forward_specs(config, layer)

    def _feed_forward_specs(self, config: Mapping[str, Any], layer: int) -> Iterator[WeightSpec]:
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        for role, name in _FEED_FORWARD.items():
            shape = (hidden, inner) if role is Role.FEED_FORWARD_DOWN else (inner, hidden)
            full = f"model.layers.{layer}.mlp.{name}"
            yield from self._linear_specs(config, full, WeightKey(role, layer), shape)

    def _linear_specs(
        self, config: Mapping[str, Any], name: str, key: WeightKey, shape: tuple[int, int]
    ) -> Iterator[WeightSpec]:
        yield WeightSpec(f"{name}.weight", key, shape)
        bias = key._replace(kind="bias")
        if self.has_bias(config, key.role):
            yield WeightSpec(f"{name}.bias", bias, shape[:1])
        elif any(key.role in roles for roles in self.bias_flags.values()):
            # GGUF may hold a part of the biases; Hugging Face has no name for them then
            yield WeightSpec("", bias, shape[:1], optional=True)

    def has_bias(self, config: Mapping[str, Any], role: Role) -> bool:
        """Whether the config asks for a bias on a linear layer."""
        return any(role in roles and config[flag] for flag, roles in self.bias_flags.items())

    def row_order(
        self, key: WeightKey, config: Mapping[str, Any], interleaved_target: bool
    ) -> NDArray[np.int64] | None:
        """Return the row permutation of query and key rows into the other rotary order."""
        if key.role not in _ROTARY_ROLES or config["rope_interleaved"] == interleaved_target:
            return None
        name = "num_attention_heads" if key.role is Role.ATTENTION_QUERY else "num_key_value_heads"
        heads, half = config[name], config["head_dim"] // 2
        axes = (2, half) if interleaved_target else (half, 2)
        rows = np.arange(heads * half * 2, dtype=np.int64).reshape(heads, *axes)
        return np.asarray(rows.swapaxes(1, 2).reshape(-1))

    def _allowed(self, key: WeightKey, specs: Mapping[WeightKey, WeightSpec]) -> bool:
        return key in specs or key in ROPE_KEYS

    def build(self, model: Model) -> Graph:
        """Return the graph: token ids and positions to logits, over the session's cache."""
        config = self.canonical_config(model.config)
        builder = LayerBuilder(self.model_type, self.bind(model, config))
        graph = builder.graph
        ids, positions, wanted = decoder_inputs(graph)
        x = embed(builder, ids, Role.TOKEN_EMBEDDING, "embedding")
        rope = rotary(builder, config, positions)
        for layer in range(config["num_hidden_layers"]):
            x = self._layer(builder, config, x, rope, layer)
        x = take_positions(builder, x, wanted, "outputs")
        x = rms_norm(builder, x, Role.OUTPUT_NORM, config["rms_norm_eps"], "output_norm")
        graph.outputs.append(output_head(builder, x))
        return graph

    def _layer(
        self, builder: LayerBuilder, config: Config, x: Value, rope: Rotary, layer: int
    ) -> Value:
        epsilon, stem = config["rms_norm_eps"], f"layers.{layer}"
        heads = Heads.from_config(config, self.layer_window(config, layer))
        normed = rms_norm(builder, x, Role.ATTENTION_NORM, epsilon, f"{stem}.attention_norm", layer)
        attended = self_attention(builder, normed, heads, rope, epsilon, layer)
        x = builder.op("Add", x, attended, name=f"{stem}.attention_residual", layer=layer)
        normed = rms_norm(
            builder, x, Role.FEED_FORWARD_NORM, epsilon, f"{stem}.feed_forward_norm", layer
        )
        fed = self._feed_forward(builder, config, normed, layer)
        return builder.op("Add", x, fed, name=f"{stem}.feed_forward_residual", layer=layer)

    def _feed_forward(
        self, builder: LayerBuilder, config: Mapping[str, Any], x: Value, layer: int
    ) -> Value:
        return gated_feed_forward(builder, x, config["hidden_act"], layer)


LLAMA = Llama()
