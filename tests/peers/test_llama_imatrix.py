"""Importance matrices against llama-imatrix.

HALFBYTE_LLAMA_CPP names the folder whose `bin` holds it; without one the tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import halfbyte
from halfbyte.converters.gguf.imatrix import (
    merge_importance,
    read_importance,
    write_importance,
)
from halfbyte.importance import ImportanceRequest, collect_importance
from support.model_folders import SAMPLE, tiny_model, write_model

pytestmark = pytest.mark.peer
# -b is the context: one sequence per run. Caches as exact as ours.
EXACT = ("-t", "1", "-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-ppl", "-c", "32", "-b", "32")


def tool() -> str:
    path = Path(os.environ.get("HALFBYTE_LLAMA_CPP", "")) / "bin" / "llama-imatrix"
    if "HALFBYTE_LLAMA_CPP" not in os.environ or not path.exists():
        pytest.skip("HALFBYTE_LLAMA_CPP names no folder with bin/llama-imatrix")
    return str(path)


def run(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [tool(), "-m", "model.gguf", *arguments], cwd=folder, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("imatrix")
    model = tiny_model("llama", hidden_size=64, intermediate_size=128, tie_word_embeddings=False)
    write_model(model, root / "model.gguf")
    (root / "text.txt").write_text(SAMPLE.replace("\x00", "") * 8)
    shared = ("-f", "text.txt", *EXACT)
    run(root, *shared, "--chunks", "4", "-o", "four.gguf")
    run(root, *shared, "--chunks", "4", "-o", "four.dat", "--output-format", "dat")
    run(root, *shared, "--chunk", "1", "--chunks", "3", "--process-output", "-o", "three.gguf")
    return root


@pytest.mark.parametrize(("name", "chunks", "skip"), [("four", 4, 0), ("three", 3, 1)])
def test_sums_agree(folder: Path, name: str, chunks: int, skip: int) -> None:
    request = ImportanceRequest(
        context=32, chunks=chunks, skip=skip, process_output=name == "three", threads=1
    )
    model = halfbyte.open(folder / "model.gguf")
    found = collect_importance(model, folder / "text.txt", request).matrix
    theirs = read_importance(folder / f"{name}.gguf")
    assert found.names == theirs.names
    assert (found.chunk_count, found.chunk_size) == (theirs.chunk_count, theirs.chunk_size)
    for weight, entry in theirs.entries.items():
        assert found.entries[weight].counts.tolist() == entry.counts.tolist(), weight
        # Both sum float32 products of every layer, in other orders.
        np.testing.assert_allclose(
            found.entries[weight].sums, entry.sums, rtol=1e-4, err_msg=weight
        )


@pytest.mark.parametrize("name", ["four.gguf", "four.dat", "three.gguf"])
def test_files_are_written_again_byte_for_byte(folder: Path, name: str, tmp_path: Path) -> None:
    form = name.rpartition(".")[2]
    write_importance(read_importance(folder / name), tmp_path / "x", form)
    if form == "gguf":
        assert (tmp_path / "x").read_bytes() == (folder / name).read_bytes()
    # The older form of a collection comes from the sums, as the tool writes it.
    write_importance(read_importance(folder / "four.gguf"), tmp_path / "y", "dat")
    assert (tmp_path / "y").read_bytes() == (folder / "four.dat").read_bytes()


@pytest.mark.parametrize("form", ["gguf", "dat"])
@pytest.mark.parametrize(
    "files",
    [("four.gguf", "three.gguf"), ("three.gguf", "four.gguf"), ("four.dat", "three.gguf")],
)
def test_merged_files_are_equal(
    folder: Path, files: tuple[str, ...], form: str, tmp_path: Path
) -> None:
    given = [part for name in files for part in ("--in-file", name)]
    output = f"merged-{'-'.join(files)}.{form}"
    run(folder, *given, "-c", "32", "--output-format", form, "-o", output)
    merged = merge_importance([read_importance(folder / name) for name in files], 32)
    write_importance(merged, tmp_path / "x", form)
    assert (tmp_path / "x").read_bytes() == (folder / output).read_bytes()


EXPERTS = {
    "mixtral": {"num_experts": 8, "intermediate_size": 128},
    "qwen2_moe": {"num_experts": 12, "intermediate_size": 128},
    "qwen3_moe": {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 96},
}


@pytest.mark.parametrize("model_type", EXPERTS)
def test_experts_have_the_same_sums_and_counts(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type, tie_word_embeddings=False, **EXPERTS[model_type])
    write_model(model, tmp_path / "model.gguf", "F32")
    (tmp_path / "text.txt").write_text(SAMPLE.replace("\x00", "") * 8)
    run(tmp_path, "-f", "text.txt", *EXACT, "--chunks", "4", "-o", "theirs.gguf")
    request = ImportanceRequest(context=32, chunks=4, threads=1)
    collected = collect_importance(
        halfbyte.open(tmp_path / "model.gguf"), tmp_path / "text.txt", request
    )
    found, theirs = collected.matrix, read_importance(tmp_path / "theirs.gguf")
    assert found.names == theirs.names
    stacks = [name for name in found.names if name.endswith("_exps.weight")]
    assert len(stacks) == 3 * model.config["num_hidden_layers"]
    used = model.config["num_experts_per_tok"]
    for name, entry in theirs.entries.items():
        ours = found.entries[name]
        assert ours.counts.tolist() == entry.counts.tolist(), name
        np.testing.assert_allclose(ours.sums, entry.sums, rtol=1e-3, err_msg=name)
        if name in stacks:
            assert len(ours.counts) == model.config["num_experts"]
            assert ours.counts.sum() == 4 * 32 * used
    scarce = [
        f"{name}: {(c == 0).sum()} of {len(c)} experts saw no token, "
        f"{((c > 0) & (c < 32)).sum()} too few; give a longer text"
        for name, c in ((name, found.entries[name].counts) for name in stacks)
        if (c < 32).any()
    ]
    assert sorted(collected.warnings) == sorted(scarce)
    assert scarce or model_type == "mixtral"
