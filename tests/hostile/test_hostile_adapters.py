"""Adapters that are damaged or made to do harm: clear errors, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.gguf.metadata_value import typed
from halfbyte.converters.gguf.writer import write_gguf
from halfbyte.errors import HalfbyteError
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.pipeline import convert
from support.adapter_folders import low_rank, write_adapter_folder
from support.script_cases import CASES
from support.script_models import write_folder_case

Arrays = dict[str, Any]
MODULE = "model.layers.0.self_attn.q_proj"
A = f"base_model.model.{MODULE}.lora_A.weight"
B = f"base_model.model.{MODULE}.lora_B.weight"


def changed(change: Callable[[Arrays], Any]) -> Arrays:
    arrays = low_rank({MODULE: (64, 64)})
    change(arrays)
    return arrays


def with_nan(arrays: Arrays) -> None:
    arrays[A][1, 2] = np.nan


def with_infinity(arrays: Arrays) -> None:
    arrays[B][0, 0] = np.inf


def renamed(new: str) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        for name in (A, B):
            arrays[name.replace(MODULE, new)] = arrays.pop(name)

    return change


WEIGHTS: list[tuple[str, Callable[[Arrays], Any], str]] = [
    ("no B", lambda a: a.pop(B), "lora_B of 'model.layers.0.self_attn.q_proj' is missing"),
    ("no A", lambda a: a.pop(A), "lora_A of 'model.layers.0.self_attn.q_proj' is missing"),
    ("other rank", lambda a: a.update({B: np.zeros((64, 3), np.float32)}), "ranks of"),
    (
        "rank of the settings",
        lambda a: a.update(low_rank({MODULE: (64, 64)}, 8)),
        "they must agree",
    ),
    ("rank 0", lambda a: a.update({A: np.zeros((0, 64), np.float32)}), "rank of .* is 0"),
    ("a vector", lambda a: a.update({A: np.zeros(64, np.float32)}), "are no matrices"),
    ("three dimensions", lambda a: a.update({B: np.zeros((1, 64, 4), np.float32)}), "no matrices"),
    ("nan", with_nan, "NaN or infinity"),
    ("infinity", with_infinity, "NaN or infinity"),
    ("integers", lambda a: a.update({A: np.zeros((4, 64), np.int32)}), "floats are required"),
    ("too wide", lambda a: a.update({A: np.zeros((4, 65), np.float32)}), r"\[64, 65\]"),
    ("too high", lambda a: a.update({B: np.zeros((65, 4), np.float32)}), r"\[65, 64\]"),
    ("unknown layer", renamed("model.layers.7.self_attn.q_proj"), "has no such weight"),
    ("unknown module", renamed("model.layers.0.self_attn.qkv"), "has no such weight"),
    ("a path", renamed("../../etc/passwd"), "has no such weight"),
    ("nothing", lambda a: a.clear() or a.update({"x.base_layer.weight": np.zeros(3)}), "no pair"),
    ("a stray", lambda a: a.update({"stray": np.zeros(3, np.float32)}), "has no such weight"),
    (
        "two adapters",
        lambda a: a.update({A.replace("lora_A", "lora_A.other"): a[A]}),
        "stands there twice",
    ),
    (
        "bias of the pair",
        lambda a: a.update({B.replace("weight", "bias"): np.zeros(64, np.float32)}),
        "adds to biases",
    ),
    (
        "more tokens",
        lambda a: a.update({"base_model.model.lm_head.weight": np.zeros((300, 64), np.float32)}),
        "resize the base model first",
    ),
    (
        "lengths without a pair",
        lambda a: a.update(
            {"base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector": np.ones(96)}
        ),
        "no lora_A and lora_B",
    ),
    (
        "lengths of another number",
        lambda a: a.update(
            {f"base_model.model.{MODULE}.lora_magnitude_vector": np.ones(3, np.float32)}
        ),
        "3 row lengths, 64 are required",
    ),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder_case(CASES["llama-linear"], tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize(("name", "change", "message"), WEIGHTS, ids=[w[0] for w in WEIGHTS])
def test_weights_that_do_not_fit(
    base: Path, tmp_path: Path, name: str, change: Callable[[Arrays], Any], message: str
) -> None:
    adapter = write_adapter_folder(tmp_path / "adapter", changed(change))
    with pytest.raises(HalfbyteError, match=message):
        convert(base, tmp_path / "out", lora=[(adapter, 1.0)])
    assert not (tmp_path / "out").exists()


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "LOHA"}, "an adapter of type 'LOHA'"),
    ({"r": "4"}, "they must agree"),
    ({"r": None}, "they must agree"),
    ({"lora_alpha": None}, "lora_alpha is None"),
    ({"lora_alpha": "8"}, "lora_alpha is '8'"),
    ({"lora_alpha": True}, "lora_alpha is True"),
    ({"lora_alpha": float("nan")}, "lora_alpha is nan|NaN"),
    ({"lora_alpha": 1e300}, "lora_alpha is 1e"),
    ({"alpha_pattern": [1]}, "an object is required"),
    ({"alpha_pattern": {"q_proj": "x"}}, "lora_alpha is 'x'"),
    ({"rank_pattern": {"(((((a+)+)+)+)+)+$": 4}}, "name the modules by their ends"),
    ({"rank_pattern": {"(": 4}}, "is no pattern"),
    ({"rank_pattern": {"x" * 5000: 4}}, "more than 1000 characters"),
    ({"layer_replication": [[0, 4]]}, "repeats layers"),
    ({"trainable_token_indices": [1]}, "single rows of the embedding"),
    ({"target_parameters": ["x"]}, "no layers of their own"),
    ({"lora_bias": True}, "biases"),
    ({"use_dora": True}, "lora_magnitude_vector of 'model.layers.0.self_attn.q_proj' is missing"),
    ({"alora_invocation_tokens": [1, "x"]}, "no list of token ids"),
    ({"alora_invocation_tokens": [1, 2]}, "merging an activated LoRA"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS, ids=lambda v: str(v)[:40])
def test_settings_that_are_broken_or_unknown(
    base: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    adapter = write_adapter_folder(tmp_path / "adapter", low_rank({MODULE: (64, 64)}), **settings)
    with pytest.raises(HalfbyteError, match=message):
        convert(base, tmp_path / "out", lora=[(adapter, 1.0)])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 100_000, b'{"r": 1e999999}', b"\xff"])
def test_settings_that_are_no_json(base: Path, tmp_path: Path, text: bytes) -> None:
    adapter = write_adapter_folder(tmp_path / "adapter", low_rank({MODULE: (64, 64)}))
    (adapter / "adapter_config.json").write_bytes(text)
    with pytest.raises(HalfbyteError):
        convert(base, tmp_path / "out", lora=[(adapter, 1.0)])


def gguf_adapter(path: Path, tensors: dict[str, Any], **pairs: Any) -> Path:
    said = {
        "general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    } | {key.replace("__", "."): value for key, value in pairs.items()}  # fmt: skip
    metadata = {key: typed(value) for key, value in said.items() if value is not None}
    made = [tensor_from_array(name, array) for name, array in tensors.items()]
    write_gguf(path, metadata, made)
    return path


PAIR = {
    "blk.0.attn_q.weight.lora_a": np.ones((4, 64), np.float32),
    "blk.0.attn_q.weight.lora_b": np.ones((64, 4), np.float32),
}
FILES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("a model", PAIR, {"general__type": "model"}, "this is no adapter"),
    ("no type", PAIR, {"general__type": None}, "this is no adapter"),
    ("other kind", PAIR, {"adapter__type": "ia3"}, "an adapter of type 'ia3'"),
    ("other architecture", PAIR, {"general__architecture": "qwen2"}, "an adapter for 'qwen2'"),
    ("no alpha", PAIR, {"adapter__lora__alpha": None}, "missing"),
    ("alpha of text", PAIR, {"adapter__lora__alpha": "8"}, "a finite number"),
    ("nan", PAIR, {"adapter__lora__alpha": float("nan")}, "a finite number"),
    ("nothing", {}, {}, "no pair"),
    ("no b", {"blk.0.attn_q.weight.lora_a": PAIR["blk.0.attn_q.weight.lora_a"]}, {}, "lora_b is"),
    ("unknown", {"x.lora_a": np.ones((4, 64), np.float32)}, {}, "a pair for 'x'"),
    ("stray", {**PAIR, "x": np.ones(4, np.float32)}, {}, "names no weight"),
    (
        "missing layer",
        {name.replace("blk.0", "blk.9"): array for name, array in PAIR.items()},
        {},
        "which the model does not have",
    ),
    (
        "rank",
        {**PAIR, "blk.0.attn_q.weight.lora_b": np.ones((64, 5), np.float32)},
        {},
        "ranks of",
    ),
    (
        "embedding vector",
        {"token_embd.weight.lora_a": np.ones(4, np.float32),
         "token_embd.weight.lora_b": np.ones(4, np.float32)},
        {},
        "dense matrices are required",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tensors", "pairs", "message"), FILES, ids=[f[0] for f in FILES])
def test_gguf_adapters_that_do_not_fit(
    base: Path, tmp_path: Path, name: str, tensors: Any, pairs: Any, message: str
) -> None:
    adapter = gguf_adapter(tmp_path / "a.gguf", tensors, **pairs)
    with pytest.raises(HalfbyteError, match=message):
        convert(base, tmp_path / "out", lora=[(adapter, 1.0)])
    assert not (tmp_path / "out").exists()


def test_other_things_are_no_adapters(base: Path, tmp_path: Path) -> None:
    for content, message in ((b"x", "neither a folder of PEFT nor"), (None, "no such")):
        path = tmp_path / "thing"
        if content is not None:
            path.write_bytes(content)
        else:
            path.unlink()
        with pytest.raises(HalfbyteError, match=message):
            convert(base, tmp_path / "out", lora=[(path, 1.0)])
    with pytest.raises(HalfbyteError, match=r"adapter_config.json here"):
        convert(base, tmp_path / "out", lora=[(base, 1.0)])
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4}))
    with pytest.raises(HalfbyteError, match=r"no adapter_model.safetensors"):
        convert(base, tmp_path / "out", lora=[(folder, 1.0)])


def test_a_dora_cannot_become_a_gguf_adapter(base: Path, tmp_path: Path) -> None:
    arrays = low_rank({MODULE: (64, 64)})
    arrays[f"base_model.model.{MODULE}.lora_magnitude_vector"] = np.ones(64, np.float32)
    adapter = write_adapter_folder(tmp_path / "adapter", arrays, str(base), use_dora=True)
    with pytest.raises(HalfbyteError, match="DoRA in a GGUF adapter"):
        convert(adapter, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()
