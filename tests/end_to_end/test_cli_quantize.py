"""`halfbyte quantize`: mixes, options, importance, parts, dry runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.gguf.container import read_container
from halfbyte.converters.gguf.imatrix import (
    ImportanceEntry,
    ImportanceMatrix,
    read_importance,
    write_importance,
)
from halfbyte.pipeline import open
from support.gguf_models import gguf_bytes, write
from support.mix_models import MixModel
from support.random_models import random_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantize") / "source.gguf"
    wide = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 64}
    write(random_model("llama", num_hidden_layers=4, **wide), path, "F32")
    return path


def types(path: Path) -> dict[str, str]:
    return {info.name: info.kind.name for info in read_container(path).tensors}


def importance_file(
    source: Path, target: Path, bad: float | None = None, without: str = "none", extra: int = 0
) -> Path:
    entries = {}
    for info in read_container(source).tensors:
        if info.name.startswith("blk.") and len(info.shape) == 2 and without not in info.name:
            sums = np.ones((1, info.shape[-1] + extra), np.float32)
            if bad is not None:
                sums[0, 3] = bad
            entries[info.name] = ImportanceEntry(sums, np.ones(1, np.int64))
    write_importance(ImportanceMatrix(entries, ("text.txt",), 3), target)
    return target


@pytest.mark.parametrize("ending", ["out.gguf", "out.hb"])
@pytest.mark.parametrize("name", ["Q4_K_M", "Q4_0", "IQ4_XS", "int4-g32", "F16", "Q2_K"])
def test_a_dry_run_tells_the_size(name, ending, cli, source, tmp_path, capsys):
    if name == "int4-g32" and ending == "out.gguf":
        pytest.skip("GGUF has no such type")
    output = tmp_path / ending
    told = cli("quantize", source, output, "--type", name, "--dry-run", "--json").json()
    assert not output.exists() and not list(tmp_path.iterdir())
    made = cli("quantize", source, output, "--type", name, "--json").json()
    assert told["bytes"] == made["bytes"] == output.stat().st_size
    assert told["exact"] and told["dry_run"] and not made["dry_run"]
    assert told["tensors"] == made["tensors"]
    assert told["files"] == made["files"] == [str(output)]
    shown = cli("quantize", source, output, "--type", name, "--dry-run")
    assert f"would write {made['bytes']} bytes" in shown.out and "in 1 file" in shown.out
    assert "blk.3.ffn_down.weight" in shown.out or ending == "out.hb"


def test_a_dry_run_needs_no_destination(cli, source, tmp_path):
    told = cli("quantize", source, "--type", "Q4_K_M", "--dry-run", "--json").json()
    made = cli("quantize", source, tmp_path / "o.gguf", "--type", "Q4_K_M", "--json").json()
    assert told["bytes"] == made["bytes"]
    missing = cli("quantize", source, "--type", "Q4_K_M")
    assert missing.code == 2 and "Missing argument 'DST'" in missing.err
    folder = cli("quantize", source, tmp_path / "f", "--type", "F16", "--dry-run")
    assert "of weights, and what goes with them" in folder.out


def test_a_dry_run_tells_of_missing_importance(cli, source):
    told = cli("quantize", source, "--type", "IQ2_XS", "--dry-run", "--json").json()
    needing = [t for t in told["tensors"] if t["encoding"] == "IQ2_XS"]
    assert (
        f"{len(needing)} weights need an importance matrix; give --imatrix FILE"
        in (told["warnings"])
    )


def test_options_of_single_weights(cli, source, tmp_path):
    output = tmp_path / "o.gguf"

    def quantized(*options: Any) -> dict[str, str]:
        done = cli("quantize", source, output, "--type", "Q4_K_M", *options, "--quiet")
        assert done.code == 0, done.err
        return types(output)

    mixed = quantized()
    assert mixed["output.weight"] == "Q6_K" and mixed["token_embd.weight"] == "Q4_K"
    assert {mixed[f"blk.{i}.ffn_down.weight"] for i in range(4)} == {"Q4_K", "Q6_K"}
    pure = quantized("--pure")
    assert {t for n, t in pure.items() if "norm" not in n} == {"Q4_K"}
    chosen = quantized("--output-type", "Q8_0", "--token-embedding-type", "Q5_K")
    assert chosen["output.weight"] == "Q8_0" and chosen["token_embd.weight"] == "Q5_K"
    assert quantized("--leave-output")["output.weight"] == "F32"
    named = quantized("--tensor", "blk.1.*=Q3_K", "--tensor", "output=Q4_0")
    assert named["blk.1.attn_q.weight"] == "Q3_K" and named["output.weight"] == "Q4_0"
    head = read_container(output).metadata
    assert head["general.file_type"].value == 15
    assert list(head)[-2:] == ["general.quantization_version", "general.file_type"]
    assert quantized("--output-type", "Q5_1", "--tensor", "*=Q8_0")["output.weight"] == "Q5_1"


def test_importance_reaches_the_file(cli, source, tmp_path):
    matrix = importance_file(source, tmp_path / "imatrix.gguf")
    output = tmp_path / "o.gguf"
    found = cli("quantize", source, output, "--type", "IQ2_XXS", "--imatrix", matrix, "--json")
    assert found.json()["warnings"] == []
    assert types(output)["blk.2.attn_q.weight"] == "IQ2_XXS"
    keys = {k: e.value for k, e in read_container(output).metadata.items() if "imatrix" in k}
    assert keys == {
        "quantize.imatrix.file": str(matrix)[:127],
        "quantize.imatrix.dataset": "text.txt",
        "quantize.imatrix.entries_count": 28,
        "quantize.imatrix.chunks_count": 3,
    }
    plain = tmp_path / "plain.gguf"
    assert cli("quantize", source, plain, "--type", "Q4_K_M", "--quiet").code == 0
    assert cli("quantize", source, output, "--type", "Q4_K_M", "--imatrix", matrix).code == 0
    assert plain.read_bytes()[-4096:] != output.read_bytes()[-4096:]


def test_errors_of_importance(cli, fails, source, tmp_path):
    output = tmp_path / "o.gguf"
    assert fails("quantize", source, output, "--type", "IQ2_XS") == (
        "error: tensor 'blk.0.attn_q.weight': IQ2_XS needs an importance matrix, as for 23 other "
        "weights; give --imatrix FILE (`halfbyte imatrix` makes one) or another type\n"
    )
    absent = tmp_path / "absent"
    assert "absent" in fails("quantize", source, output, "--type", "Q4_K", "--imatrix", absent)
    short = importance_file(source, tmp_path / "short", extra=-1)
    assert "holds 255 values for it, 256 are required; use the matrix of this model" in fails(
        "quantize", source, output, "--type", "Q4_K_M", "--imatrix", short
    )
    for value in (-1.0, np.inf, np.nan):
        bad = importance_file(source, tmp_path / "bad", bad=value)
        line = fails("quantize", source, output, "--type", "Q4_K_M", "--imatrix", bad)
        assert str(bad) in line
    (tmp_path / "text").write_bytes(b"not a matrix at all, only text")
    assert str(tmp_path / "text") in fails(
        "quantize", source, output, "--type", "Q4_K_M", "--imatrix", tmp_path / "text"
    )
    lacking = importance_file(source, tmp_path / "lacking", without="attn_q")
    assert fails("quantize", source, output, "--type", "IQ2_XXS", "--imatrix", lacking) == (
        f"error: tensor 'blk.0.attn_q.weight': {lacking} has no entry for it, IQ2_XXS needs one, "
        "as for 3 other weights; compute the matrix on more text or name another type with "
        "--tensor\n"
    )
    found = cli("quantize", source, output, "--type", "Q4_K_M", "--imatrix", lacking, "--json")
    assert found.json()["warnings"] == [
        f"{lacking}: no entry for 4 weights (blk.0.attn_q.weight, blk.1.attn_q.weight, "
        "blk.2.attn_q.weight ...), encoded without importance"
    ]
    other = importance_file(source, tmp_path / "other", without="blk")
    assert fails("quantize", source, output, "--type", "Q4_K", "--imatrix", other)


def test_an_unknown_type_names_near_ones(fails, source, tmp_path):
    for wrong, near in (
        ("Q4_KM", "Q4_K_M"),
        ("IQ3", "IQ3_"),
        ("in4", "int4"),
    ):
        line = fails("quantize", source, tmp_path / "o.gguf", "--type", wrong)
        assert line.startswith(f"error: --type: type '{wrong}' is not supported") and near in line
    line = fails(
        "quantize", source, tmp_path / "o.gguf", "--type", "Q4_0", "--output-type", "Q4_K_M"
    )
    assert "encoding 'Q4_K_M' is not supported" in line
    assert not list(tmp_path.iterdir())


def test_parts(cli, fails, source, tmp_path):
    whole = tmp_path / "whole.gguf"
    assert cli("quantize", source, whole, "--type", "Q4_K_M", "--quiet").code == 0
    split = ("--type", "Q4_K_M", "--split-max-tensors", 10)
    told = cli("quantize", source, tmp_path / "o.gguf", *split, "--dry-run", "--json").json()
    made = cli("quantize", source, tmp_path / "o.gguf", *split, "--json").json()
    assert told["files"] == made["files"] and told["bytes"] == made["bytes"]
    assert made["output"] == str(tmp_path / "o-00001-of-00004.gguf")
    assert made["bytes"] == sum(Path(file).stat().st_size for file in made["files"])
    merged = tmp_path / "merged.gguf"
    assert cli("convert", made["output"], merged, "--quiet").code == 0
    assert merged.read_bytes() == whole.read_bytes()
    kept = cli("convert", made["output"], tmp_path / "kept.gguf", "--keep-split", "--json").json()
    for ours, theirs in zip(kept["files"], made["files"], strict=True):
        mine, other = read_container(Path(ours)), read_container(Path(theirs))
        assert dict(mine.metadata) == dict(other.metadata)
        assert [i.name for i in mine.tensors] == [i.name for i in other.tensors]
    assert "holds data of the source" in fails(
        "quantize", made["output"], tmp_path / "o.gguf", *split, "--requantize"
    )
    assert "holds data of the source" in fails(
        "convert", made["output"], tmp_path / "o-00002-of-00004.gguf"
    )
    plain = cli("convert", source, tmp_path / "one.gguf", "--keep-split", "--json").json()
    assert plain["files"] == [str(tmp_path / "one.gguf")]
    assert (tmp_path / "one.gguf").read_bytes() == source.read_bytes()


def test_options_that_do_not_fit(cli, fails, source, tmp_path):
    output = tmp_path / "o.hb"
    assert "--keep-split is not supported" in fails("convert", source, output, "--keep-split")
    assert "--split-max-size is not supported" in fails(
        "convert", source, output, "--split-max-size", "1M"
    )
    assert "give one of them" in fails(
        "convert", source, tmp_path / "o.gguf", "--keep-split", "--split-max-tensors", 3
    )
    for wrong in ("much", "0", "-1", "1Q"):
        found = cli("convert", source, output, "--split-max-size", wrong)
        assert found.code == 2 and "is no size" in found.err
    folder = cli("convert", source, tmp_path / "folder", "--split-max-size", "1.5MB", "--json")
    assert len(list((tmp_path / "folder").glob("*.safetensors"))) > 2, folder


def test_an_architecture_that_is_unknown_here(cli, tmp_path):
    """llama-quantize refuses such a file; its keys say enough."""
    source = tmp_path / "source.gguf"
    shape = MixModel("never-heard-of", layers=8, key_heads=2)
    source.write_bytes(gguf_bytes(shape.pairs(), shape.tensors()))
    output = tmp_path / "o.gguf"
    assert cli("quantize", source, output, "--type", "IQ3_M", "--quiet").code == 0
    found = types(output)
    assert found["output.weight"] == "Q6_K" and found["blk.1.attn_v.weight"] == "Q4_K"
    assert found["blk.0.ffn_down.weight"] == "Q4_K" and found["blk.5.ffn_down.weight"] == "IQ3_S"
    assert found["output_norm.weight"] == "F32"


def test_exhaustive_search_keeps_types_and_lessens_errors(cli, models, tmp_path):
    errors = {}
    for search in ("default", "exhaustive"):
        target = tmp_path / f"{search}.gguf"
        cli("quantize", models / "llama.gguf", target, "--type", "Q4_0", "--search", search)
        found = cli("diff", models / "llama.gguf", target, "--json").json()["tensors"]
        errors[search] = {t["name"]: (t["second"], t["relative_error"]) for t in found}
    assert errors["default"].keys() == errors["exhaustive"].keys()
    for name, (encoding, error) in errors["default"].items():
        assert errors["exhaustive"][name][0] == encoding
        assert errors["exhaustive"][name][1] < error * 1.01
    assert sum(e for _, e in errors["exhaustive"].values()) < sum(
        e for _, e in errors["default"].values()
    )


def test_two_wishes_for_the_output_head(cli, source, tmp_path):
    output = tmp_path / "a.gguf"
    wishes = ("--leave-output", "--output-type", "Q8_0")
    done = cli("quantize", source, output, "--type", "Q4_0", *wishes)
    assert done.code == 2 and "exclude each other" in done.err
    assert not output.exists()


def test_the_importance_matrix_is_not_overwritten(cli, source, tmp_path):
    matrix = importance_file(source, tmp_path / "imatrix.gguf")
    before = matrix.read_bytes()
    done = cli("quantize", source, matrix, "--type", "Q4_K_M", "--imatrix", matrix)
    assert done.code == 1 and "is the importance matrix itself" in done.err
    assert matrix.read_bytes() == before


@pytest.mark.parametrize("ending", ["folder", "out.hb"])
def test_settings_that_are_not_understood(ending, cli, source, tmp_path):
    odd = tmp_path / "odd.gguf"
    assert cli("edit", source, odd, "--set", "llama.rope.scaling.type:str=odd").code == 0
    done = cli("convert", odd, tmp_path / ending)
    assert (done.code, "Traceback" in done.err) == (int(ending == "folder"), False)
    if done.code:
        assert "without settings that are understood" in done.err and ".hb" in done.err
        assert not (tmp_path / ending).exists()


@pytest.mark.parametrize("name", ["Q4_K_M", "IQ2_XXS"])
def test_importance_of_zero_throughout_does_not_make_zeros(name, cli, source, tmp_path):
    matrix = importance_file(source, tmp_path / "imatrix.gguf")
    found = read_importance(matrix)
    dead = "blk.0.ffn_down.weight"
    zeros = replace(found.entries[dead], sums=np.zeros_like(found.entries[dead].sums))
    write_importance(replace(found, entries={**found.entries, dead: zeros}), matrix)
    done = cli("quantize", source, tmp_path / "a.gguf", "--type", name, "--imatrix", matrix)
    assert done.code == 0
    assert f"the importance of 1 weights ({dead}) is 0 for all columns" in done.err
    values = open(tmp_path / "a.gguf").weights[dead].numpy()
    wanted = open(source).weights[dead].numpy()
    assert np.square(values - wanted).sum() < 0.3 * np.square(wanted).sum()


def test_an_importance_matrix_is_no_model(fails, tmp_path):
    entry = ImportanceEntry(np.ones((1, 64), np.float32), np.ones(1, np.float32))
    matrix = ImportanceMatrix({"blk.0.ffn_up.weight": entry}, ("text",), 1, 512)
    path = tmp_path / "imatrix.gguf"
    write_importance(matrix, path)
    for command in (["convert"], ["quantize", "--type", "Q4_0"]):
        line = fails(command[0], path, tmp_path / "out.gguf", *command[1:])
        assert "is an importance matrix, a model was required" in line


def test_mixes_in_any_case(cli, models, tmp_path):
    written = []
    for name in ("Q4_K_M", "q4_k_m"):
        cli("quantize", models / "llama.gguf", tmp_path / name, "--to", "gguf", "--type", name)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
