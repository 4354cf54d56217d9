"""Declared activations in transformers, which rounds them through compressed-tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte import pipeline
from halfbyte.converters import read
from halfbyte.converters.hugging_face.input_scales import input_scales_of
from halfbyte.verification import declared_activations
from halfbyte.verification.declared_activations import with_declared
from support.checkpoint_folders import decoder
from support.model_folders import SAMPLE, outputs_of, write_model

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

IDS = [1, 5, 9, 100, 200, 33, 7, 250, 61, 18]
# Of the rounding's own size: codes may flip where float32 sums differ in the last bit.
FARTHEST = 0.2
# The scale of int8 is max|x| / 127.5 in compressed-tensors, max|x| / 127 in servers.
THEIRS = {"int": 127.5, "float": 448.0}


@pytest.mark.parametrize(
    ("type_name", "mode"),
    [
        ("fp8", "fp8"),
        ("int8", "int8-dynamic"),
        ("int8", "int8-static"),
        ("fp8", "fp8-static"),
        ("fp8-tensor", "fp8-static"),
    ],
)
def test_transformers_computes_the_same(
    tmp_path: Path, type_name: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declared_activations, "REACH", THEIRS)
    source, output = write_model(decoder(), tmp_path / "float"), tmp_path / "out"
    to, text = "hf:compressed-tensors", tmp_path / "text.txt"
    text.write_text(SAMPLE * 20, encoding="utf-8")
    data = {"calib": text, "calib_samples": 4, "calib_length": 64} if "static" in mode else {}
    pipeline.quantize(source, output, to=to, type=type_name, activations=mode, **data)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([IDS])).logits.numpy()
    model = read(output)
    modules = dict(theirs.named_modules())
    for name in (n for n in model.weights if n.endswith("_proj.weight")):
        held = modules[name.removesuffix(".weight")].weight.detach().float().numpy()
        np.testing.assert_array_equal(held, model.weights[name].decode())
    ours, plain = (
        next(iter(outputs_of(one, IDS).values()))
        for one in (with_declared(model, input_scales_of(model)), model)
    )
    rounding = np.sqrt(np.mean((ours - plain) ** 2))
    distance = np.sqrt(np.mean((ours - expected) ** 2))
    assert distance < FARTHEST * rounding
