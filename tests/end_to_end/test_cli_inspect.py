"""`halfbyte inspect`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from support.model_folders import tiny_model, write_model

KEYS = {"format", "architecture", "parameters", "bits_per_weight", "tokenizer", "tensors"}


@pytest.mark.parametrize(
    ("name", "format_name"), [("llama", "hf"), ("llama.gguf", "gguf"), ("llama.hb", "hb")]
)
def test_json(name, format_name, cli, models):
    found = cli("inspect", models / name, "--json").json()
    assert found.keys() >= KEYS | {"problems"}
    assert found["format"] == format_name
    assert (found["architecture"], found["problems"]) == ("llama", [])
    assert found["parameters"] == 115008
    assert found["bits_per_weight"] == 32
    assert found["tokenizer"].startswith("bpe, 320 tokens")
    assert len(found["tensors"]) == 21
    for entry in found["tensors"]:
        assert entry.keys() >= {"name", "shape", "encoding", "bits_per_weight", "bytes"}
        assert entry["bytes"] == 4 * np.prod(entry["shape"])


def test_quantized_bits(cli, models):
    found = cli("inspect", models / "q4_0.gguf", "--json").json()
    bits = {entry["encoding"]: entry["bits_per_weight"] for entry in found["tensors"]}
    assert bits == {"Q4_0": 4.5, "Q8_0": 8.5, "float32": 32}
    stored = sum(entry["bytes"] for entry in found["tensors"])
    assert found["bits_per_weight"] == pytest.approx(8 * stored / found["parameters"])


def test_text(cli, models):
    found = cli("inspect", models / "llama.gguf")
    assert (found.code, found.err) == (0, "")
    for line in ("format        gguf", "parameters    115,008", "encodings     float32 (21)"):
        assert line in found.out
    assert "blk.0.attn_q.weight" in found.out
    assert "llama.block_count = 2" in found.out
    assert cli("inspect", models / "llama.gguf", "--quiet").out == ""


def test_all_lists_every_tensor(cli, tmp_path):
    path = write_model(tiny_model("llama", num_hidden_layers=6), tmp_path / "deep.gguf")
    assert "more; --all shows them" in cli("inspect", path).out
    found = cli("inspect", path, "--all").out
    assert "blk.5.ffn_down.weight" in found
    assert "--all" not in found


def test_unknown_architecture_shows_its_weights(cli, models):
    found = cli("inspect", models / "strange")
    assert found.code == 0
    assert "model.embed_tokens.weight" in found.out
    assert "problem: architecture 'strange' is not known" in found.out


def test_encoder(cli, models):
    found = cli("inspect", models / "bert", "--json").json()
    assert found["architecture"] == "bert"
    assert found["tokenizer"].startswith("wordpiece")


def test_verify_finds_what_is_not_a_number(cli, tmp_path):
    model = tiny_model("llama")
    values = model.weights["model.norm.weight"].numpy()
    values[3:5] = np.nan, np.inf
    path = write_model(model, tmp_path / "bad")
    assert cli("inspect", path, "--json").json()["problems"] == []
    found = cli("inspect", path, "--verify", "--json").json()["problems"]
    assert found == ["tensor 'model.norm.weight' has 2 values that are not finite"]


def test_verify_checks_hashes(cli, fails, models, tmp_path):
    assert cli("inspect", models / "llama.hb", "--verify").code == 0
    raw = bytearray((models / "llama.hb").read_bytes())
    raw[-200_000] ^= 1
    path = tmp_path / "flipped.hb"
    path.write_bytes(raw)
    assert cli("inspect", path).code == 0
    assert "flipped.hb" in fails("inspect", path, "--verify")


def test_names_are_no_markup(cli, tmp_path):
    name = "[red]a[/b]:smile:\x1b[31m"
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "strange"}')
    raw = len(text).to_bytes(8, "little") + text + bytes(4)
    (folder / "model.safetensors").write_bytes(raw)
    assert "[red]a[/b]:smile:\ufffd[31m" in cli("inspect", folder).out


def test_missing_and_foreign_files(fails, tmp_path):
    assert "no such file" in fails("inspect", tmp_path / "nothing.gguf")
    (tmp_path / "text.gguf").write_text("not a model")
    assert "none of the known formats" in fails("inspect", tmp_path / "text.gguf")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\3\0\0\0")
    assert "cut.gguf" in fails("inspect", tmp_path / "cut.gguf")
    (tmp_path / "empty").mkdir()
    assert "empty" in fails("inspect", tmp_path / "empty")
