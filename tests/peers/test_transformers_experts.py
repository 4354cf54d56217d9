"""Mixtures of experts against transformers: logits in float32, folders in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfbyte
from halfbyte.converters import get_format
from halfbyte.converters.architectures import get_architecture
from halfbyte.converters.format import WriteOptions
from halfbyte.ir.model import Model
from halfbyte.runtime.session import Session
from support.random_models import random_model

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")
safetensors_torch: Any = pytest.importorskip("safetensors.torch")

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
# float32 sums in another order; 1e-4 of the largest logit is the project's bound
RELATIVE_TOLERANCE = 1e-4
LENGTH = 24
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {}),
    "mixtral, window": ("mixtral", {"sliding_window": 6}),
    "mixtral, one expert": ("mixtral", {"num_experts_per_tok": 1}),
    "mixtral, all experts": ("mixtral", {"num_experts_per_tok": 4}),
    "mixtral, tied": ("mixtral", {"tie_word_embeddings": True}),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen2_moe, normalised": ("qwen2_moe", {"norm_topk_prob": True}),
    "qwen2_moe, no biases": ("qwen2_moe", {"qkv_bias": False}),
    "qwen2_moe, windows": ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 6}),
    "qwen2_moe, dense layer": ("qwen2_moe", {"mlp_only_layers": [0]}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe, shares as they are": ("qwen3_moe", {"norm_topk_prob": False}),
    "qwen3_moe, dense layers": ("qwen3_moe", {"mlp_only_layers": [1]}),
    "qwen3_moe, every second layer": ("qwen3_moe", {"decoder_sparse_step": 2}),
    "qwen3_moe, biases": ("qwen3_moe", {"attention_bias": True}),
    "qwen3_moe, window": ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 6}),
}
every_case = pytest.mark.parametrize("case", CASES)


def ids_for(model: Model) -> np.ndarray:
    return np.random.default_rng(7).integers(0, model.config["vocab_size"], (2, LENGTH))


def our_logits(model: Model, pieces: tuple[int, ...] = (), **options: Any) -> np.ndarray:
    """Run the ids in pieces that end at the given positions, then the rest."""
    session, ids = Session(model, "cpu", compute="exact", **options), ids_for(model)
    found, start = [], 0
    for stop in (*pieces, ids.shape[1]):
        positions = np.broadcast_to(np.arange(start, stop), (len(ids), stop - start))
        feed = {"input_ids": ids[:, start:stop], "position_ids": np.ascontiguousarray(positions)}
        feed["output_positions"] = np.arange(stop - start)
        found.append(session.run(feed)["logits"].copy())
        start = stop
    return np.concatenate(found, axis=1)


def loaded(folder: Path) -> Any:
    built = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return built.eval()


def their_logits(folder: Path, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(loaded(folder)(torch.from_numpy(ids)).logits)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= RELATIVE_TOLERANCE * np.abs(expected).max()


def write(model: Model, folder: Path) -> None:
    get_format("hf").write(model, folder, WriteOptions())


@every_case
def test_logits(case: str, tmp_path: Path) -> None:
    model_type, overrides = CASES[case]
    model = random_model(model_type, **overrides)
    write(model, tmp_path / "ours")
    expected = their_logits(tmp_path / "ours", ids_for(model))
    assert_close(our_logits(model), expected)
    assert_close(our_logits(model, (1, 2, 10, 11)), expected)


@every_case
def test_folders_of_transformers(case: str, tmp_path: Path) -> None:
    model_type, overrides = CASES[case]
    model = random_model(model_type, **overrides)
    write(model, tmp_path / "ours")
    built = loaded(tmp_path / "ours")
    built.save_pretrained(tmp_path / "theirs")
    same(halfbyte.open(tmp_path / "theirs"), model)
    # As the modules hold them: gate and up of all experts in one tensor.
    (tmp_path / "fused").mkdir()
    state = {name: value.contiguous() for name, value in built.state_dict().items()}
    if model.config["tie_word_embeddings"]:
        del state["lm_head.weight"]
    assert any(name.endswith("experts.gate_up_proj") for name in state)
    safetensors_torch.save_file(state, tmp_path / "fused" / "model.safetensors")
    config = (tmp_path / "theirs" / "config.json").read_bytes()
    (tmp_path / "fused" / "config.json").write_bytes(config)
    same(halfbyte.open(tmp_path / "fused"), model)


def same(found: Model, model: Model) -> None:
    assert not found.warnings
    assert list(found.by_key()) == list(model.by_key())
    architecture = get_architecture(model.architecture)
    written = architecture.hugging_face_config(model.config)
    assert {k: found.config.get(k) for k in model.config} == model.config, written
    for key, tensor in model.by_key().items():
        other = found.by_key()[key]
        assert other.shape == tensor.shape
        np.testing.assert_array_equal(other.numpy(), tensor.numpy())
