"""`halfbyte edit` and `halfbyte diff`."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def copy(models, tmp_path):
    return shutil.copy(models / "q4_0.gguf", tmp_path / "copy.gguf")


def test_edit_and_diff(cli, models, copy, tmp_path):
    template = tmp_path / "template.txt"
    template.write_text("{{ messages[0].content }}", encoding="utf-8")
    arguments = ["--set", "general.name=renamed", "--set", "my.list:[i32]=[1,2]"]
    arguments += ["--chat-template", template, "--rename", "llama.vocab_size=llama.was_vocab_size"]
    done = cli("edit", copy, *arguments, "--json").json()
    assert done["patched"] is False
    found = cli("diff", models / "q4_0.gguf", copy, "--json").json()
    changed = {entry["key"]: entry["second"] for entry in found["entries"]}
    assert changed["general.name"] == "renamed (string)"
    assert changed["my.list"] == "2 entries"
    assert changed["tokenizer.chat_template"].startswith("{{ messages[0].content }}")
    assert {"llama.vocab_size", "llama.was_vocab_size"} <= changed.keys()
    assert found["tensors"] == []
    shown = cli("diff", models / "q4_0.gguf", copy, "--exit-code")
    assert shown.code == 3
    assert "renamed" in shown.out
    assert "0 tensors differ, 21 tensors are the same" in shown.out
    same = cli("diff", copy, copy, "--exit-code")
    assert (same.code, same.err) == (0, "")
    assert same.out == "no difference: 21 tensors and all settings are the same\n"


def test_special_token_in_place(cli, copy):
    done = cli("edit", copy, "--special-token", "eos=0", "--json").json()
    assert done["changed"] == ["tokenizer.ggml.eos_token_id"]


def test_diff_shows_what_quantization_changed(cli, models):
    shown = cli("diff", models / "llama.gguf", models / "q4_0.gguf")
    assert shown.code == 0
    assert "blk.0.ffn_up.weight" in shown.out
    assert "Q4_0" in shown.out
    found = cli("diff", models / "llama", models / "q4_0.gguf", "--json").json()
    assert {tensor["kind"] for tensor in found["tensors"]} == {"encoding"}


def test_refusals(cli, fails, copy, models, tmp_path):
    before = copy.read_bytes()
    assert "no such key" in fails("edit", copy, "--remove", "nothing.here")
    assert "would break the file" in fails("edit", copy, "--set", "llama.block_count=77")
    assert "no uint32" in fails("edit", copy, "--set", "llama.block_count=many")
    assert "starts with" in fails("edit", models / "text.txt", "--set", "a=b")
    assert copy.read_bytes() == before
    assert cli("edit", copy).code == 2
    assert cli("edit", copy, "--set", "nothing").code == 2
    assert cli("edit", copy, "--set-file", f"a={tmp_path / 'missing'}").code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["copy.gguf"]
    assert "missing" in fails("diff", copy, tmp_path / "missing.gguf")
