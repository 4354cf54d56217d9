"""Every entry of ARCHITECTURES: config, names, graph, encodings, row order, way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from halfbyte.converters.architectures import ALIASES, ARCHITECTURES, get_architecture
from halfbyte.converters.weight_map import (
    from_canonical,
    identify,
    in_rotary_order,
    names_by_key,
    to_canonical,
)
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.legality import check
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import ArrayPart, Tensor
from halfbyte.ir.text import parse
from halfbyte.runtime.session import Session
from support.random_models import random_model

every_architecture = pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))


def feed(model: Model, length: int = 12) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(3).integers(0, model.config["vocab_size"], (2, length))
    if get_architecture(model.architecture).is_encoder:
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {"input_ids": ids, "output_positions": np.arange(length)}


def outputs(model: Model, device: str = "reference", **options: Any) -> dict[str, np.ndarray]:
    return Session(model, device, compute="exact", **options).run(feed(model))


@every_architecture
def test_file_name_is_the_model_type(model_type: str) -> None:
    architecture = get_architecture(model_type)
    assert architecture.model_type == model_type
    assert ARCHITECTURES[model_type].split(":")[0].endswith(f".{model_type}")


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_aliases_give_their_architecture(alias: str) -> None:
    assert get_architecture(alias) is get_architecture(ALIASES[alias])


@every_architecture
def test_canonical_config_is_a_fixed_point(model_type: str) -> None:
    architecture = get_architecture(model_type)
    config = architecture.canonical_config(architecture.EXAMPLE)
    assert architecture.canonical_config(config) == config
    written = architecture.hugging_face_config(config)
    back = architecture.canonical_config(written)
    assert {k: v for k, v in back.items() if k != "architectures"} == config
    assert written["architectures"] == [architecture.hugging_face_class]
    assert "rope_interleaved" not in written


@every_architecture
def test_canonical_keys_are_the_same_everywhere(model_type: str) -> None:
    architecture = get_architecture(model_type)
    config = architecture.canonical_config({})
    assert config["model_type"] == model_type
    for key in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
    ):  # fmt: skip
        assert type(config[key]) is int, key
    assert type(config["tie_word_embeddings"]) is bool
    assert type(config["hidden_act"]) is str


@every_architecture
def test_names_and_identities_are_a_bijection(model_type: str) -> None:
    architecture = get_architecture(model_type)
    config = architecture.canonical_config(architecture.EXAMPLE)
    names = architecture.hugging_face_names(config)
    assert len(set(names.values())) == len(names) > 10
    assert names_by_key(architecture, config) == {key: name for name, key in names.items()}
    assert all(name.endswith((".weight", ".bias")) for name in names)
    found = identify(names, architecture, config)
    assert found.keys == names
    assert not found.ignored
    assert not found.unknown


@every_architecture
def test_graph_is_legal_and_its_text_parses_back(model_type: str) -> None:
    model = random_model(model_type)
    check(model.graph)
    text = str(model.graph)
    assert str(parse(text, model.graph.constants)) == text
    layers = {node.layer for node in model.graph.nodes}
    assert layers == {None, *range(model.config["num_hidden_layers"])}


@every_architecture
def test_segments_are_one_run_for_each_layer(model_type: str) -> None:
    model = random_model(model_type)
    order = [layer for layer, _ in model.graph.segments()]
    numbered = [layer for layer in order if layer is not None]
    assert numbered == list(range(model.config["num_hidden_layers"]))


@every_architecture
def test_every_weight_is_in_the_graph(model_type: str) -> None:
    model = random_model(model_type)
    assert set(model.weights) <= set(model.graph.constants)
    for name, tensor in model.weights.items():
        assert model.graph.constants[name] is tensor


@every_architecture
def test_weights_may_have_any_encoding(model_type: str) -> None:
    model = random_model(model_type)
    quantized: dict[str, Tensor] = {}
    decoded: dict[str, Tensor] = {}
    for name, tensor in model.weights.items():
        kind = "Q8_0" if len(tensor.shape) == 2 else "bfloat16"
        encoding = encoding_from_name(kind)
        parts = encoding.encode(tensor.float32())
        held = {part: ArrayPart(array) for part, array in parts.items()}
        quantized[name] = Tensor(name, tensor.shape, encoding, held).identified(tensor.key)
        values = quantized[name].float32()
        plain = {"data": ArrayPart(values)}
        decoded[name] = Tensor(name, tensor.shape, tensor.encoding, plain).identified(tensor.key)
    check(model.with_weights(quantized).graph)
    found, expected = outputs(model.with_weights(quantized)), outputs(model.with_weights(decoded))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5 * np.abs(array).max())


@every_architecture
def test_processor_equals_reference(model_type: str) -> None:
    model = random_model(model_type)
    expected = outputs(model, fuse=False)
    for name, array in outputs(model, "cpu").items():
        np.testing.assert_allclose(
            array, expected[name], rtol=0, atol=1e-5 * np.abs(expected[name]).max()
        )


@every_architecture
def test_rotary_order_and_back_is_the_same_bytes(model_type: str) -> None:
    model = random_model(model_type)
    architecture = get_architecture(model_type)
    turned_config = {**model.config, "rope_interleaved": True}
    moved = 0
    for tensor in model.weights.values():
        turned = in_rotary_order(tensor, architecture, model.config, True)
        back = in_rotary_order(turned, architecture, turned_config, False)
        np.testing.assert_array_equal(back.numpy(), tensor.numpy())
        moved += turned is not tensor
    assert (moved > 0) == ("rope_theta" in model.config)


@every_architecture
def test_hugging_face_form_and_back_is_the_same_tensor(model_type: str) -> None:
    model = random_model(model_type)
    architecture = get_architecture(model_type)
    for tensor in model.weights.values():
        stored = from_canonical(tensor, architecture)
        turned = tensor.key is not None and architecture.transposed(tensor.key)
        assert stored.shape == (tensor.shape[::-1] if turned else tensor.shape)
        np.testing.assert_array_equal(to_canonical(stored, architecture).numpy(), tensor.numpy())
