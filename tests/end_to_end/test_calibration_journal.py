"""A calibrated quantization that is killed goes on where it was and ends with the same bytes."""

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
from halfbyte.errors import HalfbyteError
from halfbyte.journal import Journal, open_journal
from halfbyte.quant.algorithms import gptq
from support.model_folders import tiny_model, write_model, write_text

TESTS = Path(__file__).resolve().parents[1]
SMALL = {"calib_samples": 6, "calib_length": 32, "threads": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("journal")
    write_text(folder / "text.txt")
    settings = {"hidden_size": 64, "intermediate_size": 96}
    return write_model(tiny_model("llama", 3, **settings), folder / "llama")


@pytest.fixture(scope="module")
def text(source: Path) -> Path:
    return source.parent / "text.txt"


def quantized(source: Path, output: Path, text: Path, **more: Any) -> Any:
    given = {"type": "Q4_0", "method": "gptq", "calib": text, **SMALL, **more}
    return halfbyte.quantize(source, output, **given)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_any_moment(source: Path, text: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    # The job, then for each of 15 weights a part and a record are synced; at last the output.
    points = [f"fsync:{n}" for n in (1, *random.choice(np.arange(2, 30), 3, replace=False), 32)]
    points += [f"replace:{n}" for n in (2, random.integers(3, 16), 17)]
    points += [f"add:{n}" for n in (1, random.integers(2, 16))]
    points += [f"finish:{n}" for n in random.integers(1, 16, 1)]
    command = [sys.executable, "-m", "support.killed_runs", source, text, tmp_path, "{}", *points]
    done = subprocess.run(
        [str(part) for part in command], cwd=TESTS, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    whole = (tmp_path / "0" / "out.gguf").read_bytes()
    assert results[0]["ended"] == 0 and len(results) == len(points) + 1
    for number, found in enumerate(results[1:], 1):
        assert found["ended"] == 9, found
        assert "out.gguf.halfbyte-journal" in found["left"], found
        assert "out.gguf" not in found["left"], found
        assert found["again"] == 0, found
        left = sorted(path.name for path in (tmp_path / str(number)).iterdir())
        assert left == ["out.gguf", "out.told"], (found, left)
        assert (tmp_path / str(number) / "out.gguf").read_bytes() == whole, found
        said = (tmp_path / str(number) / "out.told").read_text()
        if found["point"] not in ("fsync:1", "replace:1"):
            assert "an earlier run was stopped" in said, found
        if found["point"] == "fsync:32":
            assert "15 weights are taken over" in said


class Stop(KeyboardInterrupt):
    """Somebody pressed Ctrl-C."""


def stopped(source: Path, output: Path, text: Path, after: int, **more: Any) -> None:
    """Interrupt a run when it has solved `after` weights."""
    plain, calls = gptq.solve, []

    def solve(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise Stop
        return plain(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gptq, "solve", solve)
        with pytest.raises(Stop):
            quantized(source, output, text, **more)


@pytest.mark.parametrize("method", ["awq+gptq", "rotate+gptq"])
def test_what_is_finished_is_not_solved_again(
    source: Path, text: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantized(source, tmp_path / "whole.gguf", text, method=method)
    output = tmp_path / "out.gguf"
    stopped(source, output, text, 8, method=method)
    solved: list[int] = []
    plain = gptq.solve
    monkeypatch.setattr(gptq, "solve", lambda *a: solved.append(1) or plain(*a))
    again = quantized(source, output, text, method=method)
    assert output.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert 4 <= len(solved) <= 8
    assert again.calibration.to_json()["weights"] == whole.calibration.to_json()["weights"]
    assert again.calibration.largest == whole.calibration.largest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.gguf", "whole.gguf"]


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "damping": ({"damping": 0.1}, "method"),
    "type": ({"type": "Q5_0"}, "plan"),
    "data": ({"seed": 5}, "method, data"),
    "samples": ({"calib_samples": 5}, "data"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_journal_of_another_job_starts_anew(
    name: str, source: Path, text: Path, tmp_path: Path
) -> None:
    change, said = CHANGES[name]
    output = tmp_path / "out.gguf"
    stopped(source, output, text, 8)
    found = quantized(source, output, text, **change)
    assert any(f"began with another {said}; it starts anew" in line for line in found.warnings)
    quantized(source, tmp_path / "plain.gguf", text, journal=False, **change)
    assert output.read_bytes() == (tmp_path / "plain.gguf").read_bytes()


def test_a_changed_source_or_code_starts_anew(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.gguf"
    stopped(source, output, text, 3)
    for file in source.glob("*.safetensors"):
        os.utime(file, ns=(0, 12345))
    monkeypatch.setattr("halfbyte.__version__", "9.9")
    found = quantized(source, output, text)
    assert any("began with another source, code" in line for line in found.warnings)


def test_errors_and_switches_leave_nothing(
    source: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.gguf"
    with pytest.raises(HalfbyteError, match="no such file"):
        quantized(source, output, tmp_path / "none.txt")
    assert not list(tmp_path.iterdir())
    stopped(source, output, text, 8, journal=False)
    assert not list(tmp_path.iterdir())
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr("halfbyte.quant.spool.os.fsync", lambda _: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match="No space"):
            quantized(source, output, text)
    assert [p.name for p in tmp_path.iterdir()] == ["out.gguf.halfbyte-journal"]
    quantized(source, output, text)
    assert [p.name for p in tmp_path.iterdir()] == ["out.gguf"]


def test_strange_folders_are_left_alone(source: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    folder = tmp_path / "out.gguf.halfbyte-journal"
    folder.mkdir()
    (folder / "diary.txt").write_text("mine")
    with pytest.raises(HalfbyteError, match="is no journal of halfbyte.*give --no-journal"):
        quantized(source, output, text)
    assert (folder / "diary.txt").read_text() == "mine"
    (folder / "diary.txt").rename(folder / "job.json")
    with pytest.raises(HalfbyteError, match="is no journal of halfbyte"):
        quantized(source, output, text)


def test_what_a_killed_run_left_beside_the_output_goes(tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    with pytest.raises(KeyboardInterrupt), open_journal(output) as journal:
        journal.weights({"source": "a"})
        (journal.work / "activations").write_text("x")
        raise KeyboardInterrupt
    stale = [".out.gguf.0a1b2c3d.partial", ".out-00002-of-00003.gguf.0a1b2c3d.partial"]
    kept = [".other.gguf.0a1b2c3d.partial", ".out.gguf.notes.partial"]
    for name in (*stale, *kept):
        (tmp_path / name).write_text("x")
    (tmp_path / ".out.gguf.00000000.partial").mkdir()
    with open_journal(output) as journal:
        assert not list(journal.work.iterdir())
        assert journal.weights({"source": "a"}) and "0 weights" in journal.notices[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    output = tmp_path / "out.gguf"
    refused = pytest.raises(HalfbyteError, match="another process writes this output")
    with open_journal(output) as held, refused, open_journal(output):
        raise AssertionError
    assert isinstance(held, Journal) and not held.folder.exists()
