"""MLX checkpoints: values bit by bit as mlx has them, its own rounding, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte import pipeline
from halfbyte.converters import read
from halfbyte.converters.hugging_face.checkpoints.mlx import MLX
from halfbyte.converters.hugging_face.checkpoints.mlx_layout import mlx_layout
from halfbyte.errors import HalfbyteError, UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.affine_offset import AffineOffset
from halfbyte.ir.encodings.transcode import (
    Verdict,
    depends_on_data,
    judge,
    judge_tensor,
    transcode,
)
from halfbyte.ir.tensor import Tensor, tensor_from_array
from halfbyte.quant.algorithms.rtn import requantize
from halfbyte.quant.plan import apply_plan, make_plan
from support.checkpoint_folders import arrays_of, decoder, quantized
from support.encoded import encoded, held, normal_rows
from support.model_folders import outputs_of
from support.random_models import random_model
from support.safetensors_files import write_folder

mx: Any = pytest.importorskip("mlx.core", reason="the values of MLX's modes need mlx[cpu]")

OUT, IN = 24, 256
MODULE = "layers.0.proj"
MODES = {"mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}


def settings(bits: int, group: int, mode: str = "affine") -> dict[str, Any]:
    return {"group_size": group, "bits": bits, "mode": mode}


def folder_of(path: Path, arrays: dict[str, Any], said: dict[str, Any]) -> Path:
    weights = {f"{MODULE}.{name}": np.array(array) for name, array in arrays.items()}
    write_folder(path, weights, {"quantization": said, "quantization_config": said})
    return path


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_affine_values_are_those_of_mlx(tmp_path: Path, bits: int, group: int) -> None:
    rows = normal_rows(OUT, IN)
    w, scales, biases = mx.quantize(mx.array(rows), group_size=group, bits=bits)
    arrays = {"weight": w, "scales": scales, "biases": biases}
    tensor = read(folder_of(tmp_path, arrays, settings(bits, group))).weights[f"{MODULE}.weight"]
    assert tensor.encoding == AffineOffset(bits, group, "float32")
    wanted = np.array(mx.dequantize(w, scales, biases, group_size=group, bits=bits))
    assert tensor.decode().tobytes() == wanted.tobytes()
    pieces = [tensor.decode(a, b) for a, b in ((0, 1), (1, 9), (9, OUT))]
    assert np.concatenate(pieces).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64])
def test_rounding_is_that_of_mlx(bits: int, group: int) -> None:
    rows = normal_rows(OUT, IN, seed=bits)
    rows[0] = np.abs(rows[0])
    rows[1, :group] = 0
    rows[2, :group] = 0.125
    w, scales, biases = mx.quantize(mx.array(rows), group_size=group, bits=bits)
    parts = AffineOffset(bits, group, "float32").encode(rows)
    assert parts["scales"].tobytes() == np.array(scales).tobytes()
    assert parts["biases"].tobytes() == np.array(biases).tobytes()
    assert parts["codes"].tobytes() == np.array(w).tobytes()


def test_short_scales_are_those_of_mlx_and_codes_nearest_on_them() -> None:
    rows = normal_rows(OUT, IN).astype(np.float16)
    w, scales, biases = mx.quantize(mx.array(rows), group_size=64, bits=4)
    encoding = AffineOffset(4, 64, "float16")
    parts = encoding.encode(rows.astype(np.float32))
    assert parts["scales"].tobytes() == np.array(scales).tobytes()
    assert parts["biases"].tobytes() == np.array(biases).tobytes()
    theirs = {**parts, "codes": np.ascontiguousarray(np.array(w)).view(np.uint8)}
    errors = [((encoding.decode(p, IN) - rows.astype("f4")) ** 2).sum() for p in (parts, theirs)]
    assert errors[0] <= errors[1]
    same = encoding.unpack(parts, IN).codes == encoding.unpack(theirs, IN).codes
    assert same.mean() > 0.99


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_floats(tmp_path: Path, mode: str) -> None:
    group, bits = MODES[mode]
    w, scales = mx.quantize(mx.array(normal_rows(OUT, IN)), group_size=group, bits=bits, mode=mode)
    arrays = {"weight": w, "scales": scales}
    tensor = read(folder_of(tmp_path, arrays, settings(bits, group, mode)))
    weight = tensor.weights[f"{MODULE}.weight"]
    assert weight.encoding.name == mode
    wanted = mx.dequantize(w, scales, group_size=group, bits=bits, mode=mode)
    wanted = np.array(wanted.astype(mx.float32))
    # mlx has these modes in bfloat16: a product of 2 and 4 bits of mantissa fits it.
    assert weight.decode().tobytes() == wanted.tobytes()


def mlx_values(arrays: dict[str, np.ndarray], module: str, said: dict[str, Any]) -> np.ndarray:
    mode = said.get("mode", "affine")
    parts = [mx.array(arrays[f"{module}.{n}"]) for n in ("weight", "scales")]
    if mode == "affine":
        # The common meaning of short scales is the float32 one.
        parts[1] = parts[1].astype(mx.float32)
        parts.append(mx.array(arrays[f"{module}.biases"]).astype(mx.float32))
    found = mx.dequantize(*parts, group_size=said["group_size"], bits=said["bits"], mode=mode)
    return np.array(found.astype(mx.float32))


def said_of(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"]
    found: dict[str, Any] = config["quantization"]
    return found


TYPES = ["int4-g64-bias", "int3-g32-bias-f32", "int6-g128-bias", "mxfp4", "mxfp8", "NVFP4"]


@pytest.mark.parametrize("type_name", [*TYPES, "int4-g32", "int5-g64-asym", "int8-g128-f32"])
def test_what_is_written_means_the_same_to_mlx(tmp_path: Path, type_name: str) -> None:
    folder = quantized(tmp_path, "hf:mlx", type_name)
    arrays, said, back = arrays_of(folder), said_of(folder), read(folder)
    plain = read(quantized(tmp_path, "hb", type_name))
    count = 0
    for name, tensor in back.weights.items():
        module = name.removesuffix(".weight")
        if f"{module}.scales" not in arrays:
            continue
        count += 1
        own = {**said, **said.get(module, {})}
        assert tensor.decode().tobytes() == mlx_values(arrays, module, own).tobytes()
        if module.endswith("_proj"):
            limit = 2.0**-22 * np.abs(tensor.decode()).max()
            np.testing.assert_allclose(
                tensor.decode(), plain.weights[name].decode(), rtol=0, atol=limit
            )
    # Seven linear layers, the embedding, and the head, which NVFP4 leaves to a better type.
    assert count == (8 if type_name == "NVFP4" else 9)


def test_modules_may_differ_and_say_so(tmp_path: Path) -> None:
    folder = quantized(
        tmp_path, "hf:mlx", "int4-g64-bias", overrides=[("*q_proj*", "int8-g32-bias")]
    )
    said = said_of(folder)
    assert {key: said[key] for key in ("group_size", "bits", "mode")} == settings(4, 64)
    assert said["model.layers.0.self_attn.q_proj"] == settings(8, 32)
    weights = read(folder).weights
    assert weights["model.layers.0.self_attn.q_proj.weight"].encoding == AffineOffset(8, 32)
    assert weights["model.layers.0.self_attn.k_proj.weight"].encoding == AffineOffset(4, 64)


def test_logits_of_a_folder_are_those_of_its_values(tmp_path: Path) -> None:
    folder = quantized(tmp_path, "hf:mlx", "int4-g64-bias")
    model = read(folder)
    plain = tmp_path / "plain"
    pipeline.convert(folder, plain, to="hf", type="float32")
    ids = [1, 5, 9, 200, 17, 3]
    got, wanted = outputs_of(model, ids), outputs_of(read(plain), ids)
    for key, value in wanted.items():
        np.testing.assert_allclose(got[key], value, rtol=0, atol=2e-5 * np.abs(value).max())


def test_experts_are_stacked(tmp_path: Path) -> None:
    source = decoder("qwen3_moe")
    folder = quantized(tmp_path, "hf:mlx", "int4-g32-bias", source)
    arrays = arrays_of(folder)
    stack = "model.layers.0.mlp.switch_mlp.gate_proj"
    assert arrays[f"{stack}.weight"].shape == (3, 64, 128 * 4 // 32)
    assert arrays[f"{stack}.scales"].shape == (3, 64, 4)
    assert not [name for name in arrays if ".experts." in name]
    back = read(folder)
    direct = read(quantized(tmp_path, "hb", "int4-g32-bias", source))
    for name, tensor in direct.weights.items():
        if tensor.encoding.is_quantized and back.weights[name].encoding == tensor.encoding:
            np.testing.assert_array_equal(back.weights[name].decode(), tensor.decode())
    ids = [1, 5, 9]
    for key, value in outputs_of(direct, ids).items():
        np.testing.assert_allclose(outputs_of(back, ids)[key], value, rtol=0, atol=1e-4)


def test_nvfp4_of_a_tensor_scale_that_mlx_has_not_is_refused() -> None:
    rows = normal_rows(16, 64)
    layout = mlx_layout([nvfp4_tensor(rows)])
    for array in layout.arrays(nvfp4_tensor(rows)):
        array.part.read()
    small = nvfp4_tensor(rows * np.float32(1e-4))
    with pytest.raises(HalfbyteError, match="choose mxfp4, NVFP4 or affine codes"):
        mlx_layout([small]).arrays(small)[1].part.read()


def test_nvfp4_is_not_chosen_anew() -> None:
    model, profile = random_model("llama"), MLX.profile()
    with pytest.raises(UnsupportedError, match=r"nvfp4 is not supported; supported: .*NVFP4"):
        make_plan(model, profile, "nvfp4")
    anew = apply_plan(model, make_plan(model, profile, "NVFP4"))
    assert {str(d.target) for d in make_plan(anew, profile).decisions} >= {"NVFP4"}


def nvfp4_tensor(rows: np.ndarray) -> Tensor:
    plain = tensor_from_array(f"{MODULE}.weight", rows)
    return held(requantize(plain, encoding_from_name("nvfp4")))


@pytest.mark.parametrize(
    ("source", "target", "verdict", "by_data"),
    [
        ("int4-g64", "int4-g64-bias", Verdict.EXACT, False),
        ("Q4_0", "int4-g32-bias", Verdict.EXACT, False),
        ("int4-g32-asym", "int4-g32-bias-f32", Verdict.EXACT, False),
        ("int4-g32-asym", "int4-g32-bias", Verdict.OFFSETS_ROUNDED, True),
        ("int4-g32-bias-f32", "int4-g32-asym", Verdict.EXACT_TO_ROUNDING, True),
        ("Q4_1", "int4-g32-bias", Verdict.EXACT, False),
    ],
)
def test_verdicts(source: str, target: str, verdict: Verdict, by_data: bool) -> None:
    pair = encoding_from_name(source), encoding_from_name(target)
    assert judge(*pair) is verdict
    assert depends_on_data(*pair) is by_data or source == "Q4_0"


def test_zero_points_come_back_from_wide_offsets() -> None:
    tensor = encoded("int4-g32-asym", 16, 128)
    there = held(transcode(tensor, encoding_from_name("int4-g32-bias-f32")))
    np.testing.assert_array_equal(there.decode(), tensor.decode())
    back = transcode(there, tensor.encoding)
    np.testing.assert_array_equal(back.read()["zero_points"], tensor.read()["zero_points"])
    own = encoded("int4-g32-bias-f32", 16, 128)
    assert judge_tensor(own, tensor.encoding) is Verdict.QUANTIZED


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("1 no biases", {"biases": None}, "biases' is missing"),
    ("2 scales of another height", {"scales": np.ones((OUT - 1, 4), "f4")}, "scales' has shape"),
    ("3 biases of another type", {"biases": np.zeros((OUT, 4), "f2")}, "float32 were required"),
    ("4 words that no grid makes", {"weight": np.zeros((OUT, 31), "u4")}, "make others"),
    ("5 signed words", {"weight": np.zeros((OUT, 32), "i4")}, "uint32 were required"),
    ("6 no weight", {"weight": None}, "weight' is missing"),
    ("7 one dimension", {"scales": np.ones(OUT, "f4")}, "2 dimensions"),
]


@pytest.mark.parametrize(("case", "change", "message"), BAD, ids=[case for case, *_ in BAD])
def test_damaged_arrays(tmp_path: Path, case: str, change: dict[str, Any], message: str) -> None:
    arrays: dict[str, Any] = {
        "weight": np.zeros((OUT, 32), np.uint32),
        "scales": np.ones((OUT, 4), np.float32),
        "biases": np.zeros((OUT, 4), np.float32),
    }
    arrays = {name: a for name, a in {**arrays, **change}.items() if a is not None}
    with pytest.raises(HalfbyteError, match=message):
        read(folder_of(tmp_path, arrays, settings(4, 64)))


def test_unknown_modes_and_wrong_bits_are_refused(tmp_path: Path) -> None:
    arrays = {"weight": np.zeros((OUT, 32), "u4"), "scales": np.ones((OUT, 4), "f4")}
    arrays["biases"] = np.zeros((OUT, 4), np.float32)
    with pytest.raises(UnsupportedError, match="mode 'posit'"):
        read(folder_of(tmp_path / "a", arrays, settings(4, 64, "posit")))
    with pytest.raises(HalfbyteError, match="bits 8"):
        read(folder_of(tmp_path / "b", arrays, settings(8, 64)))
    with pytest.raises(UnsupportedError, match=r"mode \[1\]"):
        read(folder_of(tmp_path / "c", arrays, settings(4, 64) | {"mode": [1]}))
