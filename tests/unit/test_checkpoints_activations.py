"""How values between layers are rounded travels from one compressed-tensors folder to the next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte import pipeline
from halfbyte.converters import read
from halfbyte.converters.hugging_face.checkpoints.ct_activations import dynamic_inputs
from support.checkpoint_folders import arrays_of, quantized, settings_of
from support.safetensors_files import write_folder

QUERY = "model.layers.0.self_attn.q_proj"


def rounded_inputs(folder: Path, kind: str, dynamic: bool) -> Path:
    """Return a folder whose layers have 8-bit weights by row and rounded inputs."""
    source = quantized(folder, "hf:compressed-tensors", "int8-f32" if kind == "int" else "fp8")
    arrays, config = arrays_of(source), json.loads((source / "config.json").read_text())
    said = config["quantization_config"]
    group = said["config_groups"]["group_0"]
    group["input_activations"] = dynamic_inputs(kind) | ({} if dynamic else {"dynamic": False})
    if kind == "int":
        group["format"] = said["format"] = "int-quantized"
        for name in [name for name in arrays if name.endswith("_packed")]:
            module = name.removesuffix(".weight_packed")
            codes = read(source).weights[f"{module}.weight"].read()["codes"]
            arrays[f"{module}.weight"] = (codes.astype(np.int16) - 128).astype(np.int8)
            del arrays[name], arrays[f"{module}.weight_shape"]
    if not dynamic:
        arrays[f"{QUERY}.input_scale"] = np.array([0.0123], np.float32)
        said["kv_cache_scheme"] = {"num_bits": 8, "type": "float", "strategy": "tensor"}
        arrays["model.layers.0.self_attn.k_scale"] = np.array([0.5], np.float32)
    return write_folder(folder / "rounded", arrays, config)


@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("through", ["", "hb"])
def test_they_are_carried(tmp_path: Path, kind: str, dynamic: bool, through: str) -> None:
    source = rounded_inputs(tmp_path, kind, dynamic)
    model = read(source)
    assert any("stay float here" in warning for warning in model.warnings)
    assert not any("input_scale" in name for name in model.weights)
    step = source
    if through:
        step = tmp_path / "between.hb"
        pipeline.convert(source, step)
    pipeline.convert(step, tmp_path / "again", to="hf:compressed-tensors")
    before, after = arrays_of(source), arrays_of(tmp_path / "again")
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes(), name
    said: list[dict[str, Any]] = [settings_of(path) for path in (source, tmp_path / "again")]
    for key in ("format", "kv_cache_scheme", "config_groups", "ignore"):
        assert said[0][key] == said[1][key], key


def test_other_containers_leave_them_out(tmp_path: Path) -> None:
    source = rounded_inputs(tmp_path, "int", dynamic=False)
    for to in ("hf:gptq", "gguf"):
        target = tmp_path / ("m.gguf" if to == "gguf" else "other")
        report = pipeline.convert(source, target, to=to)
        assert any("stay float here" in warning for warning in report.warnings)


def test_scales_of_layers_that_are_not_rounded_any_more_are_left_out(tmp_path: Path) -> None:
    source = rounded_inputs(tmp_path, "int", dynamic=False)
    target = tmp_path / "mixed"
    overrides = [("*_proj.weight", "int8-f32"), ("*[qkv]_proj.weight", "int4-g32")]
    to = "hf:compressed-tensors"
    pipeline.quantize(source, target, to=to, type="int8-f32", overrides=overrides, requantize=True)
    names = arrays_of(target)
    assert f"{QUERY}.weight_packed" in names and f"{QUERY}.input_scale" not in names
    assert "model.layers.0.self_attn.k_scale" in names
    pipeline.convert(source, tmp_path / "same", to=to)
    assert f"{QUERY}.input_scale" in arrays_of(tmp_path / "same")
