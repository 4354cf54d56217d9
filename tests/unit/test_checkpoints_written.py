"""Quantized checkpoints as they are written: arrays against naive packers, and what config says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte import pipeline
from halfbyte.converters import read
from halfbyte.converters.hugging_face.checkpoints import gathered
from halfbyte.errors import UnsupportedError
from halfbyte.ir.tensor import Tensor
from support.checkpoint_folders import arrays_of, decoder, quantized, settings_of
from support.checkpoint_words import awq_arrays, gptq_arrays, packed_arrays
from support.model_folders import write_model

QUERY = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"


def facts(tensor: Tensor) -> tuple[Any, Any, Any]:
    """Return codes [out, in], zero points and scales [out, groups] of an affine weight."""
    parts = tensor.read()
    unpacked = tensor.encoding.unpack(parts, tensor.columns)
    return unpacked.codes, unpacked.scales.zero_point, parts["scales"]


def require_arrays(folder: Path, module: str, wanted: dict[str, np.ndarray]) -> None:
    stored = arrays_of(folder)
    for name, array in wanted.items():
        found = stored[f"{module}.{name}"]
        assert (found.dtype, found.shape) == (array.dtype, array.shape), name
        assert found.tobytes() == array.tobytes(), name


TYPES = ["int4-g32", "int4-g32-asym", "int3-g64-asym", "int2-g32", "int8", "int8-g128-asym-bf16"]


@pytest.mark.parametrize("type_name", [*TYPES, "int4-g128-f32"])
def test_gptq(tmp_path: Path, type_name: str) -> None:
    folder = quantized(tmp_path, "hf:gptq", type_name)
    plain = read(quantized(tmp_path, "hb", type_name)).weights
    said = settings_of(folder)
    less = 1 if said["checkpoint_format"] == "gptq" else 0
    assert less == ("asym" not in type_name) == said["sym"]
    assert json.loads((folder / "quantize_config.json").read_text()) == said
    for module in (QUERY, DOWN):
        codes, zeros, scales = facts(plain[f"{module}.weight"])
        wanted = gptq_arrays(codes, zeros, scales, said["bits"], less)
        size = said["group_size"] if said["group_size"] > 0 else codes.shape[1]
        wanted["g_idx"] = (np.arange(codes.shape[1]) // size).astype(np.int32)
        require_arrays(folder, module, wanted)


@pytest.mark.parametrize(
    ("bits", "version_1", "version_2"),
    [(2, 0x55555555, 0xAAAAAAAA), (4, 0x77777777, 0x88888888), (8, 0x7F7F7F7F, 0x80808080)],
)
def test_words_of_symmetric_zero_points(
    tmp_path: Path, bits: int, version_1: int, version_2: int
) -> None:
    folder = quantized(tmp_path, "hf:gptq", f"int{bits}-g32")
    words = arrays_of(folder)[f"{QUERY}.qzeros"].view(np.uint32)
    assert (words == version_1).all()
    mixed = quantized(
        tmp_path, "hf:gptq", f"int{bits}-g64", overrides=[("*down_proj*", f"int{bits}-g64-asym")]
    )
    assert settings_of(mixed)["checkpoint_format"] == "gptq_v2"
    assert (arrays_of(mixed)[f"{QUERY}.qzeros"].view(np.uint32) == version_2).all()


@pytest.mark.parametrize("type_name", ["int4-g32", "int4-g128-asym", "int4"])
def test_awq(tmp_path: Path, type_name: str) -> None:
    folder = quantized(tmp_path, "hf:awq", type_name)
    plain = read(quantized(tmp_path, "hb", type_name)).weights
    said = settings_of(folder)
    assert (said["quant_method"], said["bits"], said["version"]) == ("awq", 4, "gemm")
    assert said["zero_point"] is True and said["modules_to_not_convert"] is None
    for module in (QUERY, DOWN):
        require_arrays(folder, module, awq_arrays(*facts(plain[f"{module}.weight"])))


@pytest.mark.parametrize("type_name", [*TYPES, "int5-g32", "int6-g64-asym", "int7", "int4-bf16"])
def test_pack_quantized(tmp_path: Path, type_name: str) -> None:
    folder = quantized(tmp_path, "hf:compressed-tensors", type_name)
    plain = read(quantized(tmp_path, "hb", type_name)).weights
    said = settings_of(folder)
    group = said["config_groups"]["group_0"]
    weights = group["weights"]
    assert said["format"] == group["format"] == "pack-quantized"
    assert group["targets"] == ["Linear"] and group["input_activations"] is None
    assert weights["symmetric"] == ("asym" not in type_name)
    assert weights["strategy"] == ("group" if weights["group_size"] else "channel")
    assert said["ignore"] == ["lm_head"]
    for module in (QUERY, DOWN):
        codes, zeros, scales = facts(plain[f"{module}.weight"])
        asked = None if weights["symmetric"] else zeros
        wanted = packed_arrays(codes, asked, scales, weights["num_bits"])
        require_arrays(folder, module, wanted)


def test_what_is_no_linear_layer_stays_float(tmp_path: Path) -> None:
    stored = arrays_of(quantized(tmp_path, "hf:gptq", "int4-g32", decoder("qwen2_moe")))
    floats = {name for name, array in stored.items() if array.dtype == np.float32}
    for part in ("embed_tokens", "lm_head", "norm", "mlp.gate.", "shared_expert_gate"):
        assert any(part in name for name in floats), part
    assert not any("proj" in name and name.endswith(".weight") for name in stored)
    assert "model.layers.0.mlp.experts.2.down_proj.qweight" in stored


def test_layers_that_stay_float_are_named(tmp_path: Path) -> None:
    model = decoder("qwen2_moe")
    gate = "model.layers.0.mlp.gate"
    for to, key in (("hf:awq", "modules_to_not_convert"), ("hf:compressed-tensors", "ignore")):
        assert gate in settings_of(quantized(tmp_path, to, "int4-g32", model))[key]
    dynamic = settings_of(quantized(tmp_path, "hf:gptq", "int4-g32"))["dynamic"]
    assert r"-:^model\.layers\.0\.mlp\.gate$" in dynamic


def test_a_head_is_quantized_when_asked(tmp_path: Path) -> None:
    source = write_model(decoder(tie_word_embeddings=False), tmp_path / "float")
    for to, key, value in (
        ("hf:gptq", "lm_head", True),
        ("hf:awq", "modules_to_not_convert", None),
        ("hf:compressed-tensors", "ignore", []),
    ):
        target = tmp_path / to.replace(":", "_")
        pipeline.quantize(
            source, target, to=to, type="int4-g32", overrides=[("lm_head.weight", "int4-g32")]
        )
        assert settings_of(target)[key] == value
        assert str(read(target).weights["lm_head.weight"].encoding) == "int4-g32"


def test_overrides_of_layers(tmp_path: Path) -> None:
    more: dict[str, Any] = {"overrides": [("*down_proj*", "int8-g64")]}
    said = settings_of(quantized(tmp_path, "hf:gptq", "int4-g32", **more))
    own = said["dynamic"][r"+:^model\.layers\.0\.mlp\.down_proj$"]
    assert (own["bits"], own["group_size"], said["bits"]) == (8, 64, 4)
    folder = quantized(tmp_path, "hf:compressed-tensors", "int4-g32", **more)
    groups = settings_of(folder)["config_groups"]
    assert groups["group_1"]["targets"] == [DOWN]
    assert groups["group_1"]["weights"]["num_bits"] == 8
    for name in ("hf_gptq-int4-g32", "hf_compressed-tensors-int4-g32"):
        weights = read(tmp_path / name).weights
        assert str(weights[f"{DOWN}.weight"].encoding) == "int8-g64"
        assert str(weights[f"{QUERY}.weight"].encoding) == "int4-g32"


@pytest.mark.parametrize("to", ["hf:gptq", "hf:compressed-tensors"])
def test_weights_that_servers_fuse_share_a_scheme(tmp_path: Path, to: str) -> None:
    with pytest.raises(UnsupportedError, match="which servers fuse"):
        quantized(tmp_path, to, "int4-g32", overrides=[("*v_proj*", "int8-g32")])
    assert [path.name for path in tmp_path.iterdir()] == ["float"]


def test_they_are_looked_at_before_calibration(tmp_path: Path) -> None:
    """Hours of it would be lost; a dry run tells the same."""
    write_model(decoder(), tmp_path / "float")
    (tmp_path / "text.txt").write_text("short")
    settings: dict[str, Any] = {"to": "hf:gptq", "type": "int4-g32", "method": "gptq"}
    settings |= {"calib": tmp_path / "text.txt", "overrides": [("*v_proj*", "int8-g32")]}
    for dry_run in (False, True):
        with pytest.raises(UnsupportedError, match="which servers fuse"):
            pipeline.quantize(tmp_path / "float", tmp_path / "out", dry_run=dry_run, **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float", "text.txt"]


def test_one_group_size_in_awq(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="one group size for all weights"):
        quantized(tmp_path, "hf:awq", "int4-g32", overrides=[("*down_proj*", "int4-g64")])


def test_a_float_model_is_no_quantized_checkpoint(tmp_path: Path) -> None:
    source = write_model(decoder(), tmp_path / "float")
    with pytest.raises(UnsupportedError, match="no weight is quantized"):
        pipeline.convert(source, tmp_path / "out", to="hf:gptq")


@pytest.mark.parametrize("to", ["hf:gptq", "hf:awq", "hf:compressed-tensors"])
def test_bytes_do_not_depend_on_memory_threads_or_shards(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quantized(tmp_path, to, "int4-g32-asym")
    monkeypatch.setattr(gathered, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("halfbyte.ir.streamed_parts.CHUNK_BYTES", 1 << 14)
    again = tmp_path / "again"
    pipeline.quantize(tmp_path / "float", again, to=to, type="int4-g32-asym", threads=4)
    held = (first / "model.safetensors").read_bytes()
    assert (again / "model.safetensors").read_bytes() == held


def test_a_plain_folder_says_nothing_of_quantization(tmp_path: Path) -> None:
    source = quantized(tmp_path, "hf:gptq", "int4-g32")
    target = tmp_path / "plain"
    pipeline.quantize(source, target, to="hf", type="float32")
    assert "quantization_config" not in json.loads((target / "config.json").read_text())
    assert not (target / "quantize_config.json").exists()
    for name, tensor in read(source).weights.items():
        assert np.array_equal(read(target).weights[name].decode(), tensor.decode())
