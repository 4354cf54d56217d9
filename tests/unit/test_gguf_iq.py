"""GGUF files of IQ types: listed, run, copied byte for byte, made float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from halfbyte.converters.format import WriteOptions
from halfbyte.converters.gguf.container import read_container
from halfbyte.converters.gguf.format import GGUF
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import Tensor
from halfbyte.kernels.codebooks import GRID_KINDS
from halfbyte.runtime.session import Session
from support.encoded import encoded
from support.gguf_models import fitted, read, write
from support.random_models import random_model

IDS = np.array([[3, 1, 4, 1, 5, 9]], np.int64)


def in_type(model: Model, name: str) -> Model:
    """Return the model with all matrices that llama.cpp would quantize in one type."""

    def changed(tensor: Tensor) -> Tensor:
        if len(tensor.shape) != 2 or tensor.columns % 256:
            return tensor
        made = encoded(name, tensor.rows, tensor.columns, seed=tensor.rows)
        return replace(tensor, encoding=made.encoding, parts=made.parts)

    return replace(model, weights={key: changed(t) for key, t in model.weights.items()})


def logits(model: Model, device: str) -> np.ndarray:
    return Session(model, device).run({"input_ids": IDS})["logits"]


@pytest.mark.parametrize("name", GRID_KINDS)
def test_a_file_is_listed_run_copied_and_decoded(name: str, tmp_path: Path) -> None:
    source = random_model("llama", hidden_size=256, intermediate_size=256)
    path = tmp_path / "m.gguf"
    GGUF.write(fitted(in_type(source, name)), path, WriteOptions(threads=1))
    kinds = [tensor.kind.name for tensor in read_container(path).tensors]
    assert kinds.count(name) >= 7
    model = read(path)
    write(model, tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == path.read_bytes()
    write(model, tmp_path / "f32.gguf", "F32")
    plain = read(tmp_path / "f32.gguf")
    assert {str(t.encoding) for t in plain.weights.values()} == {"float32"}
    for key, tensor in model.weights.items():
        np.testing.assert_array_equal(plain.weights[key].decode(), tensor.float32())
    expected = logits(plain, "reference")
    np.testing.assert_array_equal(logits(model, "reference"), expected)
    limit = 1e-4 * np.abs(expected).max()
    assert np.abs(logits(model, "cpu") - expected).max() < limit
