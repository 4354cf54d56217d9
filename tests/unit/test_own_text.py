"""Text that the model writes itself, beside the text that it is calibrated on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.ir.tokenizer import Tokenizer, TokenType
from halfbyte.quant.algorithms import best
from halfbyte.quant.calibration import own_text
from halfbyte.quant.calibration.batches import Batches, input_batches, token_batches
from halfbyte.quant.calibration.own_text import with_own_text
from halfbyte.quant.calibration.statistics import InputStatistics
from halfbyte.quant.method import MethodOptions
from halfbyte.quant.solver_reference import ReferenceSolver
from halfbyte.runtime.session import Session
from support.random_models import random_model

MODEL = random_model("llama", seed=4)
ROWS = int(MODEL.config["vocab_size"])
FIRST = 3


def batches(skip_first: bool = False, count: int = 6) -> Batches:
    ids = np.random.default_rng(0).integers(0, 9, (count, 20))
    ids[:, 0] = FIRST
    return token_batches(ids, skip_first=skip_first, run_tokens=40)


def written(given: Batches, made: Batches) -> np.ndarray:
    return np.concatenate([run["input_ids"] for run in made.runs[len(given.runs) :]])


def test_as_many_sequences_again() -> None:
    given = batches(skip_first=True)
    made, note = with_own_text(given, MODEL)
    assert not note
    assert made.runs[: len(given.runs)] == given.runs
    assert len(made.masks) == len(made.runs)
    assert made.masks[-1] is not None
    ids = written(given, made)
    assert ids.shape == (6, 20)
    assert np.all(ids[:, 0] == FIRST), "what every sequence begins with"
    assert len(np.unique(ids)) > 9, "tokens that the text does not have"


def test_tokens_follow_the_models_probabilities() -> None:
    weights = dict(MODEL.weights)
    name = [name for name in weights if name.endswith("norm.weight")][-1]
    scaled = weights[name].float32(0, weights[name].rows) * np.float32(1e4)
    tensor = tensor_from_array(name, scaled.reshape(weights[name].shape))
    weights[name] = tensor.identified(weights[name].key)
    model = MODEL.with_weights(weights)  # its likeliest token is all but certain
    given = batches()
    ids = written(given, with_own_text(given, model)[0])
    session = Session(model)
    logits = session.run({"input_ids": ids[:1]})["logits"][0]
    assert np.mean(logits[1:-1].argmax(axis=1) == ids[0, 2:]) > 0.9


def test_the_same_seed_gives_the_same_text_for_any_threads() -> None:
    given = batches()
    first, second, other = (
        written(given, with_own_text(given, MODEL, threads=threads, seed=seed)[0])
        for threads, seed in ((1, 0), (2, 0), (1, 1))
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_control_tokens_and_holes_are_not_written() -> None:
    types = [int(TokenType.CONTROL)] * ROWS
    types[5:8] = [int(TokenType.NORMAL)] * 3
    types[9] = int(TokenType.BYTE)
    tokenizer = Tokenizer("bpe", tuple(f"t{i}" for i in range(ROWS)), tuple(types))
    given = batches()
    made, _ = with_own_text(given, replace(MODEL, tokenizer=tokenizer))
    assert set(np.unique(written(given, made)[:, 1:])) <= {5, 6, 7, 9}


def test_large_models_get_random_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_text, "LARGEST_MODEL_BYTES", 1)
    monkeypatch.setattr(own_text, "MOST_SEQUENCES", 4)
    given = batches()
    made, note = with_own_text(given, MODEL)
    assert "random tokens" in note
    assert "too large" in note
    assert written(given, made).shape == (4, 20)


def test_models_without_tokens_get_none() -> None:
    given = input_batches([{"pixels": np.zeros((1, 3), np.float32)}])
    made, note = with_own_text(given, MODEL)
    assert made is given
    assert not note


def test_what_was_written_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, kept = batches(), tmp_path / "kept.npy"
    first, _ = with_own_text(given, MODEL, seed=3, kept=kept)
    monkeypatch.setattr(own_text, "Session", None)
    again, note = with_own_text(given, MODEL, seed=3, kept=kept)
    assert not note
    assert np.array_equal(written(given, first), written(given, again))


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-actorder"])
def test_best_aims_at_the_float_models_output(name: str) -> None:
    generator = np.random.default_rng(5)
    weight = generator.standard_normal((24, 64)).astype(np.float32)
    mixing = generator.standard_normal((64, 64)) / 8
    float_x = generator.standard_normal((600, 64)) @ (np.eye(64) + mixing)
    x = float_x + 0.3 * float_x @ mixing + 0.05 * generator.standard_normal((600, 64))
    encoding = encoding_from_name(name)

    def error(cross: np.ndarray | None) -> float:
        statistics = InputStatistics(
            x.T @ x, cross, (x * x).sum(0), np.abs(x).sum(0),
            x.min(0).astype(np.float32), x.max(0).astype(np.float32), len(x),
        )  # fmt: skip
        solved = best.solve(weight, encoding, statistics, MethodOptions(), ReferenceSolver())
        gap = x @ encoding.decode(solved.parts, 64).T - float_x @ weight.T
        return float(np.square(gap).sum())

    assert error((float_x - x).T @ x) < 0.7 * error(None)
