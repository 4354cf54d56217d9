"""Mixtures of experts beside llama.cpp: logits of our files, in float32 and quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfbyte
from halfbyte.runtime.generation import decode_step, prefill
from halfbyte.runtime.session import Session
from support.llama_cpp_model import LlamaCppModel
from support.model_folders import tiny_model, write_model

pytestmark = pytest.mark.peer
IDS = [5, 17, 250, 3, 3, 99, 0, 42, 7, 301, 12, 180, 44, 2, 91, 256]
WIDE = {"hidden_size": 256, "intermediate_size": 256, "tie_word_embeddings": False}
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {**WIDE, "num_experts": 8},
    "qwen2_moe": {
        **WIDE,
        "moe_intermediate_size": 256,
        "shared_expert_intermediate_size": 256,
    },
    "qwen3_moe": {**WIDE, "moe_intermediate_size": 256},
}
every_model = pytest.mark.parametrize("model_type", MODELS)


def written(folder: Path, model_type: str, type_name: str = "", **overrides: Any) -> Path:
    model = tiny_model(model_type, **{**MODELS[model_type], **overrides})
    return write_model(model, folder / "model.gguf", type_name)


def our_logits(path: Path, device: str = "cpu", compute: str = "exact") -> np.ndarray[Any, Any]:
    session = Session(halfbyte.open(path), device, compute=compute, threads=2)
    return np.asarray(session.run({"input_ids": np.array([IDS])})["logits"][0])


def assert_near(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], share: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * np.abs(expected).max())


@every_model
@pytest.mark.parametrize("overrides", [{}, {"head_dim": 32, "num_experts_per_tok": 1}], ids=str)
def test_float32_logits(model_type: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    if model_type == "qwen2_moe":
        overrides = {k: v for k, v in overrides.items() if k != "head_dim"}
    path = written(tmp_path, model_type, "F32", **overrides)
    with LlamaCppModel(path) as peer:
        theirs = peer.logits(IDS)
    assert_near(our_logits(path), theirs, 1e-4)


@every_model
@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "IQ4_NL", "MXFP4"])
def test_quantized_experts(model_type: str, type_name: str, tmp_path: Path) -> None:
    path = written(tmp_path, model_type, type_name)
    model = halfbyte.open(path)
    kinds = {str(t.encoding) for t in model.weights.values() if len(t.shape) == 3}
    assert type_name in kinds
    ours = our_logits(path)
    assert_near(ours, our_logits(path, "reference"), 1e-5)
    # llama.cpp rounds activations where it meets blocks, so it meets the same values as float32.
    plain = tmp_path / "plain.gguf"
    halfbyte.quantize(path, plain, type="F32", requantize=True, threads=1)
    with LlamaCppModel(plain) as peer:
        assert_near(ours, peer.logits(IDS), 1e-4)


@every_model
@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_K", "Q6_K", "IQ4_XS"])
def test_quantized_files_run_there(model_type: str, type_name: str, tmp_path: Path) -> None:
    # With all experts chosen, rounded activations cannot choose others.
    every = {"num_experts_per_tok": 8}
    path = written(tmp_path, model_type, type_name, **every)
    ours = our_logits(path)
    with LlamaCppModel(path) as peer:
        theirs = peer.logits(IDS)
    # What rounding activations to 8 bits does here, in blocks of 32; llama.cpp's blocks of 256 have
    # larger steps, the more so where products of gate and up have a few large values.
    eight = written(tmp_path, model_type, "Q8_0", **every)
    noise = off(our_logits(eight, compute="int8"), our_logits(eight))
    assert off(theirs, ours) < 3 * noise


def off(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    return float(np.median(np.abs(found - expected).max(axis=1)))


@every_model
@pytest.mark.parametrize("compute", ["exact", "int8"])
def test_generation_gives_the_same_logits(model_type: str, compute: str, tmp_path: Path) -> None:
    path = written(tmp_path, model_type, "Q4_K")
    whole = our_logits(path, compute=compute)
    session = Session(halfbyte.open(path), compute=compute, threads=1)
    found = [prefill(session, IDS[:7]).copy()]
    found += [decode_step(session, token).copy() for token in IDS[7:]]
    np.testing.assert_array_equal(np.stack(found), whole[6:])
