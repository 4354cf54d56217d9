"""GPT-2: pre-norm decoder with learned positions and one matrix for query, key and value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from halfbyte.converters.architectures.architecture import (
    Architecture,
    Config,
    WeightSpec,
    require_divisor,
)
from halfbyte.converters.architectures.config import MAX_LAYERS, ConfigReader
from halfbyte.converters.architectures.layers.attention import Heads, cached_attention
from halfbyte.converters.architectures.layers.builder import LayerBuilder
from halfbyte.converters.architectures.layers.embedding import (
    decoder_inputs,
    embed,
    output_head,
    take_positions,
)
from halfbyte.converters.architectures.layers.feed_forward import ACTIVATIONS, feed_forward
from halfbyte.converters.architectures.layers.norm import layer_norm
from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role, WeightKey

# canonical key: Hugging Face key
_SPELLING = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "hidden_act": "activation_function",
}
_CONV1D = (
    Role.ATTENTION_QKV,
    Role.ATTENTION_OUTPUT,
    Role.FEED_FORWARD_UP,
    Role.FEED_FORWARD_DOWN,
)


class Gpt2(Architecture):
    """Model type `gpt2`."""

    model_type = "gpt2"
    gguf_name = "gpt2"
    hugging_face_class = "GPT2LMHeadModel"
    prefix = "transformer."
    ignorable_names = (r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",)
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "model_type": "gpt2",
        "vocab_size": 128,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
    }

    def canonical_config(self, raw: Mapping[str, Any]) -> Config:
        """Return the canonical config; see the base class."""
        reader = ConfigReader(raw)
        config: Config = {k: v for k, v in raw.items() if k not in (*_SPELLING.values(), "n_ctx")}
        sizes = {
            "hidden_size": reader.integer("hidden_size", "n_embd", default=768),
            "num_hidden_layers": reader.integer(
                "num_hidden_layers", "n_layer", default=12, high=MAX_LAYERS
            ),
            "num_attention_heads": reader.integer("num_attention_heads", "n_head", default=12),
            "max_position_embeddings": reader.integer(
                "max_position_embeddings", "n_positions", default=1024
            ),
            "vocab_size": reader.integer("vocab_size", default=50257),
        }
        hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
        require_divisor("num_attention_heads", heads, "hidden_size", hidden)
        inner = reader.integer("intermediate_size", "n_inner", default=4 * hidden)
        reader.refuse("add_cross_attention", False)
        return {
            **config,
            **sizes,
            "model_type": self.model_type,
            "intermediate_size": inner,
            "num_key_value_heads": heads,
            "head_dim": hidden // heads,
            "hidden_act": reader.choice(
                "hidden_act", "activation_function", default="gelu_new", allowed=[*ACTIVATIONS]
            ),
            "layer_norm_epsilon": reader.number(
                "layer_norm_epsilon", "layer_norm_eps", default=1e-5, high=1.0
            ),
            "tie_word_embeddings": reader.flag("tie_word_embeddings", True),
            "scale_attn_weights": reader.flag("scale_attn_weights", True),
            "scale_attn_by_inverse_layer_idx": reader.flag(
                "scale_attn_by_inverse_layer_idx", False
            ),
        }

    def hugging_face_config(self, config: Mapping[str, Any]) -> Config:
        """Return config.json with the keys that GPT-2 spells in its own way."""
        derived = ("num_key_value_heads", "head_dim", "layer_norm_eps")
        kept = {_SPELLING.get(k, k): v for k, v in config.items() if k not in derived}
        # not read by transformers, but by llama.cpp's script
        kept["n_ctx"] = kept["n_positions"]
        return {"architectures": [self.hugging_face_class], **kept}

    def weight_specs(self, config: Mapping[str, Any]) -> Iterator[WeightSpec]:
        """Yield the weights in canonical shape [out, in]; see the base class."""
        hidden, vocabulary = config["hidden_size"], config["vocab_size"]
        tokens, positions = WeightKey(Role.TOKEN_EMBEDDING), WeightKey(Role.POSITION_EMBEDDING)
        limit = config["max_position_embeddings"]
        yield WeightSpec("transformer.wte.weight", tokens, (vocabulary, hidden))
        yield WeightSpec("transformer.wpe.weight", positions, (limit, hidden))
        for layer in range(config["num_hidden_layers"]):
            yield from _layer_specs(layer, hidden, config["intermediate_size"])
        yield from _norm_specs("transformer.ln_f", Role.OUTPUT_NORM, None, hidden)
        tied = bool(config["tie_word_embeddings"])
        head = WeightKey(Role.OUTPUT_HEAD)
        yield WeightSpec("lm_head.weight", head, (vocabulary, hidden), optional=tied)

    def transposed(self, key: WeightKey) -> bool:
        """Whether the weight is a Conv1D of Hugging Face, [in, out]."""
        return key.role in _CONV1D and key.kind == "weight"

    def build(self, model: Model) -> Graph:
        """Return the graph: token ids and positions to logits, over the session's cache."""
        config = self.canonical_config(model.config)
        builder = LayerBuilder(self.model_type, self.bind(model, config))
        graph, epsilon = builder.graph, config["layer_norm_epsilon"]
        ids, positions, wanted = decoder_inputs(graph)
        x = embed(builder, ids, Role.TOKEN_EMBEDDING, "embedding")
        placed = embed(builder, positions, Role.POSITION_EMBEDDING, "position_embedding")
        x = builder.op("Add", x, placed, name="embedding_sum")
        for layer in range(config["num_hidden_layers"]):
            x = _layer(builder, config, x, layer)
        x = take_positions(builder, x, wanted, "outputs")
        x = layer_norm(builder, x, Role.OUTPUT_NORM, epsilon, "output_norm")
        graph.outputs.append(output_head(builder, x))
        return graph


def _norm_specs(name: str, role: Role, layer: int | None, hidden: int) -> Iterator[WeightSpec]:
    for kind in ("weight", "bias"):
        yield WeightSpec(f"{name}.{kind}", WeightKey(role, layer, kind), (hidden,))


def _layer_specs(layer: int, hidden: int, inner: int) -> Iterator[WeightSpec]:
    stem = f"transformer.h.{layer}"
    yield from _norm_specs(f"{stem}.ln_1", Role.ATTENTION_NORM, layer, hidden)
    yield from _norm_specs(f"{stem}.ln_2", Role.FEED_FORWARD_NORM, layer, hidden)
    for name, role, shape in (
        ("attn.c_attn", Role.ATTENTION_QKV, (3 * hidden, hidden)),
        ("attn.c_proj", Role.ATTENTION_OUTPUT, (hidden, hidden)),
        ("mlp.c_fc", Role.FEED_FORWARD_UP, (inner, hidden)),
        ("mlp.c_proj", Role.FEED_FORWARD_DOWN, (hidden, inner)),
    ):
        yield WeightSpec(f"{stem}.{name}.weight", WeightKey(role, layer), shape)
        yield WeightSpec(f"{stem}.{name}.bias", WeightKey(role, layer, "bias"), shape[:1])


def _heads(config: Config, layer: int) -> Heads:
    count, size = config["num_attention_heads"], config["head_dim"]
    scale = size**-0.5 if config["scale_attn_weights"] else 1.0
    if config["scale_attn_by_inverse_layer_idx"]:
        scale /= layer + 1
    return Heads(count, count, size, scale)


def _layer(builder: LayerBuilder, config: Config, x: Value, layer: int) -> Value:
    stem, epsilon, hidden = f"layers.{layer}", config["layer_norm_epsilon"], config["hidden_size"]
    normed = layer_norm(builder, x, Role.ATTENTION_NORM, epsilon, f"{stem}.attention_norm", layer)
    fused = builder.linear(normed, Role.ATTENTION_QKV, f"{stem}.attention.query_key_value", layer)
    names = [f"{stem}.attention.{part}" for part in ("query", "key", "value")]
    query, key, value = builder.split(fused, names, [hidden] * 3, layer)
    context = cached_attention(builder, query, key, value, _heads(config, layer), layer)
    attended = builder.linear(context, Role.ATTENTION_OUTPUT, f"{stem}.attention.output", layer)
    x = builder.op("Add", attended, x, name=f"{stem}.attention_residual", layer=layer)
    normed = layer_norm(
        builder, x, Role.FEED_FORWARD_NORM, epsilon, f"{stem}.feed_forward_norm", layer
    )
    fed = feed_forward(builder, normed, config["hidden_act"], layer)
    return builder.op("Add", x, fed, name=f"{stem}.feed_forward_residual", layer=layer)


GPT2 = Gpt2()
