"""What `--method best` lets the model write: seeds, records, statistics, the journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfbyte
from halfbyte.ir.model import CALIBRATION_KEY
from halfbyte.quant.algorithms import gptq
from halfbyte.quant.calibration import gather, own_text
from halfbyte.quant.calibration.saved import SavedStatistics
from support.model_folders import SAMPLE, VOCABULARY, tiny_model, write_model

SMALL = {"type": "int4-g32", "method": "best", "calib_samples": 4, "calib_length": 24, "threads": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("best")
    random = np.random.default_rng(0)
    (made / "text.txt").write_text(" ".join(random.permutation(SAMPLE.split() * 40)), "utf-8")
    np.savez(made / "ids.npz", input_ids=random.integers(1, VOCABULARY, (4, 24)))
    write_model(tiny_model("llama", 3), made / "llama")
    write_model(tiny_model("bert", 3), made / "bert")
    return made


def quantized(folder: Path, output: Path, model: str = "llama", **more: Any) -> Any:
    given = {**SMALL, "calib": folder / "text.txt", **more}
    return halfbyte.quantize(folder / model, output, **given)


def facts_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = halfbyte.open(path).metadata[CALIBRATION_KEY]["data"]
    return found


def test_only_best_writes(folder: Path, tmp_path: Path) -> None:
    for method, samples in (("best", 8), ("gptq", 4)):
        report = quantized(folder, tmp_path / method, to="hb", method=method).calibration
        assert report.samples == samples
        assert {w.tokens for w in report.weights if w.tokens} == {24 * samples}
        assert ("own_text" in facts_of(tmp_path / method)) == (method == "best")


def test_the_seed_reaches_the_text(folder: Path, tmp_path: Path) -> None:
    facts = []
    for number, seed in enumerate((0, 5, 5)):
        output = tmp_path / f"{number}.hb"
        quantized(folder, output, calib=folder / "ids.npz", seed=seed)
        facts.append(facts_of(output))
    assert [given["seed"] for given in facts] == [0, 5, 5]
    assert len({given["sha256"] for given in facts}) == 1, "all of the data, whatever the seed"
    first, other, again = (given["own_text"] for given in facts)
    assert first["sequences"] == other["sequences"] == 4 and first["written"] is True
    assert first["sha256"] != other["sha256"] == again["sha256"]
    assert (tmp_path / "1.hb").read_bytes() == (tmp_path / "2.hb").read_bytes()


def test_random_tokens_are_told(folder: Path, tmp_path: Path) -> None:
    report = quantized(folder, tmp_path / "out.hb", "bert")
    assert any("calibrated also on random tokens" in line for line in report.warnings)
    told = facts_of(tmp_path / "out.hb")["own_text"]
    assert told["written"] is False and told["sequences"] == 4


def test_statistics_hold_the_text(folder: Path, tmp_path: Path) -> None:
    stats, output = tmp_path / "stats.npz", tmp_path / "out.hb"
    quantized(folder, output, save_stats=stats)
    saved, facts = SavedStatistics(stats), facts_of(output)
    assert saved.facts["own_text"] == facts["own_text"] and saved.samples == 8
    held = saved.get("model.layers.1.mlp.down_proj.weight")
    assert held is not None and held.count == 8 * 24
    for method in ("best", "gptq", "awq+best"):
        made = tmp_path / f"{method}.hb"
        report = quantized(folder, made, method=method, calib=(), stats=stats)
        assert report.calibration.samples == 8
        assert facts_of(made)["own_text"] == facts["own_text"]
        assert not any("gather with --method best" in line for line in report.warnings)
    assert (tmp_path / "best.hb").read_bytes() != (tmp_path / "gptq.hb").read_bytes()


def test_statistics_without_the_text_are_told(folder: Path, tmp_path: Path) -> None:
    stats, said = tmp_path / "stats.npz", "gather with --method best --save-stats"
    quantized(folder, tmp_path / "a.hb", method="gptq", save_stats=stats)
    for method in ("best", "gptq"):
        output = tmp_path / f"{method}.hb"
        report = quantized(folder, output, method=method, calib=(), stats=stats)
        assert any(said in line for line in report.warnings) == (method == "best")
        assert "own_text" not in facts_of(output)


def test_a_stopped_run_writes_no_text_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, stats = tmp_path / "out.hb", tmp_path / "stats.npz"
    quantized(folder, tmp_path / "whole.hb", seed=2, save_stats=tmp_path / "whole.npz")
    calls: list[str] = []

    def watch(owner: Any, name: str, last: int) -> None:
        plain = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            if calls.count(name) == last:
                raise KeyboardInterrupt
            return plain(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)

    watch(own_text, "_write", 0)
    watch(gather, "statistics_file", 0)
    watch(gptq, "solve", 5)
    with pytest.raises(KeyboardInterrupt):
        quantized(folder, output, seed=2, save_stats=stats)
    monkeypatch.undo()
    assert calls.count("_write") == calls.count("statistics_file") == 1
    calls.clear()
    watch(own_text, "_write", 0)
    watch(gather, "statistics_file", 0)
    quantized(folder, output, seed=2, save_stats=stats)
    assert not calls
    assert output.read_bytes() == (tmp_path / "whole.hb").read_bytes()
    with np.load(stats) as made, np.load(tmp_path / "whole.npz") as whole:
        names = [name for name in whole.files if name != "index.json"]
        assert made.files == whole.files
        assert all(np.array_equal(made[name], whole[name]) for name in names)
