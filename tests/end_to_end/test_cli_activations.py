"""`halfbyte quantize --activations`: refusals, with one line and no file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.onnx.output import lowered_graph
from halfbyte.converters.onnx.writer import write_graph
from support.integer_models import residual_net, samples

pytest.importorskip("onnx")
Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("net")
    model = residual_net()
    write_graph(lowered_graph(model.graph)[0], folder / "net.onnx")
    runs = [run["image"] for run in samples(model, 4)]
    np.savez(folder / "good.npz", image=np.concatenate(runs))
    np.savez(folder / "nan.npz", image=np.full_like(runs[0], np.nan))
    np.savez(folder / "name.npz", picture=runs[0])
    np.savez(folder / "shape.npz", image=runs[0][:, :2])
    (folder / "text.txt").write_text("to be or not to be\n" * 99)
    (folder / "empty").mkdir()
    return folder / "net.onnx"


STATIC = ("--type", "int8", "--activations", "int8-static")
REFUSED = {
    "no inputs": ([*STATIC], "needs inputs to find ranges; give --calib"),
    "nan": ([*STATIC, "--calib", "@nan.npz"], "array 'image' holds NaN or infinities"),
    "name": ([*STATIC, "--calib", "@name.npz"], "'picture' is no input of the model"),
    "shape": ([*STATIC, "--calib", "@shape.npz"], "'image' is 1x2x12x12, ?x3x12x12 was required"),
    "empty": ([*STATIC, "--calib", "@empty"], "holds no data that can be read"),
    "missing": ([*STATIC, "--calib", "@missing.npz"], "no such file"),
    "text": ([*STATIC, "--calib", "@text.txt"], "is a text, the model takes image"),
    "keep": ([*STATIC, "--calib", "@good.npz", "--keep-float", "x*"], "--keep-float 'x*'"),
    "method": ([*STATIC, "--calib", "@good.npz", "--method", "smoothquant"],
               "smoothquant+rtn with --activations int8-static of a graph without a cache"),
    "type": (["--type", "int4", *STATIC[2:], "--calib", "@good.npz"], "give --type int8"),
    "format": ([*STATIC, "--calib", "@good.npz", "--to", "hb"], "compressed-tensors or onnx"),
    "dynamic keep": (["--type", "int8", "--activations", "int8-dynamic", "--keep-float", "Conv"],
                     "give --tensor GLOB=F32"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, source: Path, tmp_path: Path, fails: Cli) -> None:
    options, said = REFUSED[name]
    placed = [o.replace("@", f"{source.parent}/") for o in options]
    assert said in fails("quantize", source, tmp_path / "out.onnx", *placed)
    assert not list(tmp_path.iterdir())


def test_a_model_becomes_integers(source: Path, tmp_path: Path, cli: Cli) -> None:
    output = tmp_path / "out.onnx"
    options = ["--calib", source.parent / "good.npz", "--calibration-method", "minmax"]
    options += ["--target", "arm", "--keep-float", "first"]
    done = cli("quantize", source, output, *STATIC, *options)
    assert done.code == 0, done.err
    assert "6 layers compute in integers, 1 kept float" in done.out + done.err
    assert output.is_file()
