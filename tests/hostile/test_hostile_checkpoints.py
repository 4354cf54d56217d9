"""Quantized checkpoints with broken arrays or settings fail with one line that says why."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters import read
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError
from support.checkpoint_words import awq_arrays, gptq_arrays, packed_arrays
from support.safetensors_files import write_folder

Arrays = dict[str, np.ndarray]
Settings = dict[str, Any]
Change = Callable[[Arrays, Settings], None]

OUT, IN, GROUP = 32, 64, 32


def sound(method: str) -> tuple[Arrays, Settings]:
    """Return arrays and settings of one module that reads."""
    codes = np.random.default_rng(0).integers(0, 16, (OUT, IN)).astype(np.uint8)
    zeros = np.random.default_rng(1).integers(1, 16, (OUT, IN // GROUP)).astype(np.uint8)
    scales = np.ones((OUT, IN // GROUP), np.float16)
    if method == "gptq":
        order = (np.arange(IN) // GROUP).astype(np.int32)
        arrays = gptq_arrays(codes, zeros, scales, 4, 1) | {"g_idx": order}
        return arrays, {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
    if method == "awq":
        settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
        return awq_arrays(codes, zeros, scales), settings
    weights = {"num_bits": 4, "symmetric": False, "group_size": GROUP}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    settings = {"quant_method": method, "format": "pack-quantized", "config_groups": groups}
    if method == "compressed-tensors":
        return packed_arrays(codes, zeros, scales, 4), settings
    settings["quant_method"] = "compressed-tensors"
    plain = {"weight": codes.astype(np.int8), "weight_scale": np.ones((OUT, 1), np.float32)}
    weights |= {"num_bits": 8, "symmetric": True, "group_size": None}
    return plain, settings


def drop(name: str) -> Change:
    def change(arrays: Arrays, settings: Settings) -> None:
        del arrays[name]

    return change


def put(name: str, array: np.ndarray) -> Change:
    return lambda arrays, settings: arrays.update({name: array})


def say(**changed: Any) -> Change:
    return lambda arrays, settings: settings.update(changed)


def weights_say(**changed: Any) -> Change:
    def change(arrays: Arrays, settings: Settings) -> None:
        settings["config_groups"]["group_0"]["weights"].update(changed)

    return change


CT, I32 = "compressed-tensors", np.int32
CASES: list[tuple[str, Change, str]] = [
    ("gptq", drop("qzeros"), r"proj\.qzeros' is missing, beside \['g_idx', 'qweight', 'scales'\]"),
    ("gptq", drop("scales"), r"proj\.scales' is missing"),
    ("gptq", put("qweight", np.ones((8, OUT), np.float32)), "is float32 .*int32 or uint32 were"),
    ("gptq", put("qweight", np.ones((8, OUT - 1), I32)), r"has shape \[8, 31\], \[8, 32\] was"),
    ("gptq", put("qweight", np.ones((7, OUT), I32)), r"g_idx' has shape \[64\], \[56\] was"),
    ("gptq", put("qweight", np.ones(8 * OUT, I32)), "2 dimensions of int32"),
    ("gptq", put("qzeros", np.ones((2, 3), I32)), r"has shape \[2, 3\], \[2, 4\] was required"),
    ("gptq", put("qzeros", np.ones((1, 4), I32)), r"has shape \[1, 4\], \[2, 4\] was required"),
    ("gptq", put("scales", np.ones((2, OUT + 8), np.float16)), r"\[8, 40\] was required"),
    ("gptq", put("scales", np.ones((3, OUT), np.float16)), r"qzeros' has shape \[2, 4\], \[3, 4\]"),
    ("gptq", put("scales", np.ones((2, OUT), np.int8)), "is int8 .*float16 or bfloat16 or float32"),
    ("gptq", put("g_idx", np.full(IN, 2, I32)), r"holds groups 2\.\.2, 0\.\.1 were required"),
    ("gptq", put("g_idx", np.arange(IN, dtype=I32) - 9), r"holds groups -9\.\.54, 0\.\.1 were"),
    ("gptq", put("g_idx", np.zeros(IN - 9, I32)), r"g_idx' has shape \[55\], \[64\] was required"),
    ("gptq", put("g_idx", np.zeros(IN, np.float32)), "g_idx' is float32"),
    ("gptq", say(bits=5), r"has 5 bits, one of \[2, 3, 4, 8\] was required"),
    ("gptq", say(bits="4"), r"has '4' bits"),
    ("gptq", say(bits=True), r"has True bits"),
    ("gptq", say(bits=8), r"g_idx' has shape \[64\], \[32\] was required by 8 bits"),
    ("gptq", say(group_size=16), "has 2 groups, group_size 16 of 64 inputs makes others"),
    ("gptq", say(group_size=0), "has 2 groups, group_size 0 of 64 inputs makes others"),
    ("gptq", say(group_size=-1), "has 2 groups, group_size -1 of 64 inputs makes others"),
    ("gptq", say(group_size="g"), "has 2 groups, group_size 'g' of 64 inputs makes others"),
    ("gptq", say(dynamic={"+:(": {"bits": 4}}), "override '\\(' that is no regular expression"),
    ("gptq", say(checkpoint_format="marlin"), "checkpoint_format 'marlin' of 4 bits is not"),
    ("awq", drop("qzeros"), r"proj\.qzeros' is missing"),
    ("awq", drop("scales"), r"proj\.scales' is missing"),
    ("awq", put("scales", np.ones((2, OUT - 8), np.float16)), r"shape \[2, 24\], \[2, 32\] was"),
    ("awq", put("qzeros", np.ones((2, 5), I32)), r"has shape \[2, 5\], \[2, 4\] was required"),
    ("awq", put("qweight", np.ones((IN, 4), np.int64)), "qweight' is int64"),
    ("awq", say(bits=8), "has 8 bits, 4 were required in the gemm layout"),
    ("awq", say(group_size=64), "has 2 groups, group_size 64 of 64 inputs makes others"),
    ("awq", say(version="gemv"), "the AWQ layout 'gemv' is not supported"),
    (CT, drop("weight_shape"), r"proj\.weight_shape' is missing"),
    (CT, drop("weight_scale"), r"proj\.weight_scale' is missing"),
    (CT, drop("weight_zero_point"), r"proj\.weight_zero_point' is missing"),
    (CT, put("weight_shape", np.array([OUT, 0])), r"holds \[32, 0\], \[32, inp"),
    (CT, put("weight_shape", np.array([9, IN])), r"holds \[9, 64\], \[32, inp"),
    (CT, put("weight_shape", np.array([OUT])), r"holds \[32\], \[32, inputs\]"),
    (CT, put("weight_shape", np.array([OUT, 99])), "has 8 words a row, 13 were"),
    (CT, put("weight_shape", np.array([OUT, 1 << 62])), "has 8 words a row"),
    (CT, put("weight_packed", np.ones((OUT, 7), I32)), "has 7 words a row, 8 w"),
    (
        "compressed-tensors",
        put("weight_zero_point", np.ones((3, 2), I32)),
        r"\[4, 2\] was required",
    ),
    (
        "compressed-tensors",
        put("weight_zero_point", np.ones((4, 1), I32)),
        r"\[4, 2\] was required",
    ),
    (CT, put("weight_scale", np.ones((5, 2), np.float16)), r"\[32, 2\] was req"),
    (CT, put("weight_scale", np.ones((2, 2, 2), np.float16)), "2 dimensions of"),
    (
        "compressed-tensors",
        put("weight_g_idx", np.full(IN, 7, I32)),
        r"holds groups 7\.\.7, 0\.\.1",
    ),
    (CT, put("weight_g_idx", np.zeros(3, I32)), r"shape \[3\], \[64\] was"),
    (CT, weights_say(num_bits=9), "has 9 bits of type 'int', 2 to 8 of 'int'"),
    (CT, weights_say(type="float"), "has 4 bits of type 'float'"),
    (CT, weights_say(group_size=64), "has 2 groups, group_size 64 of 64 inputs"),
    (CT, say(config_groups=[1]), "config_groups is "),
    (CT, say(config_groups={"a": {}}), "config group 'a' has no list of targets"),
    (
        "compressed-tensors",
        say(config_groups={"a": {"targets": ["re:("]}}),
        "no regular expression",
    ),
    (
        "compressed-tensors",
        say(config_groups={"a": {"targets": [], "weights": 3}}),
        "are no object",
    ),
    ("plain", put("weight", np.ones((OUT, IN), np.int16)), "weight' is int16"),
    ("plain", put("weight_scale", np.ones((OUT - 1, 1), np.float32)), r"\[32, 1\] was required"),
    ("plain", put("weight_scale", np.ones(OUT - 1, np.float32)), r"\[32\] was required"),
    ("plain", drop("weight_scale"), r"proj\.weight_scale' is missing, beside codes of int8"),
    ("plain", weights_say(symmetric=False), r"proj\.weight_zero_point' is missing"),
    ("plain", weights_say(group_size=16), "has 1 groups, group_size 16 of 64 inputs"),
]


def broken_folder(folder: Path, method: str, change: Change) -> Path:
    arrays, settings = sound(method)
    change(arrays, settings)
    weights = {f"proj.{name}": array for name, array in arrays.items()}
    return write_folder(folder, weights, {"quantization_config": settings})


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "plain"])
def test_the_sound_ones_read(method: str, tmp_path: Path) -> None:
    tensor = read(broken_folder(tmp_path, method, lambda a, s: None)).weights["proj.weight"]
    assert tensor.decode().shape == (OUT, IN)


@pytest.mark.parametrize(("method", "change", "message"), CASES, ids=range(len(CASES)))
def test_broken_checkpoints(method: str, change: Change, message: str, tmp_path: Path) -> None:
    folder = broken_folder(tmp_path, method, change)
    with pytest.raises((FormatError, UnsupportedError), match=message):
        read(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("quantize_config.json", "[]", "is a list"),
        ("quantize_config.json", "{", "is not JSON"),
        ("hf_quant_config.json", '{"producer": 1}', "'quantization' must be an object"),
    ],
)
def test_broken_files_of_older_tools(file: str, content: str, message: str, tmp_path: Path) -> None:
    write_folder(tmp_path, {"w": np.ones(3, np.float32)}, {})
    (tmp_path / file).write_text(content)
    with pytest.raises(HalfbyteError, match=message):
        read(tmp_path)


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    folder = broken_folder(tmp_path / "in", "gptq", drop("qzeros"))
    command = [sys.executable, "-m", "halfbyte", "convert", str(folder), str(tmp_path / "out.hb")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "qzeros' is missing" in ran.stderr and "Traceback" not in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_experts_of_different_orders_are_refused(tmp_path: Path) -> None:
    from support.checkpoint_folders import arrays_of, decoder, quantized

    folder = quantized(tmp_path, "hf:gptq", "int4-g32", decoder("qwen3_moe"))
    arrays = arrays_of(folder)
    name = "model.layers.0.mlp.experts.1.up_proj.g_idx"
    arrays[name] = arrays[name][::-1].copy()
    config = json.loads((folder / "config.json").read_text())
    broken = write_folder(tmp_path / "broken", arrays, config)
    with pytest.raises(HalfbyteError, match=r"experts"):
        read(broken)
