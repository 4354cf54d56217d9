"""The backend interface of ONNX: single nodes, models by order and by name, devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

import halfbyte.onnx_backend as backend
from halfbyte.errors import UnsupportedError

FLOAT = onnx.TensorProto.FLOAT


def model(op: str = "Sub", domain: str = "") -> onnx.ModelProto:
    inputs = [make_tensor_value_info(name, FLOAT, ["n"]) for name in "ab"]
    node = make_node(op, ["a", "b"], ["c"], domain=domain)
    graph = make_graph([node], "g", inputs, [make_tensor_value_info("c", FLOAT, ["n"])])
    opsets = [make_opsetid("", 18), *([make_opsetid(domain, 1)] if domain else [])]
    return make_model(graph, opset_imports=opsets)


def test_models_run_on_lists_and_on_names() -> None:
    a, b = np.float32([5, 7]), np.float32([1, 2])
    assert backend.run_model(model(), [a, b])[0].tolist() == [4, 5]
    prepared = backend.prepare(model(), "CPU", threads=1, fuse=False)
    assert prepared.run({"b": b, "a": a})[0].tolist() == [4, 5]
    assert prepared.session.threads == 1
    (single,) = backend.run_node(make_node("Neg", ["x"], ["y"]), [a])
    assert single.tolist() == [-5, -7]


def test_the_file_goes_when_the_model_does() -> None:
    prepared = backend.prepare(model())
    folder = Path(prepared._remove.peek()[2][0])
    assert (folder / "model.onnx").exists()
    prepared._remove()
    assert not folder.exists()


def test_single_nodes_of_any_opset_and_over_sequences() -> None:
    x = np.float32([[1, 2], [3, 4]])
    old = make_node("Squeeze", ["x"], ["y"], axes=[0])
    assert backend.run_node(old, [x[:1]], opset_version=9)[0].tolist() == [1, 2]
    at = make_node("SequenceAt", ["s", "i"], ["y"])
    assert backend.run_node(at, [[x, x[0]], np.asarray(1)])[0].tolist() == [1, 2]
    add = make_node("SequenceInsert", ["s", "x"], ["y"])
    (found,) = backend.run_node(add, [[], x])
    assert [v.tolist() for v in found] == [x.tolist()]


def test_devices_and_compatibility() -> None:
    assert backend.supports_device("CPU")
    assert not backend.supports_device("CUDA")
    assert backend.is_compatible(model())
    unknown = model("Frobnicate", "example.org")
    assert not backend.is_compatible(unknown)
    with pytest.raises(UnsupportedError, match="Frobnicate"):
        backend.prepare(unknown)
