"""Groups found from the graph, and divisors folded into them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Value
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import Tensor, tensor_from_array
from halfbyte.quant.transforms.fold import fold, storable
from halfbyte.quant.transforms.groups import Group, find_groups
from support.layer_inputs import LINEARS, logits, token_ids
from support.random_models import random_model

DECODERS = ["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe", "gpt2"]


def linear_inputs(graph: Graph) -> list[Value]:
    """Return every value that a linear layer reads."""
    found = [node.inputs[0] for node in graph.nodes if node.op in LINEARS]
    return [value for value in dict.fromkeys(found) if value is not None]


def groups_of(model: Model) -> tuple[list[Group], dict[str, str]]:
    """Return all groups of a model, and why other inputs have none."""
    return find_groups(model.graph, linear_inputs(model.graph))


def folded(model: Model, factor: Any) -> Model:
    """Return the model with factor(size) folded into every group."""
    weights: dict[str, Tensor] = {}
    for group in groups_of(model)[0]:
        source = group.source
        shape = (source.experts, source.size) if source.experts else (source.size,)
        weights |= fold(model.graph, weights, group, factor(shape))
    return model.with_weights({**model.weights, **weights})


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_found_in_a_layer(name: str) -> None:
    model = random_model(name)
    groups, reasons = groups_of(model)
    found = {group.x.name.removeprefix("layers.0.") for group in groups}
    assert {"attention_norm", "attention.context", "feed_forward_norm"} <= found
    assert ("feed_forward.product" in found) == (name != "gpt2")
    if name == "gpt2":
        assert any("Gelu" in reason and "takes no factors" in reason for reason in reasons.values())


def test_a_post_norm_layer_keeps_what_the_residual_reads() -> None:
    groups, reasons = groups_of(random_model("bert"))
    assert {group.x.name.rsplit(".", 1)[-1] for group in groups} == {"context"}
    assert any("reads it too" in reason for reason in reasons.values())


def test_a_tied_head_has_no_group() -> None:
    groups, reasons = groups_of(random_model("llama", tie_word_embeddings=True))
    assert all(group.x.name != "output_norm" for group in groups)
    assert any("used elsewhere too" in reason for reason in reasons.values())


def test_heads_that_share_a_value_share_its_divisors() -> None:
    groups, _ = groups_of(random_model("llama", num_attention_heads=4, num_key_value_heads=2))
    (context,) = [group for group in groups if group.x.name == "layers.0.attention.context"]
    expected = np.concatenate(
        [np.arange(16), np.arange(16), 16 + np.arange(16), 16 + np.arange(16)]
    )
    assert np.array_equal(context.source.channels, expected)


@pytest.mark.parametrize("name", [*DECODERS, "bert"])
def test_powers_of_two_change_no_bit(name: str) -> None:
    model = random_model(name)
    generator = np.random.default_rng(3)
    ids = token_ids(model)

    def powers(shape: tuple[int, ...]) -> NDArray[np.float32]:
        return np.exp2(generator.integers(-3, 4, shape)).astype(np.float32)

    changed = folded(model, powers)
    assert np.array_equal(logits(changed, ids), logits(model, ids))
    assert any(
        not np.array_equal(tensor.float32(), changed.weights[name].float32())
        for name, tensor in model.weights.items()
    )


@pytest.mark.parametrize("name", [*DECODERS, "bert"])
def test_any_divisors_keep_the_function(name: str) -> None:
    model = random_model(name)
    generator = np.random.default_rng(4)
    ids = token_ids(model)
    changed = folded(model, lambda shape: np.exp(generator.normal(0, 1, shape)).astype(np.float32))
    expected, found = logits(model, ids), logits(changed, ids)
    assert not np.array_equal(expected, found)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def relu_model(op: str) -> tuple[Graph, Group | None, list[str]]:
    """Return fc2(activation(fc1(x))) and its group."""
    generator = np.random.default_rng(0)
    graph = Graph()
    x = graph.add_input("x", "float32", (3, 8))

    def constant(name: str, *shape: int) -> Value:
        values = generator.standard_normal(shape).astype(np.float32)
        return graph.add_constant(tensor_from_array(name, values))

    first = graph.add(
        "Linear", [x, constant("fc1", 6, 8), constant("b1", 6)],
        name="hidden", dtype="float32", shape=(3, 6), domain=HALFBYTE_DOMAIN,
    )  # fmt: skip
    active = graph.add(op, [first], name="active", dtype="float32", shape=(3, 6), since_version=14)
    graph.outputs.append(
        graph.add("Linear", [active, constant("fc2", 4, 6)], dtype="float32", shape=(3, 4),
                  domain=HALFBYTE_DOMAIN)
    )  # fmt: skip
    groups, reasons = find_groups(graph, [active])
    return graph, (groups[0] if groups else None), list(reasons.values())


def test_relu_lets_factors_through_and_tanh_does_not() -> None:
    _, group, _ = relu_model("Relu")
    assert group is not None and group.members == ("b1", "fc1", "fc2")
    _, none, reasons = relu_model("Tanh")
    assert none is None and "takes no factors" in reasons[0]


def narrowed(model: Model, dtype: str, vectors_only: bool = False) -> Model:
    """Return the model with its weights in a 16-bit type."""
    target = Dense(dtype)
    weights = {}
    for name, tensor in model.weights.items():
        values = target.encode(tensor.float32())["data"].reshape(tensor.shape)
        narrow = tensor_from_array(name, values).identified(tensor.key)
        weights[name] = narrow if len(tensor.shape) == 1 or not vectors_only else tensor
    return model.with_weights(weights)


def test_a_norm_in_16_bits_keeps_the_function() -> None:
    model = narrowed(random_model("llama"), "bfloat16")
    graph, generator = model.graph, np.random.default_rng(6)
    (group,) = [g for g in groups_of(model)[0] if g.x.name == "layers.0.attention_norm"]
    target = encoding_from_name("int4-g32")
    encodings = dict.fromkeys(group.readers, target)
    wanted = np.exp(generator.normal(0, 1, 64)).astype(np.float32)
    kept = storable(graph, {}, group, wanted, encodings)
    assert np.abs(kept / wanted - 1).max() < 2**-7
    made = fold(graph, {}, group, kept, encodings)
    (norm,) = group.source.vectors
    assert made[norm].encoding == Dense("bfloat16")
    old, new = model.weights[norm].float32(), made[norm].float32()
    reader = group.readers[0]
    before = old * model.weights[reader].float32()
    after = new * made[reader].float32()
    assert made[reader].encoding == Dense("float32")
    np.testing.assert_allclose(after, before, rtol=2**-21)


def test_other_weights_in_16_bits_take_powers_of_two() -> None:
    model = narrowed(random_model("qwen2_moe"), "bfloat16")
    ids, graph = token_ids(model), model.graph
    generator = np.random.default_rng(7)
    weights: dict[str, Tensor] = {}
    for group in groups_of(model)[0]:
        source = group.source
        shape = (source.experts, source.size) if source.experts else (source.size,)
        wanted = np.exp(generator.normal(0, 1, shape)).astype(np.float32)
        kept = storable(graph, weights, group, wanted, {})
        assert np.array_equal(np.log2(kept), np.rint(np.log2(kept)))
        weights |= fold(graph, weights, group, kept)
    changed = model.with_weights({**model.weights, **weights})
    assert all(tensor.encoding == Dense("bfloat16") for tensor in weights.values())
    assert np.array_equal(logits(changed, ids), logits(model, ids))


def test_divisors_that_are_no_numbers_become_one() -> None:
    model = random_model("llama")
    group = groups_of(model)[0][0]
    given = np.full(64, 2.0, np.float32)
    given[:4] = np.nan, np.inf, 0.0, -1.0
    kept = storable(model.graph, {}, group, given, {})
    assert kept[:4].tolist() == [1.0] * 4 and (kept[4:] == 2.0).all()
