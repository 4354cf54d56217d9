"""`halfbyte quantize` with methods that run the model over a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.gguf.container import read_container
from halfbyte.pipeline import open
from halfbyte.pipeline import verify as compare
from halfbyte.quant.calibration.batches import token_batches
from halfbyte.quant.calibration.gather import collect
from halfbyte.quant.solver import get_solver
from support.model_folders import tiny_model, write_model

FEW = ("--calib-samples", "12", "--calib-length", "48")
SETTINGS = {"hidden_size": 64, "intermediate_size": 96}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    llama = tiny_model("llama", 3, **SETTINGS)
    return {
        "gguf": write_model(llama, folder / "llama.gguf"),
        "hf": write_model(llama, folder / "llama"),
        "bert": write_model(tiny_model("bert", 3), folder / "bert"),
        "mixtral": write_model(tiny_model("mixtral", 3), folder / "mixtral"),
    }


@pytest.mark.parametrize(
    ("source", "target", "kind"),
    [
        ("gguf", "out.gguf", "Q4_0"),
        ("hf", "out.gguf", "Q4_0"),
        ("hf", "out.hb", "int4-g32-asym"),
        ("gguf", "out.onnx", "int4-g32"),
        ("bert", "out.hb", "int8-g32"),
        ("mixtral", "out.gguf", "Q8_0"),
    ],
)
def test_models_of_every_format(
    source: str,
    target: str,
    kind: str,
    sources: dict[str, Path],
    text: Path,
    tmp_path: Path,
    cli: Any,
) -> None:
    output = tmp_path / target
    found = cli(
        "quantize", sources[source], output, "--type", kind, "--method", "gptq",
        "--calib", text, *FEW, "--json",
    ).json()  # fmt: skip
    calibration = found["calibration"]
    solved = [weight for weight in calibration["weights"] if weight["method"] == "gptq"]
    assert calibration["method"] == "gptq" and calibration["samples"] == 12
    assert len(solved) >= 8 and all(weight["tokens"] for weight in solved)
    better = sum(weight["error"] for weight in solved) / sum(w["rtn_error"] for w in solved)
    assert better < 0.9, "not rounded with data"
    assert sorted(p.name for p in tmp_path.iterdir()) in ([target], [target, f"{target}.data"])
    again = open(output)
    assert str(next(t for t in again.weights.values() if t.encoding.is_quantized).encoding)


def test_gguf_from_either_source_is_nearer_than_plain_rounding(
    sources: dict[str, Path], text: Path, tmp_path: Path, cli: Any
) -> None:
    figures = {}
    for method in ("rtn", "gptq"):
        output = tmp_path / f"{method}.gguf"
        more = ("--calib", text, *FEW) if method == "gptq" else ()
        done = cli(
            "quantize", sources["hf"], output, "--type", "Q4_0", "--method", method, *more, "-q"
        )
        assert done.code == 0, done.err
        report = compare(sources["hf"], output, data=text, context=48, chunks=8)
        figures[method] = report.figures["mean_kl"]
    first, second = (read_container(tmp_path / f"{m}.gguf") for m in figures)
    assert [(t.name, t.kind) for t in first.tensors] == [(t.name, t.kind) for t in second.tensors]
    assert figures["gptq"] < figures["rtn"]


def test_threads_change_no_byte(
    sources: dict[str, Path], text: Path, tmp_path: Path, cli: Any
) -> None:
    written = []
    for threads in (1, 2, 3):
        output = tmp_path / f"{threads}.gguf"
        done = cli(
            "quantize", sources["gguf"], output, "--type", "Q4_0", "--method", "gptq",
            "--calib", text, *FEW, "--threads", threads, "-q",
        )  # fmt: skip
        assert done.code == 0, done.err
        written.append(output.read_bytes())
    assert written[0] == written[1] == written[2]


def test_saved_statistics_take_the_place_of_a_text(
    sources: dict[str, Path], tmp_path: Path, cli: Any, fails: Any
) -> None:
    model = open(sources["hf"])
    ids = np.random.default_rng(1).integers(0, 300, (12, 48))
    stats = tmp_path / "stats.npz"
    collect(model, token_batches(ids), stats, get_solver("cpu", 1), threads=1)
    output = tmp_path / "out.gguf"
    options = ("--type", "Q4_0", "--method", "gptq", "--stats", stats)
    found = cli("quantize", sources["hf"], output, *options)
    assert found.code == 0 and "statistics of the float model" in found.err
    assert "gptq on 12 samples: 15 weights, output error " in found.out
    line = fails("quantize", sources["mixtral"], output, *options)
    assert "statistics of another model" in line


def test_what_is_missing_is_said(
    sources: dict[str, Path], text: Path, tmp_path: Path, cli: Any, fails: Any
) -> None:
    asked = ("--type", "Q4_0", "--method", "gptq")
    output = tmp_path / "out.gguf"
    found = cli("quantize", sources["gguf"], output, *asked)
    assert found.code == 2 and "--method gptq needs data: give --calib FILE" in found.err
    line = fails("quantize", sources["gguf"], output, *asked, "--calib", tmp_path / "none.txt")
    assert "no such file" in line
    short = tmp_path / "short.txt"
    short.write_text("a b c")
    line = fails("quantize", sources["gguf"], output, *asked, "--calib", short)
    assert "tokens" in line
    line = fails("quantize", sources["gguf"], tmp_path / "no" / "out.gguf", *asked, "--calib", text)
    assert "does not exist" in line
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]
    line = fails("quantize", sources["gguf"], tmp_path, *asked, "--calib", text)
    assert "is a folder with content" in line
    found = cli("quantize", sources["gguf"], *asked, "--dry-run")
    assert found.code == 0 and "would write" in found.out


def test_experts_are_refused_for_onnx_before_the_model_runs(
    sources: dict[str, Path], tmp_path: Path, fails: Any
) -> None:
    options = ("--type", "int4-g32", "--method", "gptq", "--calib", tmp_path / "not looked for.txt")
    line = fails("quantize", sources["mixtral"], tmp_path / "out.onnx", *options)
    assert "the mixture of experts over" in line and "write gguf, hb, hf" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--damping", "0.1"), "--damping: --method rtn does not read it; give e.g. --method gptq"),
        (("--method", "awq", "--no-trials"), "--trials/--no-trials: --method awq+rtn does not"),
        (("--method", "hqq", "--act-order", "none"), "--act-order: --method hqq does not read it"),
        (("--method", "gptq", "--smoothquant-alpha", "0.5"), "give e.g. --method smoothquant+gptq"),
    ],
)
def test_options_that_the_method_does_not_read_are_refused(
    given: tuple[str, ...],
    said: str,
    sources: dict[str, Path],
    text: Path,
    tmp_path: Path,
    cli: Any,
) -> None:
    data = ("--calib", text) if {"awq", "gptq"} & {*given} else ()
    target = tmp_path / "out.hb"
    found = cli("quantize", sources["hf"], target, "--type", "int4-g32", *given, *data)
    assert found.code == 2 and said in " ".join(found.err.split())
    assert not target.exists()
