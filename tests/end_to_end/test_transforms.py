"""Chains with transforms, from a folder in bfloat16 to files that are read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import halfbyte
from halfbyte.errors import HalfbyteError
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role
from halfbyte.quant.transforms.rotation import SEED_KEY
from support.model_folders import SAMPLE, outputs_of, tiny_model, write_model

IDS = [5, 260, 17, 301, 44, 9, 120, 77]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(SAMPLE * 30, encoding="utf-8")
    return path


def folder(tmp_path: Path, name: str = "llama", **settings: Any) -> Path:
    """Return a tiny checkpoint in bfloat16."""
    return write_model(tiny_model(name, 3, **settings), tmp_path / name, "bfloat16")


def quantized(source: Path, output: Path, text: Path, method: str, **more: Any) -> Any:
    given = {"calib": text, "calib_samples": 4, "calib_length": 32} if method != "rotate" else {}
    return halfbyte.quantize(source, output, method=method, **{**given, **more})


def distance(first: Model, second: Model) -> float:
    """Return how far the logits are apart, in units of the first's largest."""
    expected, found = (next(iter(outputs_of(model, IDS).values())) for model in (first, second))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def roles(model: Model) -> dict[Any, Any]:
    return {tensor.key: tensor for tensor in model.weights.values() if tensor.key is not None}


@pytest.mark.parametrize("output", ["out.gguf", "out.hb", "out"])
@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_folded_models_keep_their_function(
    tmp_path: Path, text: Path, method: str, output: str
) -> None:
    source = folder(tmp_path)
    kind = "Q8_0" if output.endswith("gguf") else "int8-g32"
    more = {} if "." in output else {"to": "hf:compressed-tensors", "type": "int8-g32"}
    quantized(source, tmp_path / output, text, method, **{"type": kind, **more})
    before, after = halfbyte.open(source), halfbyte.open(tmp_path / output)
    plain = tmp_path / f"plain.{'gguf' if output.endswith('gguf') else 'hb'}"
    halfbyte.quantize(source, plain, type=kind)
    assert distance(before, after) < 2 * distance(before, halfbyte.open(plain))
    old, new = roles(before), roles(after)
    norms = [key for key in old if key.role in (Role.ATTENTION_NORM, Role.FEED_FORWARD_NORM)]
    assert len(norms) == 4
    for key in norms:
        assert not np.array_equal(old[key].float32(), new[key].float32())
        if not output.endswith("gguf"):
            assert new[key].encoding == old[key].encoding, "norms keep their bfloat16"


@pytest.mark.parametrize("output", ["out.gguf", "out.hb"])
@pytest.mark.parametrize("tied", [True, False])
def test_rotated_models_are_read_back(tmp_path: Path, text: Path, tied: bool, output: str) -> None:
    source = folder(tmp_path, tie_word_embeddings=tied)
    report = quantized(source, tmp_path / output, text, "rotate", type="float32")
    after = halfbyte.open(tmp_path / output)
    assert distance(halfbyte.open(source), after) < 1e-5
    assert Role.OUTPUT_HEAD in {tensor.role for tensor in after.weights.values()}
    assert after.config["tie_word_embeddings"] is False
    told = " ".join(report.warnings)
    assert ("no longer shares" in told) == tied and "rotated by Hadamard" in told


def test_a_rotated_folder_says_that_it_is_not_tied(tmp_path: Path, text: Path) -> None:
    import json

    source = folder(tmp_path, "qwen3", tie_word_embeddings=True)
    quantized(source, tmp_path / "out", text, "rotate", type="float32", to="hf")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert distance(halfbyte.open(source), halfbyte.open(tmp_path / "out")) < 1e-5


@pytest.mark.parametrize(
    ("name", "method"),
    [("llama", "awq+gptq"), ("llama", "rotate+awq"), ("qwen2_moe", "rotate+smoothquant+gptq")],
)
def test_chains_run_and_repeat(tmp_path: Path, text: Path, name: str, method: str) -> None:
    source = folder(tmp_path, name)
    written = []
    for threads in (1, 3):
        output = tmp_path / f"{threads}.hb"
        quantized(source, output, text, method, type="int6-g32", threads=threads)
        written.append(halfbyte.open(output))
    first, second = written
    halfbyte.quantize(source, tmp_path / "plain.hb", type="int6-g32")
    before, plain = halfbyte.open(source), halfbyte.open(tmp_path / "plain.hb")
    assert distance(before, first) < 2 * distance(before, plain)
    for key, tensor in first.weights.items():
        other = second.weights[key].read()
        for part, values in tensor.read().items():
            assert _same(values, other[part]), (key, part)


def _same(first: NDArray[Any], second: NDArray[Any]) -> bool:
    return first.tobytes() == second.tobytes()


def test_the_seed_travels(tmp_path: Path, text: Path) -> None:
    quantized(folder(tmp_path), tmp_path / "out.hb", text, "rotate", type="int8")
    assert halfbyte.open(tmp_path / "out.hb").metadata.get(SEED_KEY) == 0


def test_hqq_needs_no_text(tmp_path: Path) -> None:
    source = folder(tmp_path)
    halfbyte.quantize(source, tmp_path / "out.hb", type="int4-g32-fzp", method="hqq")
    after = halfbyte.open(tmp_path / "out.hb")
    assert distance(halfbyte.open(source), after) < 0.5
    with pytest.raises(HalfbyteError, match="no zero points"):
        halfbyte.quantize(source, tmp_path / "no.hb", type="int4-g32", method="hqq")
    assert not (tmp_path / "no.hb").exists()


def test_a_model_that_cannot_be_rotated_leaves_nothing(tmp_path: Path) -> None:
    source = folder(tmp_path, "gpt2")
    with pytest.raises(HalfbyteError, match="rotation of this model is not"):
        halfbyte.quantize(source, tmp_path / "no.hb", type="int8", method="rotate")
    assert not (tmp_path / "no.hb").exists()
