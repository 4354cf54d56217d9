"""`quantize --activations` into compressed-tensors folders, and `verify` with them rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import halfbyte
from support.checkpoint_folders import arrays_of, settings_of

TO = ("--to", "hf:compressed-tensors")
MODES = {"int": ("int8", "int8-dynamic"), "float": ("fp8", "fp8")}


def divergence(cli: Any, first: Path, second: Path, text: Path, activations: str) -> float:
    options = ("--data", text, "--context", "64", "--chunks", "2", "--activations", activations)
    found = cli("verify", first, second, *options, "--json").json()
    words = "rounded so here" if activations == "declared" else "weights alone"
    assert any(words in note for note in found["notes"])
    return float(found["mean_kl"])


@pytest.mark.parametrize("kind", MODES)
def test_a_folder_says_what_servers_do(
    kind: str, sources: dict[str, Path], text: Path, tmp_path: Path, cli: Any
) -> None:
    type_name, mode = MODES[kind]
    output = tmp_path / "out"
    options = ("--type", type_name, "--activations", mode)
    assert cli("quantize", sources["plain"], output, *TO, *options).code == 0
    (group,) = settings_of(output)["config_groups"].values()
    assert group["format"] == ("int-quantized" if kind == "int" else "float-quantized")
    assert group["weights"]["strategy"] == "channel" and group["weights"]["symmetric"]
    inputs = group["input_activations"]
    assert (inputs["type"], inputs["num_bits"], inputs["strategy"]) == (kind, 8, "token")
    assert inputs["dynamic"] is True
    stored = arrays_of(output)["model.layers.0.mlp.up_proj.weight"]
    assert stored.dtype.name == ("int8" if kind == "int" else "float8_e4m3fn")
    plain = tmp_path / "plain"
    assert cli("quantize", sources["plain"], plain, *TO, "--type", type_name).code == 0
    assert "notes" not in cli("verify", plain, plain, "--data", text, "--context", 64, "--json").out
    for name, tensor in halfbyte.open(plain).weights.items():
        assert tensor.decode().tobytes() == halfbyte.open(output).weights[name].decode().tobytes()
    alone = divergence(cli, sources["plain"], output, text, "float")
    assert divergence(cli, sources["plain"], output, text, "declared") > alone > 0
    shown = cli("verify", sources["plain"], output, "--data", text, "--context", 64).out
    assert "weights alone are judged" in " ".join(shown.split())


@pytest.mark.parametrize("method", ["smoothquant", "gptq", "smoothquant+gptq"])
def test_methods(
    method: str, sources: dict[str, Path], text: Path, tmp_path: Path, cli: Any
) -> None:
    output, data = tmp_path / "out", ("--calib", text, "--calib-samples", 4, "--calib-length", 32)
    options = ("--type", "int8", "--activations", "int8-dynamic", "--method", method, *data)
    report = cli("quantize", sources["plain"], output, *TO, *options, "--json").json()
    assert report["calibration"]["method"].startswith(method)
    assert settings_of(output)["config_groups"]["group_0"]["input_activations"]["dynamic"] is True
    assert divergence(cli, sources["plain"], output, text, "declared") < 0.01


def test_smoothquant_helps_where_channels_stick_out(
    sources: dict[str, Path], text: Path, tmp_path: Path, cli: Any
) -> None:
    options = ("--type", "int8-f32", "--activations", "int8-dynamic", *TO)
    data = ("--calib", text, "--calib-samples", 8, "--calib-length", 48)
    found = {}
    for name, more in {
        "rtn": (),
        "half": ("--method", "smoothquant", *data),
        "most": ("--method", "smoothquant", "--smoothquant-alpha", 0.8, *data),
    }.items():
        assert cli("quantize", sources["outliers"], tmp_path / name, *options, *more).code == 0
        found[name] = divergence(cli, sources["plain"], tmp_path / name, text, "declared")
    assert found["half"] < found["rtn"] / 10
    assert found["most"] < found["rtn"] / 10
    assert found["half"] != found["most"]


REFUSED = {
    "type": (["--type", "int4", *TO, "--activations", "int8-dynamic"], "supported: --type int8"),
    "kinds": (["--type", "int8", *TO, "--activations", "fp8"], "supported: --type fp8"),
    "target": (["--type", "int8", "--to", "hb", "--activations", "int8-dynamic"],
               "give --to hf:compressed-tensors or onnx"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, sources: dict[str, Path], tmp_path: Path, fails: Any) -> None:
    options, said = REFUSED[name]
    assert said in fails("quantize", sources["plain"], tmp_path / "out", *options)
    assert not list(tmp_path.iterdir())


def test_nothing_is_declared(sources: dict[str, Path], text: Path, fails: Any) -> None:
    plain = sources["plain"]
    options = ("--data", text, "--context", 64, "--activations", "declared")
    assert "declare none" in fails("verify", plain, plain, *options)
