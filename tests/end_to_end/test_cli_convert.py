"""`halfbyte convert` and `halfbyte quantize`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
from safetensors.numpy import load_file, save_file

import halfbyte
from halfbyte import pipeline
from halfbyte.cli.output import progress_bar, size_text
from halfbyte.errors import HalfbyteError
from support.hub_server import running_hub

ENDINGS = {"hf": "", "gguf": ".gguf", "hb": ".hb", "onnx": ".onnx"}
REPORT = {"output", "bytes", "tensors", "seconds", "peak_memory_bytes"}


def content(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("target", sorted(ENDINGS))
@pytest.mark.parametrize("source", ["llama", "llama.gguf", "llama.hb"])
def test_every_direction(source, target, cli, models, tmp_path):
    output = tmp_path / f"out{ENDINGS[target]}"
    found = cli("convert", models / source, output, "--json").json()
    assert found.keys() >= REPORT
    assert found["output"] == str(output)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert found["bytes"] == sum(path.stat().st_size for path in files)
    assert len(found["tensors"]) == 21
    for entry in found["tensors"]:
        assert entry.keys() >= {"name", "source_encoding", "encoding", "verdict"}
        assert entry["verdict"] == "exact"
        assert entry["encoding"] == entry["source_encoding"] == "float32"
    assert found["seconds"] > 0
    assert found["peak_memory_bytes"] > 0
    assert cli("inspect", output, "--json").json()["format"] == target
    beside = [f"{output.name}.data"] if target == "onnx" else []
    assert names(tmp_path) == [output.name, *beside]


def test_to_names_the_format_whatever_the_ending(cli, models, tmp_path):
    output = tmp_path / "model.bin"
    assert cli("convert", models / "llama", output, "--to", "gguf", "-q").code == 0
    assert output.read_bytes()[:4] == b"GGUF"


def test_table(cli, models, tmp_path):
    found = cli("convert", models / "llama", tmp_path / "f16.gguf", "--type", "F16")
    assert (found.code, found.err) == (0, "")
    assert "float16" in found.out and "rounded" in found.out and "norms stay float" in found.out
    assert f"{tmp_path / 'f16.gguf'}: " in found.out
    assert "peak anonymous memory" in found.out
    found = cli("convert", models / "llama", tmp_path / "quiet.gguf", "--quiet")
    assert (found.code, found.out, found.err) == (0, "", "")


def test_float64_in_gguf_comes_with_a_warning(cli, models, tmp_path):
    to = ["convert", models / "llama", tmp_path / "m.gguf", "--type"]
    wide = cli(*to, "float64", "--json").json()
    assert any("llama.cpp cannot compute with it" in line for line in wide["warnings"])
    assert cli(*to, "float32", "--json").json()["warnings"] == []


@pytest.mark.parametrize("source", ["llama", "llama.gguf", "llama.hb"])
@pytest.mark.parametrize("glob", ["blk.*.ffn_down", "model.layers.*.mlp.down_proj.weight"])
def test_overrides_know_the_names_of_every_container(source, glob, cli, models, tmp_path):
    by_glob = ["--tensor", f"{glob}=Q5_1", "--type", "Q4_0", "--json"]
    found = cli("quantize", models / source, tmp_path / "m.gguf", *by_glob).json()
    kinds = {entry["name"]: entry["encoding"] for entry in found["tensors"]}
    assert [name for name, kind in kinds.items() if kind == "Q5_1"] == [
        f"blk.{layer}.ffn_down.weight" for layer in (0, 1)
    ]


@pytest.mark.parametrize("lost", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
@pytest.mark.parametrize("target", sorted(ENDINGS))
def test_incomplete_source(lost, target, fails, models, tmp_path):
    source = tmp_path / "in"
    shutil.copytree(models / "llama", source)
    weights = load_file(source / "model.safetensors")
    del weights[lost]
    save_file(weights, source / "model.safetensors")
    line = fails("convert", source, tmp_path / f"out{ENDINGS[target]}")
    assert f"{source}: weight {lost} missing; the file is incomplete" in line
    assert names(tmp_path) == ["in"]


def test_quantize_with_overrides(cli, models, tmp_path):
    output = tmp_path / "mixed.gguf"
    by_glob = ["--tensor", "blk.*.ffn_down=Q8_0", "--tensor", "blk.1.attn_q*=F16"]
    found = cli("quantize", models / "llama", output, "--type", "Q4_0", *by_glob, "--json").json()
    kinds = {entry["name"]: entry["encoding"] for entry in found["tensors"]}
    assert kinds["blk.0.ffn_down.weight"] == kinds["blk.1.ffn_down.weight"] == "Q8_0"
    assert kinds["blk.1.attn_q.weight"] == "float16"
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == "Q4_0"
    assert kinds["output_norm.weight"] == "float32"
    verdicts = {entry["name"]: entry["verdict"] for entry in found["tensors"]}
    assert verdicts["blk.0.attn_q.weight"] == "quantized"
    assert verdicts["blk.1.attn_q.weight"] == "rounded"
    assert verdicts["output_norm.weight"] == "exact"
    read = cli("inspect", output, "--json").json()
    assert {entry["name"]: entry["encoding"] for entry in read["tensors"]} == kinds


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_every_ggml_type(type_name, cli, models, tmp_path):
    output = tmp_path / "x.gguf"
    assert cli("quantize", models / "llama", output, "--type", type_name, "-q").code == 0
    kinds = {e["encoding"] for e in cli("inspect", output, "--json").json()["tensors"]}
    assert type_name in kinds


@pytest.mark.parametrize("type_name", ["int8", "int4-g32", "int4-g32-asym", "Q4_0"])
def test_native_holds_every_type(type_name, cli, models, tmp_path):
    output = tmp_path / "x.hb"
    assert cli("quantize", models / "llama", output, "--type", type_name, "-q").code == 0
    kinds = {e["encoding"] for e in cli("inspect", output, "--json").json()["tensors"]}
    assert type_name in kinds
    assert cli("inspect", output, "--verify", "-q").code == 0


def test_opset(cli, fails, models, tmp_path):
    import onnx

    output = tmp_path / "bert.onnx"
    assert cli("convert", models / "bert", output, "--opset", 21, "-q").code == 0
    assert onnx.load(output, load_external_data=False).opset_import[0].version == 21
    line = fails("convert", models / "bert", tmp_path / "other.onnx", "--opset", 7)
    assert "opset 7, which lacks Where, is not supported" in line
    line = fails("convert", models / "bert", tmp_path / "x.gguf", "--opset", 21)
    assert "format gguf: --opset is not supported; give --to onnx" in line
    assert names(tmp_path) == ["bert.onnx"]


def test_encoder(cli, models, tmp_path):
    output = tmp_path / "bert.gguf"
    assert cli("quantize", models / "bert", output, "--type", "Q8_0").code == 0
    assert cli("convert", output, tmp_path / "back").code == 0
    assert (tmp_path / "back" / "config.json").is_file()


def test_encoded_weights_go_only_where_they_fit(cli, fails, models, tmp_path):
    found = cli("convert", models / "q4_0.gguf", tmp_path / "x.hb", "--json").json()
    assert {entry["verdict"] for entry in found["tensors"]} == {"exact"}
    wider = cli("quantize", tmp_path / "x.hb", tmp_path / "w.gguf", "--type", "Q8_0", "--json")
    assert {entry["verdict"] for entry in wider.json()["tensors"]} == {"exact"}
    asked = ("quantize", tmp_path / "w.gguf", tmp_path / "y.gguf", "--type", "Q5_1")
    line = fails(*asked)
    assert "--requantize" in line
    assert names(tmp_path) == ["w.gguf", "x.hb"]
    verdicts = {
        entry["verdict"] for entry in cli(*asked, "--requantize", "--json").json()["tensors"]
    }
    assert "quantized" in verdicts


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llama", "{}/x.gguf", "--type", "Q9_9"], "'Q9_9' is not supported"),
        (["llama", "{}/x.gguf", "--type", "int4-g32"], "int4-g32"),
        (["llama", "{}/x.gguf", "--tensor", "no.such=Q4_0"], "no weight has such a name"),
        (["llama", "{}/x.pdf"], "ending '.pdf' is not supported"),
        (["llama", "{}/x", "--to", "onyx"], "format 'onyx' is not supported"),
        (["llama", "{}/x", "--to", "gguf:what"], "flavour"),
        (["llama", "{}/no/x.gguf"], "does not exist"),
        (["nothing", "{}/x.gguf"], "no such file or folder"),
        (["strange", "{}/x.gguf"], "architecture 'strange' is not supported"),
    ],
)
def test_refusals_leave_nothing_behind(arguments, words, fails, models, tmp_path):
    source, output, *options = arguments
    assert words in fails("convert", models / source, output.format(tmp_path), *options)
    assert names(tmp_path) == []


def test_quantize_refusals(cli, fails, models, tmp_path):
    model, output = models / "llama", tmp_path / "x.gguf"
    assert cli("quantize", model, output).code == 2
    line = fails("quantize", model, output, "--type", "Q4_0", "--method", "magic")
    assert "method 'magic' is not supported" in line
    found = cli("convert", model, output, "--tensor", "blk.0")
    assert found.code == 2 and "'blk.0' is not GLOB=TYPE" in found.err
    with pytest.raises(HalfbyteError, match="no type given"):
        halfbyte.quantize(model, output, type="")
    assert names(tmp_path) == []


def test_a_broken_source_leaves_nothing_behind(fails, models, tmp_path):
    raw = (models / "llama.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(raw[: len(raw) // 2])
    assert "cut.gguf" in fails("convert", cut, tmp_path / "out.hb")
    damaged = bytearray((models / "llama.hb").read_bytes())
    damaged[-200_000] ^= 1
    (tmp_path / "damaged.hb").write_bytes(damaged)
    assert "damaged.hb" in fails("convert", tmp_path / "damaged.hb", tmp_path / "out.gguf")
    assert names(tmp_path) == ["cut.gguf", "damaged.hb"]


def test_the_source_is_never_overwritten(cli, fails, models, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes((models / "llama.gguf").read_bytes())
    (tmp_path / "link.gguf").symlink_to(path)
    for output in (path, tmp_path / "link.gguf", tmp_path / "." / "m.gguf"):
        assert "is the source itself" in fails("convert", path, output, "--type", "F16")
    assert path.read_bytes() == (models / "llama.gguf").read_bytes()


def test_output_folders_must_be_empty(cli, fails, models, tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    assert "not an empty folder" in fails("convert", models / "llama.gguf", folder)
    assert names(folder) == ["mine.txt"]
    (folder / "mine.txt").unlink()
    assert cli("convert", models / "llama.gguf", folder).code == 0
    assert "is a folder" in fails("convert", models / "llama", folder, "--to", "gguf")


def test_an_output_file_is_replaced(cli, models, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    assert cli("convert", models / "llama.hb", path).code == 0
    assert path.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("output", ["x.gguf", "x.hb", "x"])
def test_threads_do_not_change_the_bytes(output, cli, models, tmp_path):
    found = []
    for threads in (1, 2, 3):
        path = tmp_path / str(threads)
        path.mkdir()
        kind = ["--type", "float16"] if output == "x" else ["--type", "Q5_0"]
        arguments = ["convert", models / "llama", path / output, *kind, "--threads", threads, "-q"]
        assert cli(*arguments).code == 0
        found.append(content(path / output))
    assert found[0] == found[1] == found[2]


def test_warnings_go_to_standard_error(cli, models, tmp_path):
    found = cli("convert", models / "strange", tmp_path / "x.hb", "--json")
    assert found.json()["warnings"]
    assert found.err.startswith("warning: ")


def test_a_tokenizer_that_llama_cpp_does_not_know(cli, models, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for name, raw in content(models / "llama").items():
        (folder / name).write_bytes(raw)
    text = json.loads((folder / "tokenizer.json").read_text())
    text["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": "\\p{L}{1,2}|[^\\p{L}]"},
                "behavior": "Isolated",
                "invert": False,
            },
            text["pre_tokenizer"] | {"use_regex": False},
        ],
    }
    (folder / "tokenizer.json").write_text(json.dumps(text))
    found = cli("convert", folder, tmp_path / "x.gguf", "--json")
    (warning,) = found.json()["warnings"]
    assert "no pre-tokenizer that llama.cpp knows" in warning
    assert found.err == f"warning: {warning}\n"
    prompt = ("The quick", "--max-tokens", 1, "--raw", "--json")
    ids = [
        cli("run", path, *prompt).json()["prompt_token_ids"]
        for path in (folder, tmp_path / "x.gguf", models / "llama")
    ]
    assert ids[0] == ids[1] != ids[2]


def test_pickles_only_when_allowed(fails, tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "pytorch_model.bin").write_bytes(b"PK\3\4")
    assert "--allow-pickle" in fails("convert", folder, tmp_path / "x.gguf")


def test_progress_is_silent_without_a_terminal(capsys):
    for silent in (True, False):
        with progress_bar("working", silent=silent) as bar:
            assert bar is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("unit", ["bytes", "chunks"])
def test_progress_on_a_terminal(unit, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("working", silent=False, unit=unit) as bar:
        assert bar is not None
        advance = bar.of_total(10)
        advance(4)
    assert "working" in capsys.readouterr().err


def test_progress_counts_every_byte(models, tmp_path):
    totals, steps = [], []

    def progress(total):
        totals.append(total)
        return steps.append

    for name in ("x.gguf", "x.hb", "x"):
        report = pipeline.convert(models / "llama", tmp_path / name, progress=progress)
        total = totals.pop()
        assert total == sum(tensor.bytes for tensor in report.tensors)
        assert total <= sum(steps) <= report.bytes  # .hb also counts graph and tokenizer
        steps.clear()


def test_sizes():
    texts = [size_text(count) for count in (5, 1536, 3 << 20, 5 << 29)]
    assert texts == ["5 B", "1.50 KiB", "3.00 MiB", "2.50 GiB"]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_push_to_hub(cli, models, tmp_path, monkeypatch):
    with running_hub() as hub:
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        output = tmp_path / "pushed"
        found = cli("convert", models / "llama.gguf", output, "--push-to-hub", "org/pushed")
        assert found.code == 0, found.err
        assert "uploaded to org/pushed" in found.out
        uploaded = hub.repositories["org/pushed"].files
    for name, raw in content(output).items():
        assert uploaded[name] == raw, name
