"""Statistics of linear layers: against plain sums, whatever the batch and the threads, in files."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.architectures import ARCHITECTURES
from halfbyte.errors import FormatError, HalfbyteError
from halfbyte.ir.model import Model
from halfbyte.quant.calibration.activations import ActivationStore
from halfbyte.quant.calibration.batches import Batches, completed, token_batches
from halfbyte.quant.calibration.gather import collect
from halfbyte.quant.calibration.pieces import cut
from halfbyte.quant.calibration.saved import SavedStatistics
from halfbyte.quant.calibration.statistics import (
    CHUNK_ROWS,
    Gathering,
    InputStatistics,
    pooled,
)
from halfbyte.quant.calibration.streams import SiteRows, Stream
from halfbyte.quant.solver import get_solver
from halfbyte.quant.solver_reference import ReferenceSolver
from support.calibration import linears, observed, random_batches
from support.random_models import random_model

SOLVER = ReferenceSolver()
FIELDS = ("hessian", "squares", "absolute", "low", "high")


def gathered(
    model: Model, batches: Batches, threads: int = 1, solver: Any = SOLVER
) -> dict[str, list[InputStatistics | None]]:
    """Return the statistics of every weight, one entry for each expert."""
    found = {}
    with ActivationStore(1 << 30) as store:
        stream = Stream(completed(batches, model.graph), store, threads=threads)
        for piece in cut(model.graph, linears(model)).pieces:
            stream.advance(piece)
            for site in piece.sites:
                rows = SiteRows(site, stream)
                if site.experts is None:
                    made = [rows.statistics(solver, True)]
                else:
                    made = [rows.of_expert(e, solver, True) for e in range(site.matrices)]
                    counts = [0 if one is None else one.count for one in made]
                    assert counts == rows.counts.tolist()
                found |= dict.fromkeys(site.weights, made)
            stream.release(piece)
    return found


def naive(rows: Any) -> dict[str, Any]:
    wide = rows.astype(np.float64)
    return {
        "hessian": wide.T @ wide,
        "squares": (wide**2).sum(0),
        "absolute": np.abs(wide).sum(0),
        "low": rows.min(0),
        "high": rows.max(0),
    }


def assert_same(one: InputStatistics, other: InputStatistics) -> None:
    assert one.count == other.count
    for name in FIELDS:
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_sums_are_those_of_the_rows(model_type: str) -> None:
    model = random_model(model_type, seed=4)
    batches = random_batches(model)
    found = gathered(model, batches)
    seen = observed(model, batches)
    assert found.keys() == set(linears(model))
    for name, statistics in found.items():
        masks = batches.masks
        rows, experts = seen.rows[name], seen.experts.get(name)
        if experts is None:
            kept = [
                x if m is None or len(x) != m.size else x[m.reshape(-1)]
                for x, m in zip(rows, masks, strict=True)
            ]
            groups = [np.concatenate(kept)]
        else:
            whole, chosen = np.concatenate(rows), np.concatenate(experts)
            groups = [whole[(chosen == e).any(-1)] for e in range(len(statistics))]
        for held, wanted in zip(statistics, groups, strict=True):
            assert (held is None) == (len(wanted) == 0)
            if held is None:
                continue
            assert held.count == len(wanted)
            for field, value in naive(wanted).items():
                scale = np.abs(value).max()
                np.testing.assert_allclose(
                    getattr(held, field), value, rtol=2e-4, atol=2e-6 * scale
                )


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_batch_and_threads_change_no_bit(model_type: str) -> None:
    model = random_model(model_type, seed=4)
    ids = np.random.default_rng(3).integers(0, model.config["vocab_size"], (7, 40))
    solver = get_solver("cpu", 1)
    wanted = gathered(model, token_batches(ids, run_tokens=1), 1, solver)
    for run_tokens, threads in ((80, 2), (2048, 3), (120, 1)):
        found = gathered(model, token_batches(ids, run_tokens=run_tokens), threads, solver)
        for name, statistics in wanted.items():
            for one, other in zip(statistics, found[name], strict=True):
                assert (one is None) == (other is None)
                if one is not None and other is not None:
                    assert_same(one, other)


@pytest.mark.parametrize("step", [1, 7, CHUNK_ROWS, 3000])
def test_rows_may_come_in_any_portions(step: int) -> None:
    rows = np.random.default_rng(1).standard_normal((2500, 6)).astype(np.float32)
    others = rows + np.float32(0.25)
    made = [Gathering(6, SOLVER, hessian=True, cross=True) for _ in range(2)]
    made[0].add(rows, others)
    for start in range(0, len(rows), step):
        made[1].add(rows[start : start + step], others[start : start + step])
    one, other = (gathering.finish() for gathering in made)
    assert_same(one, other)
    assert np.array_equal(one.cross, other.cross)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(one.cross, 0.25 * wide.sum(0) * np.ones((6, 1)), rtol=1e-4)


def test_first_tokens_and_padding_are_left_out() -> None:
    model = random_model("llama", seed=4)
    ids = np.random.default_rng(3).integers(0, model.config["vocab_size"], (3, 9))
    whole = gathered(model, token_batches(ids))
    less = gathered(model, token_batches(ids, skip_first=True))
    name = linears(model)[0]
    assert (whole[name][0].count, less[name][0].count) == (27, 24)
    rows = observed(model, token_batches(ids)).rows[name][0].reshape(3, 9, -1)[:, 1:]
    np.testing.assert_allclose(less[name][0].squares, naive(rows.reshape(24, -1))["squares"], 1e-5)


def test_sums_are_merged_and_divided() -> None:
    generator = np.random.default_rng(2)
    rows = generator.standard_normal((50, 5)).astype(np.float32)
    parts = []
    for chunk in (rows[:20], rows[20:], rows):
        gathering = Gathering(5, SOLVER, hessian=True)
        gathering.add(chunk)
        parts.append(gathering.finish())
    merged = parts[0] + parts[1]
    for field in FIELDS:
        np.testing.assert_allclose(getattr(merged, field), getattr(parts[2], field), rtol=1e-5)
    assert merged.count == 50 and merged.cross is None
    assert pooled([None, parts[0], None, parts[1]]).count == 50
    assert pooled([None]) is None
    divisor = np.array([1, -2, 0.5, 4, 3], np.float32)
    scaled = parts[2].divided(divisor)
    wanted = naive(rows / divisor)
    for field in FIELDS:
        np.testing.assert_allclose(getattr(scaled, field), wanted[field], rtol=1e-4, atol=1e-4)
    assert parts[2].largest == np.abs(rows).max()
    with pytest.raises(ValueError, match="5 and 4 columns"):
        parts[0] + parts[0].__class__(None, None, *(np.zeros(4),) * 2, *(np.zeros(4),) * 2, 1)


def test_infinite_inputs_name_the_weight() -> None:
    large = Gathering(3, SOLVER, hessian=True, where="blk.3.ffn_down.weight")
    with np.errstate(over="ignore"):
        large.add(np.array([[1, 1e25, 0]], np.float32))
        with pytest.raises(HalfbyteError, match=r"ffn_down.weight': its inputs reach 1e\+25"):
            large.finish()
    gathering = Gathering(3, SOLVER, hessian=True, where="blk.3.ffn_down.weight")
    gathering.add(np.array([[1, np.inf, 0]], np.float32))
    with pytest.raises(HalfbyteError, match=r"weight 'blk.3.ffn_down.weight': its inputs are inf"):
        gathering.finish()


@pytest.mark.parametrize("model_type", ["llama", "qwen2_moe", "bert"])
def test_saved_statistics_come_back(tmp_path: Path, model_type: str) -> None:
    model = random_model(model_type, seed=4)
    batches = random_batches(model)
    path = tmp_path / "stats.npz"
    saved = collect(model, batches, path, SOLVER, facts={"dataset": "x.txt"}, threads=1)
    wanted = gathered(model, batches)
    assert [p.name for p in tmp_path.iterdir()] == ["stats.npz"]
    again = SavedStatistics(path)
    again.require_model(random_model(model_type, seed=4))
    assert again.facts == {"samples": 5, "dataset": "x.txt"}
    assert set(again.weights) == set(linears(model)) == set(saved.weights)
    for name, statistics in wanted.items():
        for number, one in enumerate(statistics):
            other = again.get(name, number)
            assert (one is None) == (other is None)
            if one is None or other is None:
                continue
            for field in FIELDS[1:]:
                assert np.array_equal(getattr(one, field), getattr(other, field))
            assert np.array_equal(other.hessian, one.hessian.astype(np.float32))
        squares = again.importance(name)
        assert squares.shape[-1] == statistics[0].columns if statistics[0] else True
    with pytest.raises(HalfbyteError, match="statistics of another model"):
        again.require_model(random_model(model_type, seed=5))


def test_files_that_hold_no_statistics(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("no")
    foreign = tmp_path / "b.npz"
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("index.json", json.dumps({"kind": "else"}))
    for path in (text, foreign):
        with pytest.raises(FormatError, match="holds no statistics"):
            SavedStatistics(path)
    with pytest.raises(HalfbyteError, match="no such file"):
        SavedStatistics(tmp_path / "c.npz")
    model = random_model("llama", seed=4)
    path = tmp_path / "stats.npz"
    collect(model, random_batches(model), path, SOLVER, weights=linears(model)[:1], threads=1)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(foreign, "w") as copy:
        copy.writestr("index.json", archive.read("index.json"))
    with pytest.raises(FormatError, match="entry '0/0/squares' is damaged"):
        SavedStatistics(foreign).get(linears(model)[0])
