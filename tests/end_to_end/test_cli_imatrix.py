"""`halfbyte imatrix`, and `halfbyte inspect` of what it writes."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.cli.group import run
from halfbyte.converters.gguf.imatrix import (
    ImportanceEntry,
    ImportanceMatrix,
    read_importance,
    write_importance,
)


@pytest.fixture
def collect(cli, models):
    """Collect from the tiny llama into a file."""

    def call(output, *options, model="llama.gguf"):
        shared = ("--data", models / "text.txt", "--context", 16, "-o", output)
        return cli("imatrix", models / model, *shared, *options)

    return call


def test_collects_from_every_format(collect, tmp_path):
    found = []
    for name in ("llama", "llama.gguf", "llama.hb", "q4_0.gguf"):
        done = collect(tmp_path / name, "--chunks", 3, model=name)
        assert (done.code, done.err) == (0, "")
        assert "3 chunks of 16 tokens" in done.out
        found.append(read_importance(tmp_path / name))
    assert len({tuple(matrix.names) for matrix in found}) == 1
    name = "blk.1.ffn_down.weight"
    first = found[0].importance(name)
    for matrix in found[1:3]:
        np.testing.assert_allclose(matrix.importance(name), first, rtol=1e-5)
    # Other weights see other inputs: much alike, not equal.
    quantized = found[3].importance(name)
    lengths = np.linalg.norm(quantized) * np.linalg.norm(first)
    assert 0.8 < quantized @ first / lengths < 0.9999


def test_never_replaces_what_it_is_made_of(cli, models, tmp_path):
    model, text = tmp_path / "llama.gguf", tmp_path / "text.txt"
    model.write_bytes((models / "llama.gguf").read_bytes())
    text.write_bytes((models / "text.txt").read_bytes())
    link = tmp_path / "link.gguf"
    link.symlink_to(model)
    before = model.read_bytes(), text.read_bytes()
    for output in (model, link, text):
        done = cli("imatrix", model, "--data", text, "--context", 16, "--chunks", 1, "-o", output)
        assert done.code == 1 and str(output) in done.err
        assert (model.read_bytes(), text.read_bytes()) == before
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in (models / "llama").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    done = cli("imatrix", folder, "--data", text, "--context", 16, "--chunks", 1, "-o", weights)
    assert done.code == 1 and "holds data of the source" in done.err
    assert weights.read_bytes() == before


def test_json(collect, tmp_path, models):
    found = collect(tmp_path / "x.gguf", "--chunks", 2, "--from-chunk", 1, "--json").json()
    assert found["output"] == str(tmp_path / "x.gguf")
    assert (found["chunk_count"], found["chunk_size"], found["tokens"]) == (2, 16, 32)
    assert found["datasets"] == [str(models / "text.txt")]
    assert (found["entries"], found["warnings"]) == (14, [])


def test_options_reach_the_collection(collect, tmp_path):
    assert collect(tmp_path / "a", "--chunks", 3, "-q").out == ""
    shared = ("--chunks", 3, "--batch", 5, "--threads", 1, "-q")
    collect(tmp_path / "b", *shared)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    collect(tmp_path / "c", "--chunks", 3, "--process-output", "--parse-special", "-q")
    names = read_importance(tmp_path / "c").names
    assert names == [*read_importance(tmp_path / "a").names, "output.weight"]


def test_saves_on_the_way(collect, tmp_path, monkeypatch):
    import halfbyte.converters.gguf.imatrix as forms

    written = []

    def watched(matrix, path, form):
        written.append((matrix.chunk_count, {int(e.counts[0]) for e in matrix.entries.values()}))
        write_importance(matrix, path, form)

    monkeypatch.setattr(forms, "write_importance", watched)
    collect(tmp_path / "x", "--chunks", 5, "--save-every", 2)
    assert written == [(2, {32}), (4, {64}), (5, {80})]
    written.clear()
    # Only whole chunks are saved: two side by side, then pieces of one.
    collect(tmp_path / "y", "--chunks", 5, "--save-every", 1, "--batch", 32)
    assert [chunks for chunks, _ in written] == [2, 4, 5]
    written.clear()
    collect(tmp_path / "z", "--chunks", 2, "--save-every", 1, "--batch", 5)
    assert [chunks for chunks, _ in written] == [1, 2]
    for name in ("y", "x"):
        assert (tmp_path / name).read_bytes()[-500:] == (tmp_path / "x").read_bytes()[-500:]


def test_form_follows_ending_and_option(collect, tmp_path):
    for name, options, old in (
        ("x.gguf", (), False),
        ("x.dat", (), True),
        ("x.imatrix", (), False),
        ("y.dat", ("--format", "gguf"), False),
        ("y.gguf", ("--format", "dat"), True),
    ):
        assert collect(tmp_path / name, "--chunks", 1, *options).code == 0
        assert read_importance(tmp_path / name).per_call is old


def test_merge(cli, collect, tmp_path):
    collect(tmp_path / "whole", "--chunks", 4)
    collect(tmp_path / "first", "--chunks", 1)
    collect(tmp_path / "rest", "--chunks", 3, "--from-chunk", 1)
    files = [tmp_path / "first", tmp_path / "rest"]
    found = cli("imatrix", "--merge", *files, "-o", tmp_path / "merged.gguf", "--json").json()
    assert (found["chunk_count"], found["tokens"], len(found["datasets"])) == (4, None, 2)
    whole, merged = (read_importance(tmp_path / n) for n in ("whole", "merged.gguf"))
    assert whole.names == merged.names
    for name in whole.names:
        np.testing.assert_allclose(merged.importance(name), whole.importance(name), rtol=1e-6)


def test_show_and_inspect_agree(cli, collect, tmp_path):
    for name in ("x.gguf", "x.dat"):
        collect(tmp_path / name, "--chunks", 2)
        shown = cli("imatrix", "--show", tmp_path / name)
        assert (shown.code, shown.err) == (0, "")
        assert cli("inspect", tmp_path / name) == shown
        assert "importance matrix" in shown.out and "blk.1.attn_output" in shown.out
        found = cli("inspect", tmp_path / name, "--json").json()
        assert cli("imatrix", "--show", tmp_path / name, "--json").json() == found
        assert len(found["weights"]) == 14 and len(found["layers"]) == 2
        assert found["form"] == name[2:]
        assert cli("inspect", tmp_path / name, "-q").out == ""


def test_show_tells_experts_without_tokens(cli, tmp_path):
    entry = ImportanceEntry(np.float32([[1, 2], [0, 0]]), np.array([3, 0]))
    entries = {f"blk.{layer}.ffn_up_exps.weight": entry for layer in range(50)}
    write_importance(ImportanceMatrix(entries), tmp_path / "x")
    shown = cli("imatrix", "--show", tmp_path / "x").out
    assert "data sets     not told" in shown
    assert "problem: blk.7.ffn_up_exps.weight: 1 of 2 experts saw no token" in shown
    assert "10 more; --all shows them" in shown
    every = cli("imatrix", "--show", "--all", tmp_path / "x").out
    assert "more; --all" not in every and "blk.49.ffn_up_exps" in every


def test_errors(fails, models, tmp_path):
    text, output = models / "text.txt", tmp_path / "x"
    collect = ("imatrix", models / "llama.gguf", "-o", output, "--data")
    assert "no such file" in fails(*collect, tmp_path / "none.txt")
    assert "chunks of 512 are required" in fails(*collect, text)
    too_many = (*collect, text, "--context", 16, "--from-chunk", 999)
    assert "1000 chunks of 16 are required" in fails(*too_many)
    for model, words in (("bert.gguf", "is no language model"), ("no-tokenizer.gguf", "tokenizer")):
        shared = ("--data", text, "-o", output, "--context", 16)
        assert words in fails("imatrix", models / model, *shared)
    assert "general.type" in fails("imatrix", "--merge", models / "llama.gguf", "-o", output)
    assert "at byte 0" in fails("imatrix", "--show", text)
    assert "does not exist" in fails(*collect[:2], "-o", tmp_path / "no" / "x", "--data", text,
                                     "--context", 16)  # fmt: skip
    broken = tmp_path / "broken.dat"
    broken.write_bytes(b"\xff" * 40)
    assert "number of entries is -1" in fails("inspect", broken)
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a"], "-o FILE is required"),
        (["a", "-o", "x"], "--data TEXT is required"),
        (["a", "b", "-o", "x", "--data", "t"], "one SRC is required"),
        (["--show", "a", "b"], "one SRC is required"),
        (["--show", "--merge", "a"], "exclude each other"),
        ([], "Missing argument"),
        (["a", "-o", "x", "--context", "0"], "--context"),
        (["a", "-o", "x", "--format", "npz"], "--format"),
    ],
)
def test_usage(arguments, words, capsys):
    assert run(["imatrix", *arguments]) == 2
    assert words in capsys.readouterr().err
