"""Chains with transforms that are killed go on in the layer where they were; same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfbyte
from halfbyte.quant.calibration import walk
from halfbyte.quant.spool import SpoolWriter
from halfbyte.quant.transforms import awq
from support.model_folders import tiny_model, write_model, write_text

TESTS = Path(__file__).resolve().parents[1]
SMALL = {"calib_samples": 6, "calib_length": 32, "threads": 1}
LAYERS, SEARCHES, WEIGHTS = 3, 9, 16  # of the model of most tests; the searches of all layers


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transforms")
    write_text(folder / "text.txt")
    settings = {"hidden_size": 64, "intermediate_size": 96}
    write_model(tiny_model("mixtral", 2, **settings), folder / "mixtral")
    return write_model(tiny_model("llama", 3, **settings), folder / "llama")


@pytest.fixture(scope="module")
def text(source: Path) -> Path:
    return source.parent / "text.txt"


def quantized(source: Path, output: Path, text: Path, **more: Any) -> Any:
    given = {"type": "int4-g32", "method": "awq", "calib": text, **SMALL, **more}
    return halfbyte.quantize(source, output, **given)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(
    ("method", "type_name", "name"),
    [("awq", "int4-g32", "out.hb"), ("smoothquant+awq+gptq", "Q4_0", "out.gguf")],
)
def test_killed_at_any_moment(
    method: str, type_name: str, name: str, source: Path, text: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    # The job, then each layer's findings, then at least two files of each weight, then the output.
    points = [f"fsync:{n}" for n in (2, 1 + LAYERS, random.integers(2 + LAYERS, 2 * WEIGHTS))]
    points += [f"replace:{2 + LAYERS + WEIGHTS}", f"search:{random.integers(1, 1 + SEARCHES)}"]
    points += [f"add:{random.integers(1, 1 + WEIGHTS)}"]
    settings = json.dumps({"method": method, "type": type_name, "name": name})
    command = [sys.executable, "-m", "support.killed_runs", source, text, tmp_path, settings]
    done = subprocess.run(
        [str(part) for part in (*command, *points)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    whole = (tmp_path / "0" / name).read_bytes()
    assert results[0]["ended"] == 0 and len(results) == len(points) + 1
    for number, found in enumerate(results[1:], 1):
        assert found["ended"] == 9, found
        assert f"{name}.halfbyte-journal" in found["left"] and name not in found["left"], found
        assert found["again"] == 0, found
        left = sorted(path.name for path in (tmp_path / str(number)).iterdir())
        assert left == [name, "out.told"], (found, left)
        assert (tmp_path / str(number) / name).read_bytes() == whole, found


class Stop(KeyboardInterrupt):
    """Somebody pressed Ctrl-C."""


class Calls:
    """Counts the calls of functions; raises at the call after `after`."""

    def __init__(self, patch: pytest.MonkeyPatch, after: int | None = None) -> None:
        self.counts = {"search": 0, "runs": 0, "statistics": 0}
        self._after = after
        self._watch(patch, awq, "best_divisors", "search")
        self._watch(patch, walk.Walk, "_layer_inputs", "statistics")
        self._watch(patch, walk.Stream, "advance", "runs")

    def _watch(self, patch: pytest.MonkeyPatch, owner: Any, name: str, what: str) -> None:
        plain = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            self.counts[what] += 1
            if what == "search" and self.counts[what] - 1 == self._after:
                raise Stop
            return plain(*arguments, **named)

        patch.setattr(owner, name, counted)


CHAINS = [
    ("llama", "awq", "int4-g32", "out.hb"),
    ("llama", "awq", "Q4_K_M", "out.gguf"),
    ("llama", "rotate+awq+hqq", "int4-g32-asym", "out.hb"),
    ("llama", "smoothquant+awq+gptq", "Q4_0", "out.gguf"),
    ("mixtral", "smoothquant+awq+rtn", "int4-g32", "out.hb"),
    ("mixtral", "awq+exhaustive", "Q4_0", "out.gguf"),
]


@pytest.mark.parametrize(("model", "method", "type_name", "name"), CHAINS)
def test_a_layer_that_is_done_is_not_searched_again(
    model: str, method: str, type_name: str, name: str, source: Path, text: Path, tmp_path: Path
) -> None:
    given = {"type": type_name, "method": method}
    folder, plain, output = source.parent / model, tmp_path / f"plain-{name}", tmp_path / name
    with pytest.MonkeyPatch.context() as patch:
        once = Calls(patch).counts
        whole = quantized(folder, plain, text, journal=False, **given)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        Calls(patch, once["search"] // 2)
        quantized(folder, output, text, **given)
    with pytest.MonkeyPatch.context() as patch:
        again = Calls(patch).counts
        resumed = quantized(folder, output, text, **given, threads=3)
    assert output.read_bytes() == plain.read_bytes()
    done = once["statistics"] - again["statistics"]
    assert 0 < done < once["statistics"]
    assert again["search"] < once["search"]
    assert any(f"what was found for {done} layers" in line for line in resumed.warnings)
    assert resumed.calibration.to_json()["weights"] == whole.calibration.to_json()["weights"]
    said = [line for line in resumed.warnings if "journal" not in line]
    assert said == list(whole.warnings)


def test_what_is_rounded_is_not_rounded_again(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.hb"
    whole = quantized(source, tmp_path / "whole.hb", text)
    begun: list[str] = []
    done: list[str] = []
    plain = SpoolWriter.finish

    def stopping(writer: Any, record: Any) -> Any:
        begun.append(writer._tensor.name)
        if len(begun) == 9:
            raise Stop
        return plain(writer, record)

    def counted(writer: Any, record: Any) -> Any:
        done.append(writer._tensor.name)
        return plain(writer, record)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(SpoolWriter, "finish", stopping)
        quantized(source, output, text)
    with monkeypatch.context() as patch:
        calls = Calls(patch).counts
        patch.setattr(SpoolWriter, "finish", counted)
        resumed = quantized(source, output, text)
    assert output.read_bytes() == (tmp_path / "whole.hb").read_bytes()
    assert set(begun[:-1]).isdisjoint(done) and begun[-1] == done[0]
    assert len(done) == WEIGHTS - 8
    assert calls["runs"] == calls["statistics"] == 0, "no layer had to run again"
    said = f"8 weights are taken over, and what was found for {LAYERS} layers"
    assert any(said in line for line in resumed.warnings)
    assert resumed.calibration.weights == whole.calibration.weights


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "alpha": ({"smoothquant_alpha": 0.7}, "method"),
    "chain": ({"method": "awq+smoothquant"}, "method"),
    "type": ({"type": "int4-g32-asym"}, "plan"),
    "data": ({"seed": 5}, "method, data"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_findings_of_another_job_are_not_used(
    name: str, source: Path, text: Path, tmp_path: Path
) -> None:
    change, said = CHANGES[name]
    output, method = tmp_path / "out.hb", "smoothquant+awq"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        Calls(patch, SEARCHES - 1)
        quantized(source, output, text, method=method)
    assert list(tmp_path.glob("*.halfbyte-journal/weights/*.layer.npz"))
    found = quantized(source, output, text, **{"method": method, **change})
    assert any(f"began with another {said}; it starts anew" in line for line in found.warnings)
    given = {"method": method, "journal": False, **change}
    quantized(source, tmp_path / "plain.hb", text, **given)
    assert output.read_bytes() == (tmp_path / "plain.hb").read_bytes()


def test_without_a_journal_nothing_is_left(source: Path, text: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        Calls(patch, SEARCHES - 1)
        quantized(source, tmp_path / "out.hb", text, journal=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "type_name"),
    [("rotate", "Q4_K_M"), ("hqq", "int4-g32-asym"), ("rotate+exhaustive", "Q4_0")],
)
def test_methods_without_data_go_on_too(
    method: str, type_name: str, source: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"type": type_name, "method": method, "threads": 2, "to": "hb"}
    plain, output = tmp_path / "plain.hb", tmp_path / "out.hb"
    halfbyte.quantize(source, plain, journal=False, **given)
    finish, done = SpoolWriter.finish, []

    def stopping(writer: Any, record: Any) -> Any:
        done.append(writer)
        if len(done) == 9:
            raise Stop
        return finish(writer, record)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(SpoolWriter, "finish", stopping)
        halfbyte.quantize(source, output, **given)
    resumed = halfbyte.quantize(source, output, **given)
    assert output.read_bytes() == plain.read_bytes()
    assert any("8 weights are taken over" in line for line in resumed.warnings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.hb", "plain.hb"]


def test_plain_rounding_keeps_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpoolWriter, "finish", None)
    halfbyte.quantize(source, tmp_path / "out.gguf", type="Q4_0")
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
