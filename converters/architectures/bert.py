"""BERT: post-norm encoder with learned positions, token types and an optional pooler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from halfbyte.converters.architectures.architecture import (
    Architecture,
    Config,
    WeightSpec,
    require_divisor,
)
from halfbyte.converters.architectures.config import MAX_LAYERS, ConfigReader
from halfbyte.converters.architectures.layers.attention import Heads, encoder_attention
from halfbyte.converters.architectures.layers.builder import LayerBuilder
from halfbyte.converters.architectures.layers.embedding import embed, position_range
from halfbyte.converters.architectures.layers.feed_forward import ACTIVATIONS, feed_forward
from halfbyte.converters.architectures.layers.norm import layer_norm
from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import Tensor

# name below `encoder.layer.N.`, role, (rows, columns) as config keys
_LINEARS = (
    ("attention.self.query", Role.ATTENTION_QUERY, ("hidden_size", "hidden_size")),
    ("attention.self.key", Role.ATTENTION_KEY, ("hidden_size", "hidden_size")),
    ("attention.self.value", Role.ATTENTION_VALUE, ("hidden_size", "hidden_size")),
    ("attention.output.dense", Role.ATTENTION_OUTPUT, ("hidden_size", "hidden_size")),
    ("intermediate.dense", Role.FEED_FORWARD_UP, ("intermediate_size", "hidden_size")),
    ("output.dense", Role.FEED_FORWARD_DOWN, ("hidden_size", "intermediate_size")),
)
_NORMS = (
    ("attention.output.LayerNorm", Role.ATTENTION_OUTPUT_NORM),
    ("output.LayerNorm", Role.LAYER_OUTPUT_NORM),
)
_OLD_NORM_ENDINGS = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}


class Bert(Architecture):
    """Model type `bert`."""

    model_type = "bert"
    gguf_name = "bert"
    hugging_face_class = "BertModel"
    other_prefixes = ("bert.",)
    ignorable_names = (
        r"(bert\.)?embeddings\.(position_ids|token_type_ids)",
        r"cls\.(predictions|seq_relationship)\..*",
    )
    is_encoder = True
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "model_type": "bert",
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
    }

    def canonical_config(self, raw: Mapping[str, Any]) -> Config:
        """Return the canonical config; see the base class."""
        reader = ConfigReader(raw)
        reader.refuse("is_decoder", False)
        reader.refuse("add_cross_attention", False)
        reader.refuse("position_embedding_type", "absolute")
        hidden = reader.integer("hidden_size", default=768)
        heads = reader.integer("num_attention_heads", default=12)
        require_divisor("num_attention_heads", heads, "hidden_size", hidden)
        act = reader.choice("hidden_act", default="gelu", allowed=[*ACTIVATIONS])
        return {
            **raw,
            "model_type": self.model_type,
            "vocab_size": reader.integer("vocab_size", default=30522),
            "hidden_size": hidden,
            "intermediate_size": reader.integer("intermediate_size", default=3072),
            "num_hidden_layers": reader.integer("num_hidden_layers", default=12, high=MAX_LAYERS),
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": hidden // heads,
            "hidden_act": act,
            "max_position_embeddings": reader.integer("max_position_embeddings", default=512),
            "type_vocab_size": reader.integer("type_vocab_size", default=2),
            "layer_norm_eps": reader.number("layer_norm_eps", default=1e-12, high=1.0),
            "tie_word_embeddings": reader.flag("tie_word_embeddings", True),
        }

    def hugging_face_config(self, config: Mapping[str, Any]) -> Config:
        """Return config.json without the keys derived from others."""
        derived = ("num_key_value_heads", "head_dim")
        kept = {k: v for k, v in config.items() if k not in derived}
        return {**kept, "architectures": [self.hugging_face_class]}

    def config_for_weights(
        self, config: Mapping[str, Any], weights: Mapping[WeightKey, Tensor]
    ) -> Config:
        """Return the config as it is: an encoder has no head to tie."""
        return dict(config)

    def primary_names(self, name: str) -> Iterator[str]:
        """Yield spellings, the old `gamma` and `beta` of norms among them."""
        for old, new in _OLD_NORM_ENDINGS.items():
            if name.endswith(old):
                name = name[: -len(old)] + new
        yield from super().primary_names(name)

    def weight_specs(self, config: Mapping[str, Any]) -> Iterator[WeightSpec]:
        """Yield the weights; see the base class."""
        hidden = config["hidden_size"]
        for name, role, rows in (
            ("word_embeddings", Role.TOKEN_EMBEDDING, "vocab_size"),
            ("position_embeddings", Role.POSITION_EMBEDDING, "max_position_embeddings"),
            ("token_type_embeddings", Role.TOKEN_TYPE_EMBEDDING, "type_vocab_size"),
        ):
            yield WeightSpec(f"embeddings.{name}.weight", WeightKey(role), (config[rows], hidden))
        yield from _pair("embeddings.LayerNorm", Role.EMBEDDING_NORM, None, (hidden,))
        for layer in range(config["num_hidden_layers"]):
            stem = f"encoder.layer.{layer}"
            for name, role, (rows, columns) in _LINEARS:
                shape = (config[rows], config[columns])
                yield from _pair(f"{stem}.{name}", role, layer, shape)
            for name, role in _NORMS:
                yield from _pair(f"{stem}.{name}", role, layer, (hidden,))
        yield from _pair("pooler.dense", Role.POOLER, None, (hidden, hidden), optional=True)

    def build(self, model: Model) -> Graph:
        """Return the graph: token ids, mask and token types to hidden states."""
        config = self.canonical_config(model.config)
        builder = LayerBuilder(self.model_type, self.bind(model, config))
        graph, shape = builder.graph, ("batch", "sequence")
        ids = graph.add_input("input_ids", "int64", shape)
        mask = graph.add_input("attention_mask", "int64", shape)
        types = graph.add_input("token_type_ids", "int64", shape)
        x = embed(builder, ids, Role.TOKEN_EMBEDDING, "embedding")
        typed = embed(builder, types, Role.TOKEN_TYPE_EMBEDDING, "token_type_embedding")
        x = builder.op("Add", x, typed, name="typed_embedding")
        positions = position_range(builder, ids)
        placed = embed(builder, positions, Role.POSITION_EMBEDDING, "position_embedding")
        x = builder.op("Add", x, placed, name="embedding_sum")
        x = layer_norm(builder, x, Role.EMBEDDING_NORM, config["layer_norm_eps"], "embedding_norm")
        for layer in range(config["num_hidden_layers"]):
            x = _layer(builder, config, x, mask, layer)
        graph.outputs.append(x)
        if WeightKey(Role.POOLER) in builder.weights:
            graph.outputs.append(_pool(builder, x))
        return graph


def _pair(
    name: str, role: Role, layer: int | None, shape: tuple[int, ...], optional: bool = False
) -> Iterator[WeightSpec]:
    yield WeightSpec(f"{name}.weight", WeightKey(role, layer), shape, optional)
    yield WeightSpec(f"{name}.bias", WeightKey(role, layer, "bias"), shape[:1], optional)


def _layer(builder: LayerBuilder, config: Config, x: Value, mask: Value, layer: int) -> Value:
    stem, epsilon = f"layers.{layer}", config["layer_norm_eps"]
    query = builder.linear(x, Role.ATTENTION_QUERY, f"{stem}.attention.query", layer)
    key = builder.linear(x, Role.ATTENTION_KEY, f"{stem}.attention.key", layer)
    value = builder.linear(x, Role.ATTENTION_VALUE, f"{stem}.attention.value", layer)
    heads = Heads.from_config(config)
    context = encoder_attention(builder, (query, key, value), mask, heads, layer)
    attended = builder.linear(context, Role.ATTENTION_OUTPUT, f"{stem}.attention.output", layer)
    x = builder.op("Add", attended, x, name=f"{stem}.attention_residual", layer=layer)
    name = f"{stem}.attention_output_norm"
    x = layer_norm(builder, x, Role.ATTENTION_OUTPUT_NORM, epsilon, name, layer)
    fed = feed_forward(builder, x, config["hidden_act"], layer)
    x = builder.op("Add", fed, x, name=f"{stem}.feed_forward_residual", layer=layer)
    is_last = layer == config["num_hidden_layers"] - 1
    name = "last_hidden_state" if is_last else f"{stem}.output_norm"
    return layer_norm(builder, x, Role.LAYER_OUTPUT_NORM, epsilon, name, layer)


def _pool(builder: LayerBuilder, x: Value) -> Value:
    """Apply a linear layer and tanh to the first position."""
    batch, _, hidden = x.shape or ("batch", "sequence", 0)
    zero = builder.constant("zero", np.asarray(0, np.int64))
    first = builder.op("Gather", x, zero, name="first_position", shape=(batch, hidden), axis=1)
    dense = builder.linear(first, Role.POOLER, "pooler.dense")
    return builder.op("Tanh", dense, name="pooler_output")


BERT = Bert()
