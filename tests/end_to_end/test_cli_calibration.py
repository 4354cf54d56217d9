"""Options of calibrated methods: what is refused, what is recorded, what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfbyte
from halfbyte.calibration import ACTIVATION_LIMIT_BYTES
from halfbyte.converters.gguf.container import read_container
from halfbyte.converters.gguf.imatrix import read_importance
from halfbyte.ir.model import CALIBRATION_KEY
from halfbyte.quant import calibrated
from halfbyte.quant.calibration.saved import SavedStatistics
from support.integer_models import residual_net
from support.model_folders import SAMPLE, tiny_model, write_model

FEW = ("--calib-samples", "6", "--calib-length", "32")
GPTQ = ("--type", "Q4_0", "--method", "gptq")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("calibration")
    words = np.random.default_rng(0).permutation(SAMPLE.split() * 60)
    (made / "text.txt").write_text(" ".join(words), encoding="utf-8")
    lines = [json.dumps({"text": " ".join(words[n : n + 40])}) for n in range(0, 1200, 40)]
    (made / "lines.jsonl").write_text("\n".join(lines))
    settings = {"hidden_size": 64, "intermediate_size": 96}
    write_model(tiny_model("llama", 3, **settings), made / "llama")
    write_model(tiny_model("mixtral", 3), made / "mixtral")
    return made


def record_of(path: Path) -> Any:
    return json.loads(read_container(path).metadata[CALIBRATION_KEY].value)


def test_what_was_used_is_recorded(folder: Path, tmp_path: Path, cli: Any) -> None:
    source = folder / "llama"
    data = ("--calib", folder / "text.txt", "--calib", folder / "lines.jsonl", *FEW)
    more = ("--calib-random", "3", "--seed", "4", "--damping", "0.05", "--act-order", "static")
    found = cli("quantize", source, tmp_path / "a.gguf", *GPTQ, *data, *more, "--json").json()
    assert found["calibration"]["samples"] == 9
    record = record_of(tmp_path / "a.gguf")
    assert record["method"] == "gptq"
    assert record["options"]["damping"] == 0.05 and record["options"]["act_order"] == "static"
    facts = record["data"]
    assert facts["sources"] == ["text.txt", "lines.jsonl"] and len(facts["sha256"]) == 64
    assert [facts[name] for name in ("samples", "length", "random", "seed")] == [6, 32, 3, 4]
    assert str(folder) not in json.dumps(record)
    for name, other in (("b.gguf", ()), ("c.gguf", ("--no-true-sequential", "--seed", "4"))):
        done = cli("quantize", source, tmp_path / name, *GPTQ, *data, *more, *other, "-q")
        assert done.code == 0 and not done.out, done.err
    written = [(tmp_path / f"{name}.gguf").read_bytes() for name in "abc"]
    assert written[0] == written[1] != written[2]


@pytest.mark.parametrize("target", ["out.hb", "out.onnx", "out"])
def test_every_container_says_it(target: str, folder: Path, tmp_path: Path, cli: Any) -> None:
    kind = ("--type", "int4-g32", "--method", "gptq")
    to = ("--to", "hf:gptq") if target == "out" else ()
    data = ("--calib", folder / "text.txt", *FEW)
    done = cli("quantize", folder / "llama", tmp_path / target, *kind, *data, *to, "-q")
    assert done.code == 0, done.err
    if target == "out":
        held = json.loads((tmp_path / target / "config.json").read_text())["halfbyte_calibration"]
    else:
        held = halfbyte.open(tmp_path / target).metadata[CALIBRATION_KEY]
        halfbyte.convert(tmp_path / target, tmp_path / "again.hb")
        assert halfbyte.open(tmp_path / "again.hb").metadata[CALIBRATION_KEY] == held
    assert held["method"] == "gptq" and held["data"]["samples"] == 6


def test_without_data_nothing_is_recorded(folder: Path, tmp_path: Path, cli: Any) -> None:
    cli("quantize", folder / "llama", tmp_path / "a.gguf", "--type", "Q4_0", "-q")
    assert CALIBRATION_KEY not in read_container(tmp_path / "a.gguf").metadata
    cli("quantize", folder / "llama", tmp_path / "out", "--type", "int8", "--to", "hf:gptq", "-q")
    assert "halfbyte" not in (tmp_path / "out" / "config.json").read_text().replace("halfbyte:", "")


def test_a_table_is_printed(folder: Path, tmp_path: Path, cli: Any) -> None:
    data = ("--calib", folder / "text.txt", *FEW)
    found = cli("quantize", folder / "mixtral", tmp_path / "a.gguf", *GPTQ, *data)
    assert found.code == 0, found.err
    assert "output error beside rounding's" in found.out and "largest activation: " in found.out
    assert "gptq on 6 samples" in found.out and "experts: the least used saw" in found.out
    told = cli("quantize", folder / "mixtral", tmp_path / "b.gguf", *GPTQ, *data, "--json").json()
    stacks = [w["experts"] for w in told["calibration"]["weights"] if w["experts"]]
    assert stacks and all(sum(counts) == 2 * 6 * 32 for counts in stacks)
    quiet = cli("quantize", folder / "mixtral", tmp_path / "c.gguf", *GPTQ, *data, "--quiet")
    assert quiet.code == 0 and quiet.out == ""


def test_saved_statistics(folder: Path, tmp_path: Path, cli: Any, fails: Any) -> None:
    source, stats = folder / "llama", tmp_path / "stats.npz"
    data = ("--calib", folder / "text.txt", *FEW)
    done = cli("quantize", source, tmp_path / "a.gguf", *GPTQ, *data, "--save-stats", stats, "-q")
    assert done.code == 0, done.err
    saved = SavedStatistics(stats)
    assert saved.facts["samples"] == 6 and saved.facts["sources"] == ["text.txt"]
    found = cli("quantize", source, tmp_path / "b.gguf", *GPTQ, "--stats", stats, "--json").json()
    assert found["calibration"]["samples"] == 6
    facts = record_of(tmp_path / "b.gguf")["data"]
    assert facts["sha256"] == record_of(tmp_path / "a.gguf")["data"]["sha256"]
    assert len(facts["statistics"]) == 64
    matrix = tmp_path / "imatrix.gguf"
    done = cli("imatrix", source, "--from-stats", stats, "-o", matrix, "--json").json()
    assert done["entries"] == 14 and done["datasets"] == ["text.txt"]
    assert done["chunk_count"] == 6 and done["chunk_size"] == 32
    entry = read_importance(matrix).entries["blk.1.ffn_down.weight"]
    held = saved.get("model.layers.1.mlp.down_proj.weight")
    assert held is not None and entry.counts.tolist() == [held.count] == [6 * 32]
    np.testing.assert_array_equal(entry.sums[0], held.squares.astype(np.float32))
    other = fails("quantize", folder / "mixtral", tmp_path / "c.gguf", *GPTQ, "--stats", stats)
    assert "statistics of another model" in other
    same = ("--save-stats", folder / "text.txt")
    line = fails("quantize", source, tmp_path / "c.gguf", *GPTQ, *data, *same)
    assert "is calibration data itself" in line
    weights = next((folder / "llama").glob("*.safetensors"))
    kept = weights.read_bytes()
    line = fails("quantize", source, tmp_path / "c.gguf", *GPTQ, *data, "--save-stats", weights)
    assert "holds data of the source" in line and weights.read_bytes() == kept
    line = fails("quantize", source, stats, *GPTQ, "--stats", stats, "--to", "gguf")
    assert "write somewhere else" in line


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no data": (("--method", "gptq"), "--method gptq needs data: give --calib FILE or --calib pre"),
    "chain": (("--method", "awq"), "--method awq+rtn needs data"),
    "unused": (("--calib", "x.txt"), "--calib: --method rtn takes no data"),
    "unused stats": (("--stats", "x.npz"), "--stats: --method rtn takes no data"),
    "both": (("--method", "gptq", "--calib", "x", "--stats", "y"), "exclude each other"),
    "save": (("--method", "gptq", "--stats", "y", "--save-stats", "z"), "--save-stats needs"),
    "damping": (("--damping", "2"), "--damping"),
    "order": (("--act-order", "some"), "'some' is not one of"),
    "size": (("--image-size", "wide"), "'wide' is no size; give HxW"),
    "mean": (("--image-mean", "a,b"), "is no list of numbers"),
    "std": (("--image-std", "0,1,1"), "must be above 0"),
    "limit": (("--activation-limit", "much"), "is no size"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use(name: str, folder: Path, tmp_path: Path, cli: Any) -> None:
    options, said = WRONG[name]
    found = cli("quantize", folder / "llama", tmp_path / "a.gguf", "--type", "Q4_0", *options)
    assert found.code == 2 and said in " ".join(found.err.split()), found.err
    assert not list(tmp_path.iterdir())


def test_the_library_refuses_alike(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(halfbyte.HalfbyteError, match="method gptq needs data, none is given"):
        halfbyte.quantize(folder / "llama", tmp_path / "a.gguf", type="Q4_0", method="gptq")
    assert not list(tmp_path.iterdir())
    assert ACTIVATION_LIMIT_BYTES == calibrated.ACTIVATION_LIMIT_BYTES


def test_the_help_has_headings(cli: Any) -> None:
    text = cli("quantize", "--help").out
    for heading in ("Types of tensors:", "Calibration data:", "Calibrated methods:", "Output:"):
        assert f"\n{heading}\n" in text
    assert text.index("--calib ") > text.index("Calibration data:")
    assert "128MiB" in text


def test_other_models_are_calibrated_on_arrays(tmp_path: Path, cli: Any, fails: Any) -> None:
    model = residual_net()
    from halfbyte.converters import get_format
    from halfbyte.converters.format import WriteOptions

    get_format("onnx").write(model, tmp_path / "net.onnx", WriteOptions())
    images = np.random.default_rng(0).standard_normal((20, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "images.npz", image=images)
    kind = ("--type", "int8", "--method", "gptq", "--calib", tmp_path / "images.npz")
    found = cli("quantize", tmp_path / "net.onnx", tmp_path / "out.onnx", *kind, "--json").json()
    assert found["calibration"]["samples"] == 20
    line = fails("quantize", tmp_path / "net.onnx", tmp_path / "o.onnx", *kind, "--calib-random", 4)
    assert "--calib-random: the model takes no token ids" in line


@pytest.mark.parametrize("device", ["cuda", "metal"])
def test_other_devices_are_refused_before_anything_runs(
    device: str, folder: Path, tmp_path: Path, fails: Any
) -> None:
    data = ("--calib", folder / "text.txt", *FEW, "--device", device)
    told = fails("quantize", folder / "llama", tmp_path / "a.gguf", *GPTQ, *data)
    assert f"device '{device}' is not available" in told and "use --device cpu" in told
    assert not list(tmp_path.iterdir())


def test_first_tokens_are_left_out_and_it_is_recorded(
    folder: Path, tmp_path: Path, cli: Any
) -> None:
    data = ("--calib", folder / "text.txt", *FEW)
    tokens = []
    for name, more in (("all.gguf", ()), ("rest.gguf", ("--calib-skip-first",))):
        command = ("quantize", folder / "llama", tmp_path / name, *GPTQ, *data, *more, "--json")
        weights = cli(*command).json()["calibration"]["weights"]
        tokens.append({weight["tokens"] for weight in weights if weight["method"] == "gptq"})
        assert record_of(tmp_path / name)["data"]["skip_first"] is bool(more)
    assert tokens == [{6 * 32}, {6 * 31}]


def test_tables_have_no_inputs_to_take_importance_from(
    tmp_path: Path, folder: Path, fails: Any
) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 256}
    write_model(tiny_model("llama", 3, **wide), tmp_path / "wide")
    data = ("--method", "gptq", "--calib", folder / "text.txt", *FEW)
    told = fails(
        "quantize", tmp_path / "wide", tmp_path / "a.gguf", "--type", "IQ2_XXS", "--pure", *data
    )
    assert "embed_tokens" in told and "this weight another type with --tensor" in told
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]
