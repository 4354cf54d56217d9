"""`--lora` of convert and quantize, and `convert` of an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from support.adapter_folders import ATTENTION, low_rank, projections, write_adapter_folder
from support.script_cases import CASES
from support.script_models import write_folder_case

SHAPES = projections(2, ATTENTION)
QUERY = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder_case(CASES["llama-linear"], tmp_path)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter_folder(tmp_path / "adapter", low_rank(SHAPES))


def test_several_adapters_with_their_factors(
    cli: Any, base: Path, adapter: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = ("--lora", f"{adapter}=0.5", "--lora", adapter, "--json")
    report = cli("convert", base, output, *arguments).json()
    verdicts = {t["source_name"]: t["verdict"] for t in report["tensors"]}
    assert verdicts[f"{QUERY}.weight"] == "exact to rounding"
    assert verdicts["model.norm.weight"] == "exact"
    arrays = low_rank(SHAPES)
    a, b = (arrays[f"base_model.model.{QUERY}.lora_{letter}.weight"] for letter in "AB")
    weight = load_file(base / "model.safetensors")[f"{QUERY}.weight"]
    found = load_file(output / "model.safetensors")[f"{QUERY}.weight"]
    np.testing.assert_allclose(found, weight + 1.5 * 2 * b @ a, rtol=1e-5, atol=1e-6)


def test_an_adapter_becomes_a_gguf_file(
    cli: Any, fails: Any, base: Path, adapter: Path, tmp_path: Path
) -> None:
    output = tmp_path / "a.gguf"
    report = cli("convert", adapter, output, "--base", base, "--json").json()
    assert report["bytes"] == output.stat().st_size
    assert {t["encoding"] for t in report["tensors"]} == {"float32"}
    seen = cli("inspect", output, "--json").json()
    assert len(seen["tensors"]) == 2 * len(SHAPES)
    assert any("adapter" in problem for problem in seen["problems"])
    assert "give --base" in fails("convert", adapter, tmp_path / "b.gguf")
    assert "supported: gguf" in fails("convert", adapter, tmp_path / "b.onnx", "--base", base)
    assert "--lora" in fails("quantize", adapter, tmp_path / "c.gguf", "--type", "Q4_K_M")
    halves = cli("convert", adapter, tmp_path / "h.gguf", "--base", base, "--type", "F16", "--json")
    assert {t["verdict"] for t in halves.json()["tensors"]} == {"rounded"}
    merged = tmp_path / "q.gguf"
    found = cli("quantize", base, merged, "--type", "Q8_0", "--lora", output, "--json").json()
    reasons = {t["source_name"]: t["reason"] for t in found["tensors"]}
    assert "adapter merged" in reasons[f"{QUERY}.weight"]
    assert [path.name for path in tmp_path.glob("[bc].*")] == []


def test_the_base_that_an_adapter_names(cli: Any, base: Path, tmp_path: Path) -> None:
    adapter = write_adapter_folder(tmp_path / "named", low_rank(SHAPES), str(base))
    assert cli("convert", adapter, tmp_path / "a.gguf", "-q").code == 0
    gone = write_adapter_folder(tmp_path / "gone", low_rank(SHAPES), str(base / "away"))
    found = cli("convert", gone, tmp_path / "b.gguf", "-q")
    assert found.code == 1 and not (tmp_path / "b.gguf").exists()


def test_wrong_uses_are_named(fails: Any, base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no such file" in fails("convert", base, out, "--lora", "./nowhere")
    assert "finite" in fails("convert", base, out, "--lora", f"{adapter}=inf")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "r": 16}))
    assert "they must agree" in fails("convert", base, out, "--lora", adapter)
    assert not out.exists()
