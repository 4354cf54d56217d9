"""`quantize --activations int8-static`, `fp8-static` into compressed-tensors folders; `verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfbyte
from halfbyte.converters.hugging_face.input_scales import input_scales_of
from halfbyte.ir.activation_scheme import ACTIVATIONS
from support.checkpoint_folders import arrays_of, settings_of
from support.model_folders import tiny_model, write_model
from support.safetensors_files import write_folder

TO = ("--to", "hf:compressed-tensors")
MODES = {"int": ("int8-f32", "int8-static"), "float": ("fp8", "fp8-static")}
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


def divergence(cli: Any, first: Path, second: Path, text: Path, activations: str) -> float:
    options = ("--data", text, "--context", "64", "--chunks", "2", "--activations", activations)
    found = cli("verify", first, second, *options, "--json").json()
    words = "rounded so here" if activations == "declared" else "weights alone"
    assert any("one stored scale" in note and words in note for note in found["notes"])
    return float(found["mean_kl"])


def scales_of(folder: Path) -> dict[str, np.ndarray]:
    return {n: a for n, a in arrays_of(folder).items() if n.endswith(".input_scale")}


@pytest.mark.parametrize("kind", MODES)
def test_a_folder_says_what_servers_do(
    kind: str, sources: dict[str, Path], text: Path, data: Any, tmp_path: Path, cli: Any
) -> None:
    type_name, mode = MODES[kind]
    output = tmp_path / "out"
    options = (*TO, "--type", type_name, "--activations", mode, *data)
    assert cli("quantize", sources["plain"], output, *options, "--dry-run").code == 0
    assert not output.exists()
    done = cli("quantize", sources["plain"], output, *options, "--json").json()
    assert any("ranges of 14 layers by mse, 8 samples" in line for line in done["warnings"])
    (group,) = settings_of(output)["config_groups"].values()
    assert group["format"] == ("int-quantized" if kind == "int" else "float-quantized")
    inputs = group["input_activations"]
    assert (inputs["type"], inputs["num_bits"], inputs["strategy"]) == (kind, 8, "tensor")
    assert (inputs["dynamic"], inputs["symmetric"], inputs["observer"]) == (False, True, "mse")
    stored = arrays_of(output)
    modules = [name.removesuffix("_scale") for name in stored if name.endswith(".weight_scale")]
    assert {n.removesuffix(".weight") for n in modules} == {
        name.removesuffix(".input_scale") for name in scales_of(output)
    }
    for name, scale in scales_of(output).items():
        assert (scale.shape, scale.dtype.name) == ((1,), "float32") and scale[0] > 0
        for names in FUSED:
            twins = [name.replace(names[0], other) for other in names[1:] if names[0] in name]
            assert all(stored[twin] == scale for twin in twins)
    told = json.loads((output / "config.json").read_text())["halfbyte_calibration"]
    assert told["activations"] == {"mode": mode, "ranges": "mse"}
    assert told["data"]["samples"] == 8
    alone = divergence(cli, sources["plain"], output, text, "float")
    assert 0.05 > divergence(cli, sources["plain"], output, text, "declared") > alone > 0


@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("through", ["", "between.hb"])
def test_a_folder_comes_back(
    kind: str, through: str, sources: dict[str, Path], data: Any, tmp_path: Path, cli: Any
) -> None:
    type_name, mode = MODES[kind]
    output = step = tmp_path / "out"
    options = (*TO, "--type", type_name, "--activations", mode, *data)
    assert cli("quantize", sources["plain"], output, *options).code == 0
    if through:
        step = tmp_path / through
        assert cli("convert", output, step).code == 0
    assert cli("convert", step, tmp_path / "again", *TO).code == 0
    before, after = arrays_of(output), arrays_of(tmp_path / "again")
    assert before.keys() == after.keys()
    assert all(array.tobytes() == after[name].tobytes() for name, array in before.items())
    assert settings_of(output) == settings_of(tmp_path / "again")


def test_other_sources_have_the_names_of_folders(
    sources: dict[str, Path], data: Any, tmp_path: Path, cli: Any
) -> None:
    source = tmp_path / "model.gguf"
    assert cli("convert", sources["plain"], source).code == 0
    options = (*TO, "--type", "fp8-tensor", "--activations", "fp8-static", *data)
    for name, given in (("folder", sources["plain"]), ("file", source)):
        assert cli("quantize", given, tmp_path / name, *options).code == 0
    first, second = (scales_of(tmp_path / name) for name in ("folder", "file"))
    assert first.keys() == second.keys() and len(first) == 14
    for name, scale in first.items():
        np.testing.assert_allclose(scale, second[name], rtol=0.02, err_msg=name)


def test_experts_of_a_layer_share_their_scales(
    text: Path, data: Any, tmp_path: Path, cli: Any
) -> None:
    sizes = {**SIZES, "num_hidden_layers": 1, "num_experts": 3, "num_experts_per_tok": 2}
    model = tiny_model("qwen2_moe", 1, moe_intermediate_size=32, **sizes)
    source, output = write_model(model, tmp_path / "moe"), tmp_path / "out"
    options = (*TO, "--type", "fp8", "--activations", "fp8-static", *data)
    assert cli("quantize", source, output, *options).code == 0
    found = scales_of(output)
    for kind in ("gate_proj", "up_proj", "down_proj"):
        held = [a for n, a in found.items() if ".experts." in n and n.split(".")[-2] == kind]
        assert len(held) == 3 and len({float(one[0]) for one in held}) == 1
    assert divergence(cli, source, output, text, "declared") < 0.05


@pytest.mark.parametrize("method", ["smoothquant", "gptq", "smoothquant+gptq"])
def test_ranges_are_of_what_a_method_made(
    method: str, sources: dict[str, Path], text: Path, data: Any, tmp_path: Path, cli: Any
) -> None:
    options = (*TO, "--type", "int8-f32", "--activations", "int8-static", *data)
    found = {}
    for name, more in {"rtn": (), "out": ("--method", method)}.items():
        assert cli("quantize", sources["outliers"], tmp_path / name, *options, *more).code == 0
        found[name] = divergence(cli, sources["plain"], tmp_path / name, text, "declared")
    told = json.loads((tmp_path / "out" / "config.json").read_text())["halfbyte_calibration"]
    assert told["method"].startswith(method) and told["activations"]["mode"] == "int8-static"
    scales, plain = (scales_of(tmp_path / name) for name in ("out", "rtn"))
    query = "model.layers.0.self_attn.q_proj.input_scale"
    if "smoothquant" in method:
        assert scales[query] < plain[query] / 3
        assert found["out"] < found["rtn"] / 10
    else:
        assert scales[query] == plain[query]  # before the first weight, nothing is rounded
    assert not list(tmp_path.glob("*journal*")) and not list(tmp_path.glob(".*"))


def test_methods_of_ranges(sources: dict[str, Path], data: Any, tmp_path: Path, cli: Any) -> None:
    options = (*TO, "--type", "int8-f32", "--activations", "int8-static", *data)
    found = {}
    for method in ("minmax", "percentile", "entropy", "mse"):
        cut = ("--calibration-method", method)
        assert cli("quantize", sources["plain"], tmp_path / method, *options, *cut).code == 0
        found[method] = scales_of(tmp_path / method)
        said = settings_of(tmp_path / method)["config_groups"]["group_0"]["input_activations"]
        assert said["observer"] == ("mse" if method == "mse" else "minmax")
    for method, scales in found.items():
        assert all(scales[name] <= scale for name, scale in found["minmax"].items())
        assert method == "minmax" or any(scales[n] < s for n, s in found["minmax"].items())


def test_scales_of_another_writer(
    sources: dict[str, Path], text: Path, data: Any, tmp_path: Path, cli: Any, fails: Any
) -> None:
    output = tmp_path / "out"
    options = (*TO, "--type", "int8-f32", "--activations", "int8-static", *data)
    assert cli("quantize", sources["plain"], output, *options).code == 0
    arrays, config = arrays_of(output), json.loads((output / "config.json").read_text())
    key = "model.layers.1.mlp.up_proj.input_scale"
    arrays[key] = (4 * arrays[key]).astype(np.float16).reshape(())  # another shape and dtype
    wider = write_folder(tmp_path / "wider", arrays, config)
    scales = input_scales_of(halfbyte.open(wider))
    assert scales["model.layers.1.mlp.up_proj.weight"] == float(arrays[key])
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (wider / file).write_bytes((output / file).read_bytes())
    one, other = (
        divergence(cli, sources["plain"], folder, text, "declared") for folder in (output, wider)
    )
    assert other > one
    del arrays[key]
    lacking = write_folder(tmp_path / "lacking", arrays, config)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (lacking / file).write_bytes((output / file).read_bytes())
    judged = ("--data", text, "--context", 64, "--activations", "declared")
    said = fails("verify", sources["plain"], lacking, *judged)
    assert "holds no input_scale for 'model.layers.1.mlp.up_proj.weight'" in said
    assert ACTIVATIONS in halfbyte.open(lacking).metadata


STATIC = ("--type", "int8", *TO, "--activations", "int8-static")
REFUSED = {
    "data": ([*STATIC], "int8-static needs inputs to find ranges; give --calib"),
    "statistics": ([*STATIC, "--method", "gptq", "--stats", "@here"], "needs inputs to find"),
    "type": (["--type", "int4", *STATIC[2:], "--calib", "@text"], "supported: --type int8"),
    "floats": (["--type", "fp8-block128", *TO, "--activations", "fp8-static", "--calib", "@text"],
               "supported: --type fp8, --type fp8-bf16, --type fp8-tensor"),
    "onnx": (["--type", "fp8", "--to", "onnx", "--activations", "fp8-static", "--calib", "@text"],
             "give --to hf:compressed-tensors"),
    "levels": (["--type", "fp8", *TO, "--activations", "fp8-static", "--calib", "@text",
                "--calibration-method", "entropy"], "'entropy' of float8"),
    "keep": ([*STATIC, "--calib", "@text", "--keep-float", "x"], "give --tensor GLOB=bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(
    name: str, sources: dict[str, Path], text: Path, tmp_path: Path, fails: Any
) -> None:
    options, said = REFUSED[name]
    files = {"@text": text, "@here": text}
    given = [files.get(option, option) for option in options]
    assert said in fails("quantize", sources["plain"], tmp_path / "out", *given)
    assert not list(tmp_path.iterdir())
