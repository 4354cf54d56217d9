"""Filters, penalties and the draw."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import HalfbyteError
from halfbyte.runtime.sampling import GREEDY, Sampler, Sampling, best_first, candidates, penalized

LOGITS = np.log(np.asarray([0.1, 0.4, 0.05, 0.3, 0.15], np.float32))
OFF = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


def rule(**changes: float) -> Sampling:
    return Sampling(**{**vars(OFF), **changes})


def test_greedy_takes_the_first_of_equal_logits() -> None:
    logits = np.asarray([0.0, 3.0, 3.0, -1.0], np.float32)
    assert Sampler(GREEDY).sample(logits) == 1


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({}, [1, 3, 4, 0, 2]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 9}, [1, 3, 4, 0, 2]),
        ({"top_p": 0.4}, [1]),
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 0.0}, [1]),
        ({"min_p": 0.5}, [1, 3]),
        ({"min_p": 1.0}, [1]),
        # top-p judges what top-k left: 0.4 / 0.7 = 0.57
        ({"top_k": 2, "top_p": 0.56}, [1]),
    ],
)
def test_filters(changes: dict[str, float], left: list[int]) -> None:
    assert candidates(LOGITS, rule(**changes)).tolist() == left


def test_top_k_keeps_the_first_of_equal_logits() -> None:
    logits = np.asarray([1, 2, 1, 2, 1], np.float32)
    assert best_first(logits, 3).tolist() == [1, 3, 0]
    assert best_first(logits, 0).tolist() == [1, 3, 0, 2, 4]


def test_filters_judge_before_temperature() -> None:
    hot = candidates(LOGITS, rule(min_p=0.5, temperature=50.0))
    assert hot.tolist() == [1, 3]


def test_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    logits = np.asarray([2.0, -2.0, 1.0], np.float32)
    assert penalized(logits, [0, 1, 1], 2.0).tolist() == [1.0, -4.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 1.0]
    assert penalized(logits, [], 2.0) is logits
    assert penalized(logits, [0], 1.0) is logits


def test_penalty_looks_back_over_its_window() -> None:
    logits = np.asarray([2.0, 1.5], np.float32)
    near = Sampling(temperature=0, repetition_penalty=2.0, repetition_window=1)
    assert Sampler(near).sample(logits, [0, 1]) == 0
    assert Sampler(near).sample(logits, [1, 0]) == 1
    none = Sampling(temperature=0, repetition_penalty=2.0, repetition_window=0)
    assert Sampler(none).sample(logits, [0, 0]) == 0


def test_same_seed_same_tokens() -> None:
    draws = [[Sampler(rule(seed=s)).sample(LOGITS) for s in range(40)] for _ in range(2)]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 2
    one = Sampler(rule(seed=5))
    assert len({one.sample(LOGITS) for _ in range(60)}) > 2


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(rule(seed=1))
    counts = np.bincount([sampler.sample(LOGITS) for _ in range(4000)], minlength=5) / 4000
    np.testing.assert_allclose(counts, np.exp(LOGITS), atol=0.03)
    cold = Sampler(rule(seed=1, temperature=0.1))
    assert np.mean([cold.sample(LOGITS) == 1 for _ in range(200)]) > 0.9


@pytest.mark.parametrize(
    ("name", "value", "required"),
    [
        ("temperature", -1.0, "0 or more"),
        ("top_k", -1, "0 or more"),
        ("top_p", 1.5, "0 to 1"),
        ("min_p", -0.1, "0 to 1"),
        ("repetition_penalty", 0.0, "above 0"),
        ("repetition_window", -1, "0 or more"),
    ],
)
def test_ranges_are_checked(name: str, value: float, required: str) -> None:
    with pytest.raises(HalfbyteError, match=f"^sampling: {name} is {value}, {required} required$"):
        Sampling(**{name: value})


def test_nan_logits_are_an_error() -> None:
    with pytest.raises(HalfbyteError, match="the logits hold NaN"):
        Sampler(GREEDY).sample(np.asarray([0.0, np.nan], np.float32))
