"""Whole files equal those of llama.cpp's quantizer, byte for byte: types, blocks, order, keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.gguf.imatrix import ImportanceEntry, ImportanceMatrix, write_importance
from halfbyte.pipeline import convert, quantize
from halfbyte.quant.mixes import MIXES
from support.gguf_models import read, write
from support.llama_quantize import llama_quantize
from support.random_models import random_model

pytestmark = pytest.mark.peer
WIDTHS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 256, "intermediate_size": 256, "num_key_value_heads": 1},
    "qwen2": {"hidden_size": 256, "intermediate_size": 288},
    "qwen3": {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64},
    "mixtral": {"hidden_size": 256, "intermediate_size": 256, "num_experts": 8},
    "qwen2_moe": {"hidden_size": 256, "moe_intermediate_size": 256},
    "qwen3_moe": {"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256},
    "gpt2": {"n_embd": 256},
    "bert": {"hidden_size": 256, "intermediate_size": 256},
}
NEEDS_IMPORTANCE = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "Q2_K_S")
NEEDS_IMPORTANCE = (*NEEDS_IMPORTANCE, "IQ3_XS")
FEW = ("Q4_K_M", "IQ3_M", "Q2_K", "BF16")


def importance_for(source: Path, target: Path) -> dict[str, np.ndarray]:
    """Write an importance file for the weights of the blocks; return what it means."""
    generator = np.random.default_rng(5)
    entries = {}
    for name, tensor in read(source).weights.items():
        if name.startswith("blk.") and name.endswith("weight") and len(tensor.shape) > 1:
            matrices = int(np.prod(tensor.shape[:-2], dtype=int))
            sums = generator.standard_normal((matrices, tensor.columns)).astype(np.float32) ** 2
            sums[:, ::37] = 0
            counts = generator.integers(1, 99, matrices)
            counts[2::5] = 0
            entries[name] = ImportanceEntry(sums, counts)
    matrix = ImportanceMatrix(entries, ("words.txt", "more.txt"), 7)
    write_importance(matrix, target)
    found = {name: matrix.importance(name) for name in entries}
    return {name: np.ascontiguousarray(v) for name, v in found.items() if v is not None}


def keys_for(path: Path, importance: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        "quantize.imatrix.file": str(path),
        "quantize.imatrix.dataset": "words.txt",
        "quantize.imatrix.entries_count": len(importance),
        "quantize.imatrix.chunks_count": 7,
    }


def compare(source: Path, name: str, with_importance: bool, **flags: bool) -> None:
    """Quantize with both and compare the files."""
    ours, theirs, matrix = (source.with_name(n) for n in ("ours.gguf", "theirs.gguf", "imatrix"))
    options: dict[str, Any] = {}
    if with_importance:
        options["importance"] = importance_for(source, matrix)
        options["pairs"] = keys_for(matrix, options["importance"])
    llama_quantize(source, theirs, MIXES[name].file_type, **options, **flags)
    given = matrix if with_importance else ""
    quantize(source, ours, type=name, imatrix=given, threads=1, **flags)
    assert_same(ours, theirs)


def assert_same(ours: Path, theirs: Path) -> None:
    """Compare two files; say which tensor differs before saying that bytes do."""
    mine, expected = read(ours).weights, read(theirs).weights
    assert list(mine) == list(expected)
    for key, tensor in expected.items():
        assert mine[key].encoding == tensor.encoding, key
        for part, stored in tensor.read().items():
            np.testing.assert_array_equal(
                mine[key].read()[part].view(np.uint8), stored.view(np.uint8), err_msg=key
            )
    assert ours.read_bytes() == theirs.read_bytes()


def source_file(folder: Path, model_type: str, tied: bool) -> Path:
    path = folder / "source.gguf"
    write(random_model(model_type, tie_word_embeddings=tied, **WIDTHS[model_type]), path, "F32")
    return path


@pytest.mark.parametrize("with_importance", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("name", list(MIXES))
def test_files_equal_llama_quantize(name: str, with_importance: bool, tmp_path: Path) -> None:
    if name in NEEDS_IMPORTANCE and not with_importance:
        pytest.skip(f"{name} is not made without an importance matrix")
    compare(source_file(tmp_path, "llama", tied=False), name, with_importance)


@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "gpt2", "bert"])
def test_files_of_other_architectures(model_type: str, tied: bool, tmp_path: Path) -> None:
    if model_type == "bert" and not tied:
        pytest.skip("bert has no head")
    source = source_file(tmp_path, model_type, tied)
    for number, name in enumerate(FEW):
        compare(source, name, with_importance=bool(number % 2) != tied)


def test_pure_files_equal_llama_quantize(tmp_path: Path) -> None:
    source = source_file(tmp_path, "llama", tied=False)
    for name in ("Q5_K_M", "IQ4_NL", "Q3_K_S"):
        compare(source, name, False, pure=True)


@pytest.mark.parametrize("with_importance", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("name", ["Q4_K_M", "MXFP4_MOE", "IQ2_M", "Q3_K_S", "Q8_0"])
@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts(model_type: str, name: str, with_importance: bool, tmp_path: Path) -> None:
    if name in NEEDS_IMPORTANCE and not with_importance:
        pytest.skip(f"{name} is not made without an importance matrix")
    compare(source_file(tmp_path, model_type, tied=False), name, with_importance)


def test_kept_parts_equal_llama_quantize(tmp_path: Path) -> None:
    whole = source_file(tmp_path, "llama", tied=False)
    parts = convert(whole, tmp_path / "parts.gguf", split_max_tensors=5)
    assert len(parts.files) == 5
    ours = quantize(parts.output, tmp_path / "ours.gguf", type="Q4_K_M", keep_split=True, threads=1)
    number = MIXES["Q4_K_M"].file_type
    llama_quantize(Path(parts.output), tmp_path / "theirs", number, keep_split=True)
    for file in map(Path, ours.files):
        theirs = file.with_name(file.name.replace("ours", "theirs"))
        assert file.read_bytes() == theirs.read_bytes(), file.name
    assert len(ours.files) == 5
    assert read(Path(ours.output)).weights.keys() == read(whole).weights.keys()
