"""Hadamard matrices, and models whose residual stream is rotated."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import UnsupportedError
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.quant.transforms import TransformOptions
from halfbyte.quant.transforms.hadamard import Turn, block_order, core
from halfbyte.quant.transforms.rotation import SEED_KEY, Rotation
from support.layer_inputs import logits, token_ids
from support.random_models import random_model

DECODERS = ["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe"]


@pytest.mark.parametrize("order", [4, 8, 12, 20, 24, 28, 36, 44, 48, 60, 76, 84])
def test_cores_are_hadamard_matrices(order: int) -> None:
    matrix = core(order)
    assert matrix is not None
    assert np.array_equal(np.abs(matrix), np.ones((order, order)))
    assert np.array_equal(matrix @ matrix.T, order * np.eye(order))


@pytest.mark.parametrize(
    ("size", "block"),
    [(64, 64), (96, 96), (576, 576), (768, 768), (896, 896), (1536, 1536), (2304, 2304),
     (3584, 3584), (5120, 5120), (80, 80), (50, 2), (35, 1), (100, 20), (6, 2)],
)  # fmt: skip
def test_blocks_of_a_size(size: int, block: int) -> None:
    order, power = block_order(size)
    assert order * power == block


@pytest.mark.parametrize("size", [64, 96, 56, 50])
def test_turns_are_orthogonal_and_repeat(size: int) -> None:
    turn = Turn.random(size, np.random.default_rng(1))
    matrix = turn.rows(np.eye(size)).T
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-14)
    assert np.count_nonzero(matrix[0]) == turn.block
    values = np.random.default_rng(2).standard_normal((size, 5))
    np.testing.assert_allclose(turn.columns(values), matrix @ values, atol=1e-13)
    again = Turn.random(size, np.random.default_rng(1))
    assert np.array_equal(again.rows(values.T), turn.rows(values.T))


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("name", DECODERS)
def test_the_function_stays(name: str, heads: bool) -> None:
    model = random_model(name, tie_word_embeddings=False)
    ids = token_ids(model)
    made = Rotation().rewrite(model, TransformOptions(heads=heads, seed=3))
    expected, found = logits(model, ids), logits(made.model, ids)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert made.model.metadata[SEED_KEY] == 3 and "seed 3" in made.notes[-1]
    norms = [t for t in made.model.weights.values() if t.role is Role.ATTENTION_NORM]
    assert norms and all((norm.float32() == 1).all() for norm in norms)
    value = next(t for t in model.weights.values() if t.role is Role.ATTENTION_VALUE)
    assert not np.allclose(made.model.weights[value.name].float32(), value.float32())


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_tied_head_gets_its_own_table(name: str) -> None:
    model = random_model(name, tie_word_embeddings=True)
    ids = token_ids(model)
    made = Rotation().rewrite(model, TransformOptions())
    assert made.model.config["tie_word_embeddings"] is False
    assert made.model.weights["lm_head.weight"].role is Role.OUTPUT_HEAD
    assert "no longer shares" in made.notes[0]
    expected, found = logits(model, ids), logits(made.model, ids)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert model.config["tie_word_embeddings"] is True and "lm_head.weight" not in model.weights


def test_outliers_of_the_stream_are_spread() -> None:
    model = random_model("llama")
    table = next(t for t in model.weights.values() if t.role is Role.TOKEN_EMBEDDING)
    values = table.numpy().copy()
    values[:, 7] *= 100
    loud = model.with_weights(
        {**model.weights, table.name: tensor_from_array(table.name, values).identified(table.key)}
    )
    made = Rotation().rewrite(loud, TransformOptions()).model
    before, after = (m.weights[table.name].float32() for m in (loud, made))
    assert np.abs(after).max() < 0.5 * np.abs(before).max()
    np.testing.assert_allclose(np.square(after).sum(1), np.square(before).sum(1), rtol=1e-5)


def test_rows_may_be_read_in_any_ranges() -> None:
    made = Rotation().rewrite(random_model("mixtral"), TransformOptions()).model
    for tensor in made.weights.values():
        whole = tensor.float32()
        pieces = [tensor.float32(start, start + 5) for start in range(0, tensor.rows, 5)]
        assert np.array_equal(np.concatenate(pieces), whole), tensor.name


def test_seeds_change_the_rotation_and_repeat_it() -> None:
    model = random_model("llama")
    name = "model.embed_tokens.weight"
    first, same, other = (
        Rotation().rewrite(model, TransformOptions(seed=seed)).model.weights[name].float32()
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, same) and not np.array_equal(first, other)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_models_with_layer_norms_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match="LayerNormalization|residual stream|embedding"):
        Rotation().rewrite(random_model(name), TransformOptions())
