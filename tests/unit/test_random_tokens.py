"""Random tokens beside a text: what changes, what stays, and whom they help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from halfbyte.converters import get_format
from halfbyte.ir.tokenizer import Tokenizer, TokenType
from halfbyte.quant.calibrated import CalibrationOptions, quantize_calibrated
from halfbyte.quant.calibration.batches import Batches, input_batches, token_batches
from halfbyte.quant.calibration.random_tokens import with_random_tokens
from halfbyte.quant.method import parse_method
from halfbyte.quant.plan import make_plan
from halfbyte.quant.solver_reference import ReferenceSolver
from support.random_models import random_model

MODEL = random_model("llama", seed=4)
ROWS = int(MODEL.config["vocab_size"])


def batches(skip_first: bool = False) -> Batches:
    ids = np.random.default_rng(0).integers(0, 9, (6, 20))
    ids[:, 0] = 3
    return token_batches(ids, skip_first=skip_first, run_tokens=40)


def test_as_many_runs_again_with_other_tokens() -> None:
    given = batches(skip_first=True)
    made = with_random_tokens(given, MODEL.graph)
    assert made.runs[: len(given.runs)] == given.runs
    assert made.samples == 2 * given.samples
    assert len(made.masks) == len(made.runs)
    for old, new in zip(given.runs, made.runs[len(given.runs) :], strict=True):
        assert new["input_ids"].shape == old["input_ids"].shape
        assert new["input_ids"].dtype == old["input_ids"].dtype
        assert np.all(new["input_ids"][:, 0] == 3), "the first token may be the model's own start"
        assert new.keys() == old.keys()
    drawn = np.concatenate([run["input_ids"][:, 1:].ravel() for run in made.runs[3:]])
    assert drawn.min() >= 0
    assert 9 <= drawn.max() < ROWS, "tokens that the text does not have"


def test_the_same_seed_gives_the_same_tokens() -> None:
    first, second = (with_random_tokens(batches(), MODEL.graph) for _ in range(2))
    other = with_random_tokens(batches(), MODEL.graph, seed=1)
    assert np.array_equal(first.runs[-1]["input_ids"], second.runs[-1]["input_ids"])
    assert not np.array_equal(first.runs[-1]["input_ids"], other.runs[-1]["input_ids"])


def test_control_tokens_and_holes_are_not_drawn() -> None:
    types = [int(TokenType.CONTROL)] * ROWS
    types[5:8] = [int(TokenType.NORMAL)] * 3
    types[9] = int(TokenType.BYTE)
    tokenizer = Tokenizer("bpe", tuple(f"t{i}" for i in range(ROWS)), tuple(types))
    made = with_random_tokens(batches(), MODEL.graph, tokenizer)
    assert set(np.unique(made.runs[-1]["input_ids"][:, 1:])) == {5, 6, 7, 9}


def test_models_without_tokens_get_none() -> None:
    given = input_batches([{"pixels": np.zeros((1, 3), np.float32)}])
    assert with_random_tokens(given, MODEL.graph) is given


@pytest.mark.parametrize("method", ["gptq", "best"])
def test_only_best_takes_them(method: str, tmp_path: Path) -> None:
    plan = make_plan(MODEL, get_format("gguf").profile(), "Q4_0")
    made, report = quantize_calibrated(
        MODEL, plan, parse_method(method), batches(), CalibrationOptions(tmp_path, threads=1),
        ReferenceSolver(),
    )  # fmt: skip
    assert report.samples == (12 if method == "best" else 6)
    tokens = {weight.tokens for weight in report.weights if weight.tokens}
    assert tokens == {20 * report.samples}
    assert made.weights.keys() == MODEL.weights.keys()
