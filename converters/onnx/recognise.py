"""Language models written by others, known by the structure of their graphs.

What onnxruntime-genai's builder writes for llama, mistral, qwen2 and qwen3 is matched node by node.
Sizes and settings come from the graph; the rotary base from its tables, which must be exactly those
of a plain base. Ids come from genai_config.json and the tokenizer from files beside the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.converters.onnx.contrib.stored_blocks import affine_from_blocks
from halfbyte.converters.onnx.folder import text_folder
from halfbyte.converters.onnx.genai import CONFIG_FILE
from halfbyte.converters.onnx.language.pattern import (
    Decoder,
    Layer,
    NotRecognisedError,
    Pattern,
    Product,
    attribute,
)
from halfbyte.converters.onnx.messages import GraphMessage, NodeMessage
from halfbyte.errors import UnsupportedError
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import Tensor
from halfbyte.ir.tokenizer import Tokenizer
from halfbyte.ir.transposed import transposed

ANGLE_ERROR = 1e-4
TYPES = ("llama", "mistral", "qwen2", "qwen3")


def looks_like_decoder(graph: GraphMessage) -> bool:
    """Whether inputs and outputs are those of a decoder with a cache."""
    inputs = {info.name for info in graph.input}
    outputs = {info.name for info in graph.output}
    past = any(name.startswith(("past_key_values.", "past.")) for name in inputs)
    return "input_ids" in inputs and "logits" in outputs and past


def recognise(model: Model, graph: GraphMessage) -> Model:
    """Return the language model that a graph is.

    model: the initializers, by name.

    Raises:
        NotRecognisedError: the graph is not certain to be a known architecture.
    """
    try:
        return _recognised(model, graph)
    except (IndexError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise NotRecognisedError(f"its nodes lack something ({error!r})") from error


def _recognised(model: Model, graph: GraphMessage) -> Model:
    from halfbyte.converters.architectures import get_architecture

    path = Path(model.provenance.source)
    pattern = Pattern(graph, model.weights)
    decoder = pattern.decoder()
    weights = dict(_weights(pattern, decoder))
    described = _genai_model(path.with_name(CONFIG_FILE))
    config = _config(pattern, decoder, weights, described)
    architecture = get_architecture(config["model_type"])
    config = architecture.canonical_config(config)
    names = {spec.key: spec.name for spec in architecture.weight_specs(config)}
    if set(weights) - set(names):
        raise NotRecognisedError(f"{config['model_type']} has no {min(set(weights) - set(names))}")
    found = Model(
        {
            names[key]: weights[key].renamed(names[key]).identified(key)
            for key in names
            if key in weights
        },
        config,
        provenance=model.provenance,
        build=architecture.build,
    )
    architecture.bind(found, config)
    return _with_files(found, path, described)


def _weights(pattern: Pattern, decoder: Decoder) -> Iterator[tuple[WeightKey, Tensor]]:
    """Yield the weights by identity; a tied table comes once, as the token embedding."""
    source = _table(pattern, decoder.embedding)
    head = dict(_linear(pattern, decoder.head, WeightKey(Role.OUTPUT_HEAD)))
    if source == pattern.stored_name(decoder.head.node.input[1]):
        yield WeightKey(Role.TOKEN_EMBEDDING), head.pop(WeightKey(Role.OUTPUT_HEAD))
    elif decoder.embedding.op_type == "Gather" and source == decoder.embedding.input[0]:
        yield WeightKey(Role.TOKEN_EMBEDDING), pattern.constant(source, "the token embedding")
    else:
        raise NotRecognisedError("the token embedding is quantized apart from the head")
    for index, layer in enumerate(decoder.layers):
        yield from _layer_weights(pattern, layer, index)
    scale = pattern.constant(decoder.output_norm.scale, "the output norm")
    yield WeightKey(Role.OUTPUT_NORM), scale
    yield from head.items()


def _table(pattern: Pattern, lookup: NodeMessage) -> str:
    """Return the constant that a lookup reads, through the view of a tied head's weight."""
    name = lookup.input[0]
    node = pattern.producers.get(name)
    if node is not None and node.op_type in ("Reshape", "Transpose"):
        return pattern.through(node.input[0])
    return name


def _layer_weights(
    pattern: Pattern, layer: Layer, index: int
) -> Iterator[tuple[WeightKey, Tensor]]:
    for norm, role in (
        (layer.attention_norm, Role.ATTENTION_NORM),
        (layer.feed_forward_norm, Role.FEED_FORWARD_NORM),
        (layer.attention.head_norms[0], Role.ATTENTION_QUERY_NORM),
        (layer.attention.head_norms[1], Role.ATTENTION_KEY_NORM),
    ):
        if norm is not None:
            yield WeightKey(role, index), pattern.constant(norm.scale, str(role))
    yield from _projections(pattern, layer, index)
    for product, role in (
        (layer.output, Role.ATTENTION_OUTPUT),
        (layer.gate, Role.FEED_FORWARD_GATE),
        (layer.up, Role.FEED_FORWARD_UP),
        (layer.down, Role.FEED_FORWARD_DOWN),
    ):
        yield from _linear(pattern, product, WeightKey(role, index))


_QKV = (Role.ATTENTION_QUERY, Role.ATTENTION_KEY, Role.ATTENTION_VALUE)


def _projections(pattern: Pattern, layer: Layer, index: int) -> Iterator[tuple[WeightKey, Tensor]]:
    attention = layer.attention
    if not attention.packed:
        for product, role in zip(attention.products, _QKV, strict=True):
            yield from _linear(pattern, product, WeightKey(role, index))
        return
    heads, groups = attention.settings["num_heads"], attention.settings["kv_num_heads"]
    for key, whole in _linear(pattern, attention.products[0], WeightKey(_QKV[0], index)):
        size, rest = divmod(whole.shape[0], heads + 2 * groups)
        if rest:
            raise NotRecognisedError("a packed projection does not divide into heads")
        start = 0
        for role, count in zip(_QKV, (heads, groups, groups), strict=True):
            yield WeightKey(role, index, key.kind), _rows(whole, start, start + count * size)
            start += count * size


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Return rows [start, stop) of a weight, still encoded, or values of a vector."""
    shape = (stop - start, *tensor.shape[1:])
    order = np.arange(start, stop)
    if len(tensor.shape) == 1:
        from halfbyte.ir.tensor import tensor_from_array

        return tensor_from_array(tensor.name, tensor.numpy()[order])
    return replace(tensor.take_rows(order), shape=shape)


def _linear(
    pattern: Pattern, product: Product, key: WeightKey
) -> Iterator[tuple[WeightKey, Tensor]]:
    yield key, _matrix(pattern, product)
    if product.bias:
        yield key._replace(kind="bias"), pattern.constant(product.bias, "a bias")


def _matrix(pattern: Pattern, product: Product) -> Tensor:
    """Return the weight of a linear layer as [out, in]."""
    node = product.node
    if node.op_type == "MatMulNBits":
        return _blocks(pattern, product)
    name = pattern.through(node.input[1])
    inner = pattern.producers.get(name)
    if inner is not None:
        return pattern.constant(inner.input[0], "a weight")
    tensor = pattern.constant(name, "a weight")
    if len(tensor.shape) != 2:
        raise NotRecognisedError(f"weight {name!r} has shape {list(tensor.shape)}")
    return transposed(tensor)


def _blocks(pattern: Pattern, product: Product) -> Tensor:
    node = product.node
    shape = int(attribute(node, "N", 0)), int(attribute(node, "K", 0))
    bits, block = int(attribute(node, "bits", 4)), int(attribute(node, "block_size", 0))
    given = [*node.input[1:], "", "", ""]
    if attribute(node, "weight_prepacked", 0) or given[3] or block < 1 or 0 in shape:
        raise NotRecognisedError(f"weight {given[0]!r} is packed for a device or reordered")
    codes = pattern.constant(given[0], "codes")
    scales = pattern.constant(given[1], "scales")
    zeros = pattern.constant(given[2], "zero points") if given[2] else None
    blocks = -(-shape[1] // block)
    if codes.size != shape[0] * blocks * block * bits // 8 or scales.size != shape[0] * blocks:
        raise NotRecognisedError(f"weight {given[0]!r} has not the size that its node says")
    return affine_from_blocks(codes.name, shape, bits, block, codes, scales, zeros)


def _config(
    pattern: Pattern,
    decoder: Decoder,
    weights: Mapping[WeightKey, Tensor],
    described: Mapping[str, Any],
) -> dict[str, Any]:
    first = decoder.layers[0].attention
    heads, groups = int(first.settings["num_heads"]), int(first.settings["kv_num_heads"])
    query = weights[WeightKey(Role.ATTENTION_QUERY, 0)]
    size, window = query.shape[0] // heads, _window(decoder)
    vocabulary, hidden = weights[WeightKey(Role.TOKEN_EMBEDDING)].shape
    theta, positions = _rotary_base(pattern, first.rotary, size)
    config = {
        "model_type": _model_type(weights, window, described),
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": weights[WeightKey(Role.FEED_FORWARD_UP, 0)].shape[0],
        "num_hidden_layers": len(decoder.layers),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": size,
        "hidden_act": _one({layer.activation for layer in decoder.layers}, "activations"),
        "max_position_embeddings": int(described.get("context_length") or positions),
        "rms_norm_eps": _one(set(_epsilons(decoder)), "epsilons"),
        "rope_theta": theta,
        "rope_interleaved": bool(first.settings.get("rotary_interleaved")),
        "tie_word_embeddings": WeightKey(Role.OUTPUT_HEAD) not in weights,
        "attention_bias": WeightKey(Role.ATTENTION_OUTPUT, 0, "bias") in weights,
        "mlp_bias": WeightKey(Role.FEED_FORWARD_UP, 0, "bias") in weights,
    }
    if window:
        config["sliding_window"] = window
    elif config["model_type"] == "mistral":
        config["sliding_window"] = None
    _require_same_attention(decoder, size)
    return config


def _epsilons(decoder: Decoder) -> Iterator[float]:
    yield decoder.output_norm.epsilon
    for layer in decoder.layers:
        yield layer.attention_norm.epsilon
        yield layer.feed_forward_norm.epsilon


def _one(found: set[Any], what: str) -> Any:
    if len(found) != 1:
        raise NotRecognisedError(f"its layers have different {what}")
    value = found.pop()
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _window(decoder: Decoder) -> int:
    windows = {
        int(layer.attention.settings.get("local_window_size", -1)) for layer in decoder.layers
    }
    window = _one(windows, "attention windows")
    return max(int(window), 0)


def _require_same_attention(decoder: Decoder, size: int) -> None:
    """Require what the architectures take for granted: usual scale, no cap, one rotation."""
    first = decoder.layers[0].attention
    for layer in decoder.layers:
        settings = layer.attention.settings
        scale = settings.get("scale") or size**-0.5
        usual = abs(scale - size**-0.5) < 1e-6 and not settings.get("softcap")
        odd = settings.get("smooth_softmax") or settings.get("sliding_window_cache")
        if not usual or odd or layer.attention.rotary != first.rotary:
            raise NotRecognisedError("an attention has a scale, cap or rotation of its own")
        for name in ("num_heads", "kv_num_heads", "rotary_interleaved"):
            if settings.get(name) != first.settings.get(name):
                raise NotRecognisedError(f"attentions differ in {name}")


def _rotary_base(pattern: Pattern, tables: tuple[str, str], size: int) -> tuple[float, int]:
    """Return the base whose plain tables these are, and how many positions they have."""
    cosine = pattern.constant(tables[0], "cosines").float32().astype(np.float64)
    sine = pattern.constant(tables[1], "sines").float32().astype(np.float64)
    positions, pairs = cosine.shape
    if sine.shape != cosine.shape or 2 * pairs != size or positions < 2 or pairs < 2:
        raise NotRecognisedError("it rotates a part of each head")
    angles = np.arctan2(sine[1], cosine[1])
    base = float(np.exp(-np.log(angles[1]) * size / 2)) if angles[1] > 0 else 0.0
    # Bases are round numbers: of those near the estimate, the shortest that gives the tables.
    for digits in range(1, 8):
        theta = float(f"{base:.{digits}g}") if base > 1 else 0.0
        if theta and _same_angles(theta, cosine, sine):
            return theta, positions
    raise NotRecognisedError("its rotary tables are not those of a plain base")


def _same_angles(theta: float, cosine: Any, sine: Any) -> bool:
    positions, pairs = cosine.shape
    inverse = theta ** (-np.arange(pairs) / pairs)
    rows = np.unique(np.linspace(0, positions - 1, 64).astype(np.int64))
    angles = rows[:, None] * inverse[None, :].astype(np.float32).astype(np.float64)
    tolerance = ANGLE_ERROR + positions * 2.0**-23
    return bool(
        np.abs(np.cos(angles) - cosine[rows]).max() < tolerance
        and np.abs(np.sin(angles) - sine[rows]).max() < tolerance
    )


def _model_type(
    weights: Mapping[WeightKey, Tensor], window: int, described: Mapping[str, Any]
) -> str:
    """Return the architecture that has these weights; genai_config.json decides between equals."""
    biases = [WeightKey(role, 0, "bias") in weights for role in (*_QKV, Role.ATTENTION_OUTPUT)]
    if WeightKey(Role.ATTENTION_QUERY_NORM, 0) in weights:
        return "qwen3"
    if all(biases[:3]) and not biases[3]:
        return "qwen2"
    if any(biases) and not all(biases):
        raise NotRecognisedError("only some projections of an attention have a bias")
    if window:
        return "mistral"
    named = described.get("type")
    return "mistral" if named == "mistral" and not any(biases) else "llama"


def _genai_model(path: Path) -> dict[str, Any]:
    """Return the part `model` of genai_config.json, or nothing where there is no such file."""
    from halfbyte.converters.hugging_face.safetensors import parse_json

    if not path.is_file():
        return {}
    document = parse_json(path.read_bytes(), path, CONFIG_FILE)
    found = document.get("model") if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}


def _with_files(model: Model, path: Path, described: Mapping[str, Any]) -> Model:
    """Return the model with tokenizer and ids from the files beside it."""
    from halfbyte.converters.hugging_face.directory import read_text_files
    from halfbyte.converters.hugging_face.safetensors import parse_json

    files = read_text_files(text_folder(path))
    generation: dict[str, Any] = {}
    name = "generation_config.json"
    if name in files:
        generation = parse_json(files[name], path.with_name(name), name)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if described.get(key) is not None:
            generation.setdefault(key, described[key])
    tokenizer, warnings = _tokenizer(files)
    return replace(
        model,
        tokenizer=tokenizer,
        generation_config=generation,
        metadata={"files": files} if files else {},
        warnings=(*model.warnings, *warnings),
    )


def _tokenizer(files: dict[str, bytes]) -> tuple[Tokenizer | None, tuple[str, ...]]:
    from halfbyte.converters.tokenizers import from_hugging_face

    if "tokenizer.json" not in files:
        return None, ()
    try:
        return from_hugging_face(files), ()
    except UnsupportedError as error:
        return None, (f"tokenizer not read, its files are carried along ({error})",)
