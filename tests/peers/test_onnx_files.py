"""The models that the onnx package brings along, read here and there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters import detect
from halfbyte.converters.onnx.reader import read_graph_model
from halfbyte.ir.dtypes import ONNX_DTYPES
from halfbyte.ir.legality import check
from halfbyte.ir.model import Model

onnx = pytest.importorskip("onnx", reason="the onnx package is not installed")
pytestmark = pytest.mark.peer

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
FILES = sorted(DATA.glob("*/*/model.onnx")) + sorted((DATA / "light").glob("*.onnx"))


def label(path: Path) -> str:
    return f"{path.parent.parent.name}-{path.parent.name}" if path.stem == "model" else path.stem


def nodes_of(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)


def typed(info: Any) -> tuple[str, list[Any] | None]:
    """Return dtype and dims as onnx has them; `?` for an open one."""
    kind = info.type.tensor_type
    if not kind.HasField("shape"):
        return ONNX_DTYPES[kind.elem_type], None
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim]
    return ONNX_DTYPES[kind.elem_type], dims


def compare_weights(model: Model, proto: Any) -> None:
    """Hold every initializer that the graph still has against onnx's own array."""
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert set(arrays) == {name for name in model.weights if name in arrays}
    for name, array in arrays.items():
        found = model.weights[name].numpy()
        turned = found.shape != array.shape or not np.array_equal(found, array, equal_nan=True)
        wanted = array.T if turned and array.ndim == 2 and array.shape[0] != 1 else array
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found.reshape(wanted.shape), wanted, err_msg=name)


def test_there_are_files() -> None:
    assert len(FILES) >= 149


@pytest.mark.parametrize("path", FILES, ids=label)
def test_facts_are_those_of_onnx(path: Path) -> None:
    proto = onnx.load(path)
    assert detect(path).name == "onnx"
    model = read_graph_model(path)
    said = model.metadata["onnx"]
    counts = Counter(
        f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in nodes_of(proto.graph)
    )
    assert said["operators"] == dict(counts)
    assert said["ir_version"] == proto.ir_version
    assert said["opset_import"] == {entry.domain: entry.version for entry in proto.opset_import}
    assert said["producer_name"] == proto.producer_name
    graph = model.graph
    check(graph)
    stored = {t.name for t in proto.graph.initializer}
    inputs = [info for info in proto.graph.input if info.name not in stored]
    assert [v.name for v in graph.inputs] == [info.name for info in inputs]
    assert [v.name for v in graph.outputs] == [info.name for info in proto.graph.output]
    for value, info in zip(graph.inputs, inputs, strict=True):
        if info.type.HasField("tensor_type"):
            dims = None if value.shape is None else list(value.shape)
            assert (value.dtype, dims) == typed(info)
        else:
            assert value.dtype is not None
            assert value.dtype.startswith(("sequence.", "optional."))
    compare_weights(model, proto)


def random_model(folder: Path, **options: Any) -> tuple[Path, Any]:
    """Return the path of a model saved by onnx, and its proto with all data."""
    rng = np.random.default_rng(11)
    arrays = {
        "w": rng.standard_normal((64, 48)).astype(np.float32),
        "v": rng.standard_normal((3, 5, 7)).astype(np.float16),
        "i": rng.integers(-9, 9, (33,)).astype(np.int64),
        "s": np.array(2.5, np.float64),
    }
    helper = onnx.helper
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 64])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    kept = onnx.ModelProto()
    kept.CopyFrom(proto)
    path = folder / "m.onnx"
    onnx.save_model(proto, str(path), **options)
    return path, kept


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("threshold", [0, 1024])
def test_external_data_of_onnx(tmp_path: Path, together: bool, threshold: int) -> None:
    path, proto = random_model(
        tmp_path,
        save_as_external_data=True,
        all_tensors_to_one_file=together,
        size_threshold=threshold,
        **({"location": "m.onnx.data"} if together else {}),
    )
    assert len(list(tmp_path.iterdir())) > 1
    compare_weights(read_graph_model(path), proto)


def test_inline_data_of_onnx(tmp_path: Path) -> None:
    path, proto = random_model(tmp_path)
    compare_weights(read_graph_model(path), proto)
