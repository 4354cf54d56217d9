"""Rotary settings: spellings, frequencies, explicit tensors and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from halfbyte.converters.architectures import get_architecture
from halfbyte.converters.architectures.rope_scaling import (
    DIVISORS,
    LONG_FACTORS,
    SHORT_FACTORS,
    divisors_as_scaling,
    frequencies,
    llama3_divisors,
    llama3_scaling,
    rope_tensors,
    scaling_from_tensors,
)
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.model import Model
from halfbyte.ir.roles import WeightKey
from halfbyte.ir.tensor import Tensor, tensor_from_array
from halfbyte.runtime.session import Session
from support.random_models import random_model

LLAMA = get_architecture("llama")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHORT = [1.0 + 0.25 * i for i in range(8)]
LONG = [4.0 + 0.5 * i for i in range(8)]
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 16,
}


def config_of(**overrides: Any) -> dict[str, Any]:
    return LLAMA.canonical_config({**LLAMA.EXAMPLE, **overrides})


def with_tensors(model: Model, tensors: dict[WeightKey, Any]) -> Model:
    added: dict[str, Tensor] = {
        str(key): tensor_from_array(str(key), np.asarray(values, np.float32)).identified(key)
        for key, values in tensors.items()
    }
    return model.with_weights({**model.weights, **added})


def logits(model: Model, length: int = 20) -> np.ndarray:
    ids = np.random.default_rng(5).integers(0, 128, (1, length))
    feed = {"input_ids": ids, "output_positions": np.arange(length)}
    return Session(model, "reference").run(feed)["logits"]


def test_both_spellings_mean_the_same() -> None:
    old = config_of(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2})
    new = config_of(rope_parameters={"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0})
    assert old == new
    assert old["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert config_of(rope_parameters={"rope_type": "default"})["rope_scaling"] is None


def test_original_length_comes_from_any_place() -> None:
    name = "original_max_position_embeddings"
    yarn = {"rope_type": "yarn", "factor": 4.0}
    assert config_of(rope_scaling=yarn)["rope_scaling"][name] == 64
    assert config_of(rope_scaling={**yarn, name: 32})["rope_scaling"][name] == 32
    top = config_of(rope_scaling={**yarn, name: 32}, **{name: 16})
    assert top["rope_scaling"][name] == 16
    assert name not in top
    assert config_of(rope_scaling={"rope_type": "yarn", name: 16})["rope_scaling"]["factor"] == 4.0
    written = LLAMA.hugging_face_config(config_of(rope_scaling=LONGROPE))
    assert written[name] == 16


@pytest.mark.parametrize(
    ("scaling", "error", "message"),
    [
        ({"rope_type": "mrope"}, UnsupportedError, "rope_type 'mrope' is not supported; suppor"),
        ({"full_attention": {}}, UnsupportedError, "rope_parameters for each layer type is not"),
        ("linear", FormatError, "rope_scaling is 'linear', a mapping was required"),
        ({"rope_type": "linear"}, FormatError, "rope_scaling.factor is None, a finite number"),
        ({"rope_type": "linear", "factor": 0}, FormatError, "rope_scaling.factor is 0, a finite"),
        ({**LLAMA3, "high_freq_factor": 1.0}, FormatError, "high_freq_factor is 1.0, a higher num"),
        ({**LONGROPE, "long_factor": [1.0]}, FormatError, "long_factor is [1.0], a list of 8"),
        ({**LONGROPE, "long_factor": [0.0] * 8}, FormatError, "long_factor is 0.0, a finite"),
        ({"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor 0.5 is not"),
        ({"rope_theta": -1.0}, FormatError, "rope_theta is -1.0, a finite number"),
        (
            {"rope_type": "yarn", "factor": 2.0, "rope_theta": 0.5},
            FormatError,
            "rope_theta is 0.5, a number above 1 was required",
        ),
    ],
)
def test_bad_settings_are_named(scaling: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        config_of(rope_scaling=scaling)
    assert message in str(caught.value)


def test_dynamic_needs_more_than_one_pair() -> None:
    with pytest.raises(FormatError, match="head_dim is 2, at least 4 was required"):
        config_of(head_dim=2, rope_scaling={"rope_type": "dynamic", "factor": 2.0})


def test_a_whole_partial_factor_is_accepted() -> None:
    assert config_of(partial_rotary_factor=1.0)["rope_scaling"] is None


def test_base_frequencies() -> None:
    found = frequencies(config_of(), {}).inverse
    expected = 10000.0 ** -(np.arange(8) / 8)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# recorded with LlamaRotaryEmbedding of transformers 5.23: head_dim 16, rope_theta 10000
RECORDED = [
    (
        YARN,
        [1.0, 0.197642356, 0.0250000004, 0.00790569466, 0.00249999994, 0.000790569466,
         0.000250000012, 7.90569466e-05],
        1.138629436111989,
    ),
    (
        {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4, "beta_fast": 4.0, "beta_slow": 0.5,
         "truncate": False},
        [1.0, 0.212468684, 0.0256643984, 0.00790569466, 0.00249999994, 0.000790569466,
         0.000250000012, 7.90569466e-05],
        1.0394038191422568,
    ),
    (
        {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 2,
         "attention_factor": 1.5},
        [1.0, 0.632455528, 0.200000003, 0.0632455572, 0.0199999996, 0.00632455572, 0.00200000009,
         0.000632455572],
        1.5,
    ),
    (
        {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 32},
        [1.0, 0.0958399773, 0.0125000002, 0.00395284733, 0.00124999997, 0.000395284733,
         0.000125000006, 3.95284733e-05],
        1.0,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("scaling", "inverse", "factor"), RECORDED)
def test_frequencies_equal_recorded_ones(
    scaling: dict[str, Any], inverse: list[float], factor: float
) -> None:
    found = frequencies(config_of(rope_scaling=scaling), {})
    np.testing.assert_allclose(found.inverse, np.asarray(inverse, np.float32), rtol=2e-7)
    assert found.attention_factor == pytest.approx(factor, rel=1e-12)


def test_yarn_without_stretch_keeps_the_magnitude() -> None:
    config = config_of(rope_scaling={**YARN, "factor": 1.0})
    assert frequencies(config, {}).attention_factor == 1.0


def test_longrope_magnitude() -> None:
    def factor(**changes: Any) -> float:
        return frequencies(config_of(rope_scaling={**LONGROPE, **changes}), {}).attention_factor

    assert factor() == pytest.approx((1 + np.log(4) / np.log(16)) ** 0.5)
    assert factor(factor=2.0) == pytest.approx((1 + np.log(2) / np.log(16)) ** 0.5)
    assert factor(original_max_position_embeddings=64) == 1.0
    assert factor(attention_factor=1.25) == 1.25


@pytest.mark.parametrize("length", [12, 16, 20, 40])
def test_dynamic_base_grows_beyond_the_trained_length(length: int) -> None:
    dynamic = {"rope_type": "dynamic", "factor": 3.0}
    model = random_model("llama", rope_scaling=dynamic, max_position_embeddings=16)
    base = 10000.0 * (3.0 * max(length, 16) / 16 - 2.0) ** (16 / 14)
    expected = logits(random_model("llama", rope_theta=base), length)
    assert np.abs(logits(model, length) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_divisors_equal_llama3_scaling() -> None:
    scaling = {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 32}
    model = random_model("llama", rope_scaling=scaling)
    tensors = rope_tensors(model.config)
    assert list(tensors) == [DIVISORS]
    divisors = tensors[DIVISORS]
    assert divisors[0] == 1.0
    assert divisors[-1] == 8.0
    plain = with_tensors(random_model("llama"), tensors)
    both = with_tensors(model, tensors)
    expected = logits(model)
    assert np.abs(logits(plain) - expected).max() <= 1e-5 * np.abs(expected).max()
    np.testing.assert_array_equal(logits(both), expected)
    assert np.abs(logits(random_model("llama")) - expected).max() > 1e-3


def test_divisors_and_linear_scaling_multiply() -> None:
    config = config_of(rope_scaling={"rope_type": "linear", "factor": 2.0})
    halves = frequencies(config, {DIVISORS: np.full(8, 2.0, np.float32)}).inverse
    np.testing.assert_array_equal(halves, frequencies(config_of(), {}).inverse / 4)


def test_divisors_with_other_scaling_are_refused() -> None:
    config = config_of(rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(UnsupportedError, match="'dynamic' together with divisor tensors"):
        frequencies(config, {DIVISORS: np.ones(8, np.float32)})


@pytest.mark.parametrize("values", [np.ones(7), np.zeros(8), np.full(8, np.nan)])
def test_bad_divisors_are_refused(values: np.ndarray) -> None:
    with pytest.raises(FormatError, match=r"rotary divisors is .* 8 positive numbers was required"):
        frequencies(config_of(), {DIVISORS: values.astype(np.float32)})


@pytest.mark.parametrize("length", [12, 20])
def test_factor_tensors_equal_longrope_lists(length: int) -> None:
    model = random_model("llama", rope_scaling=LONGROPE)
    tensors = rope_tensors(model.config)
    assert set(tensors) == {LONG_FACTORS, SHORT_FACTORS}
    bare = {k: v for k, v in LONGROPE.items() if not isinstance(v, list)}
    carried = with_tensors(random_model("llama", rope_scaling=bare), tensors)
    np.testing.assert_array_equal(logits(carried, length), logits(model, length))
    completed = LLAMA.config_for_weights(carried.config, carried.by_key())
    assert completed["rope_scaling"] == model.config["rope_scaling"]


def test_longrope_without_factors_is_refused() -> None:
    bare = {k: v for k, v in LONGROPE.items() if not isinstance(v, list)}
    model = random_model("llama", rope_scaling=bare)
    with pytest.raises(FormatError, match=r"rope_scaling\.short_factor is None, a list, or a ten"):
        _ = model.graph


def test_longrope_chooses_by_the_whole_length() -> None:
    model = random_model("llama", rope_scaling=LONGROPE)
    swapped = {**LONGROPE, "short_factor": LONG, "long_factor": SHORT}
    other = random_model("llama", rope_scaling=swapped)
    longer = {**LONGROPE, "short_factor": LONG}
    assert np.abs(logits(model, 16) - logits(other, 16)).max() > 1e-3
    same = random_model("llama", rope_scaling=longer)
    np.testing.assert_array_equal(logits(model, 17), logits(same, 17))


def test_other_scalings_need_no_tensors() -> None:
    assert rope_tensors(config_of()) == {}
    assert rope_tensors(config_of(rope_scaling={"rope_type": "linear", "factor": 2.0})) == {}
    gpt2 = get_architecture("gpt2")
    assert rope_tensors(gpt2.canonical_config(gpt2.EXAMPLE)) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"factor": 8.0},
        {"original_max_position_embeddings": 4096, "high_freq_factor": 8.0},
        {"low_freq_factor": 2.0, "high_freq_factor": 6.0, "factor": 4.0},
    ],
)
def test_llama3_settings_are_found_from_divisors(changes: dict[str, Any]) -> None:
    overrides = {"head_dim": 128, "rope_theta": 5e5, "max_position_embeddings": 131072}
    config = config_of(rope_scaling={**LLAMA3, **changes}, **overrides)
    divisors = rope_tensors(config)[DIVISORS]
    found = scaling_from_tensors(config_of(**overrides), {DIVISORS: divisors})
    assert found is not None
    again = rope_tensors({**config, "rope_scaling": found})[DIVISORS]
    np.testing.assert_allclose(again, divisors, rtol=1e-5)
    if not changes or changes == {"factor": 8.0}:
        assert found == {**LLAMA3, **changes}


@pytest.mark.parametrize("medium", [0, 1])
def test_divisors_with_few_medium_waves_have_settings(medium: int) -> None:
    divisors = np.r_[np.ones(40), [1.7] * medium, np.full(24 - medium, 9.0)].astype(np.float32)
    found = llama3_scaling(divisors, 5e5, 128)
    if medium:  # one free number cannot say any divisor at any place
        assert found is None
        return
    assert found is not None
    np.testing.assert_array_equal(llama3_divisors(found, 5e5, 128), divisors)


def test_divisors_of_no_settings_become_factors() -> None:
    divisors = np.linspace(3, 1, 32).astype(np.float32)
    config = config_of(head_dim=64)
    found = divisors_as_scaling(config, divisors)
    assert found is not None
    plain = frequencies(config, {DIVISORS: divisors})
    said = frequencies({**config, "rope_scaling": found}, {})
    np.testing.assert_allclose(said.inverse, plain.inverse, rtol=1e-6)
    assert said.attention_factor == plain.attention_factor == 1.0
    linear = {**config, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    found = divisors_as_scaling(linear, divisors)
    said = frequencies({**config, "rope_scaling": found}, {})
    expected = frequencies(linear, {DIVISORS: divisors}).inverse
    np.testing.assert_allclose(said.inverse, expected, rtol=1e-6)
    assert divisors_as_scaling(config, np.ones(32, np.float32)) is None
    yarn = {**config, "rope_scaling": {"rope_type": "yarn"}}
    with pytest.raises(UnsupportedError, match="divisor"):
        divisors_as_scaling(yarn, divisors)


@pytest.mark.parametrize(
    "divisors", [np.ones(64), np.linspace(1, 3, 64), np.linspace(3, 1, 64), np.r_[9.0, np.ones(63)]]
)
def test_other_divisors_have_no_llama3_settings(divisors: np.ndarray) -> None:
    assert llama3_scaling(divisors.astype(np.float32), 5e5, 128) is None


def test_interleaved_rotary_is_an_attribute() -> None:
    graph = random_model("llama", rope_interleaved=True).graph
    turned = [n.attributes["interleaved"] for n in graph.nodes if n.op == "RotaryEmbedding"]
    assert turned == [1] * 4
