"""`quantize --activations int8-static` of language models into ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

import halfbyte
from halfbyte.ir.model import CALIBRATION_KEY
from support.model_folders import tiny_model, write_model

STATIC = ("--type", "int8", "--activations", "int8-static")
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


def divergence(cli: Any, first: Path, second: Path, text: Path) -> float:
    found = cli("verify", first, second, "--data", text, "--context", 64, "--chunks", 2, "--json")
    return float(found.json()["mean_kl"])


def pairs(path: Path) -> dict[str, tuple[float, int, str]]:
    """Return scale, zero point and dtype of what is quantized, by the name of the value."""
    graph = onnx.load(path).graph
    held = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (held[name] for name in node.input[1:3])
            found[node.input[0]] = float(scale), int(zero), zero.dtype.name
    return found


@pytest.mark.parametrize("to", ["onnx", "onnx:static"])
def test_a_file_rounds_what_its_weights_meet(
    to: str, sources: dict[str, Path], text: Path, data: Any, tmp_path: Path, cli: Any
) -> None:
    output, plain = tmp_path / "out.onnx", tmp_path / "plain.onnx"
    done = cli("quantize", sources["plain"], output, "--to", to, *STATIC, *data, "--json").json()
    assert any("ranges of 15 layers by mse, 8 samples" in line for line in done["warnings"])
    found = pairs(output)
    assert len(found) == 9  # q, k, v read one value, gate and up another
    assert {dtype for _, _, dtype in found.values()} == {"uint8"}
    assert all(scale > 0 and 0 <= zero <= 255 for scale, zero, _ in found.values())
    model = halfbyte.open(output)
    assert model.architecture == "llama"
    told = model.metadata[CALIBRATION_KEY]
    assert told["activations"] == {"mode": "int8-static", "ranges": "mse"}
    assert cli("quantize", sources["plain"], plain, "--to", to, "--type", "int8").code == 0
    for name, tensor in halfbyte.open(plain).weights.items():
        assert tensor.decode().tobytes() == model.weights[name].decode().tobytes()
    if to == "onnx":
        alone, rounded = (divergence(cli, sources["plain"], path, text) for path in (plain, output))
        assert 0 < alone < rounded < 0.05


def test_the_same_data_gives_the_same_file(
    sources: dict[str, Path], data: Any, tmp_path: Path, cli: Any
) -> None:
    made = []
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        folder.mkdir()
        options = (*STATIC, *data, "--threads", threads)
        assert cli("quantize", sources["plain"], folder / "m.onnx", *options).code == 0
        made.append([(folder / name).read_bytes() for name in ("m.onnx", "m.onnx.data")])
    assert made[0] == made[1]


def test_smoothquant_evens_out_what_is_rounded(
    sources: dict[str, Path], text: Path, data: Any, tmp_path: Path, cli: Any
) -> None:
    found = {}
    for name, more in {"plain": (), "smooth": ("--method", "smoothquant+gptq")}.items():
        output = tmp_path / f"{name}.onnx"
        assert cli("quantize", sources["outliers"], output, *STATIC, *data, *more).code == 0
        found[name] = divergence(cli, sources["plain"], output, text)
    assert found["smooth"] < found["plain"] / 10


@pytest.mark.parametrize("target", ["arm", "gpu"])
def test_targets(
    target: str, sources: dict[str, Path], data: Any, tmp_path: Path, cli: Any
) -> None:
    output, options = tmp_path / "m.onnx", ("--target", target, "--calibration-method", "minmax")
    assert cli("quantize", sources["plain"], output, *STATIC, *data, *options).code == 0
    found = pairs(output)
    assert {dtype for _, _, dtype in found.values()} == {"int8"}
    assert {zero for _, zero, _ in found.values()} == {0} or target == "arm"


REFUSED = {
    "data": ([*STATIC], "int8-static needs inputs to find ranges; give --calib"),
    "narrow": ([*STATIC, "--calib", "@text", "--target", "x86-avx2"], "supported: x86, arm, gpu"),
    "keep": ([*STATIC, "--calib", "@text", "--keep-float", "x"], "give --tensor GLOB=F32"),
    "nibbles": (
        [*STATIC, "--calib", "@text", "--to", "onnx:ort"],
        "give --type int8 and",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(
    name: str, sources: dict[str, Path], text: Path, tmp_path: Path, fails: Any
) -> None:
    options, said = REFUSED[name]
    given = [text if option == "@text" else option for option in options]
    if name == "nibbles":
        given += ["--calib-samples", 2, "--calib-length", 16]
    assert said in fails("quantize", sources["plain"], tmp_path / "out.onnx", *given)
    assert not list(tmp_path.iterdir())


def test_experts_are_refused(text: Path, tmp_path: Path, fails: Any) -> None:
    source = write_model(tiny_model("mixtral", 1, num_local_experts=2, **SIZES), tmp_path / "moe")
    said = fails("quantize", source, tmp_path / "m.onnx", *STATIC, "--calib", text)
    assert "the mixture of experts over" in said
