"""What differs between two models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from halfbyte import pipeline
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.verification.diff import ABSENT, compare
from support.gguf_models import write
from support.random_models import random_model


def changed(model: Model, name: str, values: np.ndarray) -> Model:
    old = model.weights[name]
    new = tensor_from_array(name, values).identified(old.key)
    return model.with_weights({**model.weights, name: new})


def test_same_models() -> None:
    found = compare(random_model("llama"), random_model("llama"))
    assert found.identical
    assert found.same_tensors == len(random_model("llama").weights)


def test_values_that_differ_are_counted_and_measured() -> None:
    model = random_model("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    values = model.weights[name].numpy().copy()
    values[3, 5] += 0.5
    values[4, 7] -= 0.25
    (found,) = compare(model, changed(model, name, values)).tensors
    assert (found.name, found.kind, found.first) == (name, "values", "float32")
    assert (found.blocks, found.differing_blocks) == (values.size, 2)
    assert found.max_abs_error == pytest.approx(0.5, rel=1e-6)
    norm = np.linalg.norm(model.weights[name].numpy().astype(np.float64))
    assert found.relative_error == pytest.approx(math.hypot(0.5, 0.25) / norm, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_an_infinite_error(bad: float) -> None:
    model = random_model("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    values = model.weights[name].numpy().copy()
    values[3, 5] = bad
    broken = changed(model, name, values)
    for first, second in ((model, broken), (broken, model)):
        (found,) = compare(first, second).tensors
        assert (found.differing_blocks, found.max_abs_error) == (1, math.inf)
    assert compare(broken, broken).identical
    more = values.copy()
    more[4, 4] += 1
    (found,) = compare(broken, changed(model, name, more)).tensors
    assert found.max_abs_error == pytest.approx(1)


def test_missing_tensors_and_shapes() -> None:
    model = random_model("llama")
    names = list(model.weights)
    fewer = model.with_weights({n: t for n, t in model.weights.items() if n != names[0]})
    (found,) = compare(model, fewer).tensors
    assert (found.name, found.kind, found.second) == (names[0], "missing", ABSENT)
    (found,) = compare(fewer, model).tensors
    assert (found.name, found.kind, found.first) == (names[0], "missing", ABSENT)
    wide = changed(model, names[1], np.zeros((2, 3), np.float32))
    (found,) = compare(model, wide).tensors
    assert found.kind == "shape"
    assert found.second == "float32 2x3"
    assert math.isnan(found.relative_error)


def test_settings() -> None:
    model = random_model("llama")
    other = replace(model, config={**model.config, "rope_theta": 5.0}, _graph=[])
    (entry,) = compare(model, other).entries
    assert (entry.section, entry.key, entry.second) == ("config", "rope_theta", "5.0")
    pairs = {"a": [1, 2, 3], "b": np.arange(4), "c": "x"}, {"a": [1, 9, 3], "b": np.arange(4)}
    first, second = compare(model, model, pairs).entries
    assert (first.first, first.second) == ("3 entries, [1] = 2", "3 entries, [1] = 9")
    assert (second.key, second.first, second.second) == ("c", "x", ABSENT)


def test_files_across_encodings_and_rotary_orders(tmp_path: Path) -> None:
    model = random_model("llama", hidden_size=64, intermediate_size=128)
    write(model, tmp_path / "plain.gguf", "F32")
    write(model, tmp_path / "small.gguf", "Q8_0")
    pipeline.convert(tmp_path / "plain.gguf", tmp_path / "folder")
    across = pipeline.diff(tmp_path / "folder", tmp_path / "plain.gguf")
    assert across.tensors == []  # rows of query and key lie in another order, values are the same
    found = pipeline.diff(tmp_path / "plain.gguf", tmp_path / "small.gguf")
    assert [entry.key for entry in found.entries if entry.section == "metadata"] == [
        "general.file_type"
    ]
    kinds = {tensor.kind for tensor in found.tensors}
    assert kinds == {"encoding"}
    assert all(0 < tensor.relative_error < 0.01 for tensor in found.tensors)
    report = found.to_json()
    assert report["identical"] is False
    assert report["same_tensors"] == found.same_tensors > 0
