"""Tensors of ONNX files: every type, every place, row by row."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from halfbyte.converters.onnx.format import ONNX
from halfbyte.converters.onnx.messages import TensorMessage
from halfbyte.converters.onnx.protobuf import Buffer
from halfbyte.converters.onnx.reader import read_model
from halfbyte.converters.onnx.tensors import TensorReader
from halfbyte.errors import FormatError
from halfbyte.ir.dtypes import ONNX_DTYPES, numpy_dtype
from halfbyte.ir.tensor import FilePart, Tensor
from support.onnx_wire import (
    FLOAT,
    attribute,
    blob,
    external,
    floats,
    graph,
    model,
    node,
    tensor,
    value,
)

NUMERIC = {n: name for n, name in ONNX_DTYPES.items() if name != "string"}


def save(path: Path, initializers: list[Any], **options: Any) -> Path:
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    made = helper.make_graph(nodes, "g", [info], [out], initializers)
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save_model(proto, str(path), **options)
    return path


def values_of(dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(7)
    kind = numpy_dtype(dtype)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if kind.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(kind)
    if dtype.startswith(("int", "uint")):
        low = 0 if dtype.startswith("u") else -2
        return rng.integers(low, 2, shape).astype(np.int64).astype(kind)
    return np.abs(rng.standard_normal(shape)).astype(np.float32).astype(kind)


def same(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> bool:
    return (
        found.dtype == wanted.dtype
        and found.shape == wanted.shape
        and np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(wanted).tobytes()
    )


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 3), (0, 4)], ids=str)
@pytest.mark.parametrize("number", NUMERIC, ids=NUMERIC.get)
def test_raw_data_of_every_type(tmp_path: Path, number: int, shape: tuple[int, ...]) -> None:
    array = values_of(NUMERIC[number], shape)
    proto = numpy_helper.from_array(array, "w")
    assert proto.data_type == number
    found = read_model(save(tmp_path / "m.onnx", [proto])).weights["w"]
    assert found.shape == shape
    assert same(found.numpy(), array)
    assert same(found.numpy(), numpy_helper.to_array(proto))


@pytest.mark.parametrize("shape", [(), (7,), (3, 5)], ids=str)
@pytest.mark.parametrize("number", NUMERIC, ids=NUMERIC.get)
def test_typed_fields_of_every_type(tmp_path: Path, number: int, shape: tuple[int, ...]) -> None:
    array = values_of(NUMERIC[number], shape)
    proto = helper.make_tensor("w", number, shape, array.reshape(-1).tolist())
    assert not proto.HasField("raw_data")
    found = read_model(save(tmp_path / "m.onnx", [proto])).weights["w"].numpy()
    assert same(found, numpy_helper.to_array(proto))


@pytest.mark.parametrize("number", [20, 21, 22, 23, 25, 26, 27, 28], ids=ONNX_DTYPES.get)
def test_row_ranges_of_packed_types(tmp_path: Path, number: int) -> None:
    array = values_of(ONNX_DTYPES[number], (11, 7))
    weights = read_model(save(tmp_path / "m.onnx", [numpy_helper.from_array(array, "w")])).weights
    for start in range(11):
        for stop in range(start, 12):
            assert same(weights["w"].decode(start, stop), array[start:stop])


def test_long_integer_lists_are_decoded_when_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from halfbyte.converters.onnx import tensors

    monkeypatch.setattr(tensors, "EAGER_NUMBERS", 4)
    array = np.arange(-50, 50, dtype=np.int64).reshape(10, 10)
    proto = helper.make_tensor("w", TensorProto.INT64, (10, 10), array.reshape(-1).tolist())
    found = read_model(save(tmp_path / "m.onnx", [proto])).weights["w"]
    assert same(found.decode(3, 6), array[3:6])
    assert same(found.numpy(), array)


def test_inline_and_typed_floats_stay_in_the_file(tmp_path: Path) -> None:
    array = values_of("float32", (64, 8))
    typed = helper.make_tensor("t", TensorProto.FLOAT, (64, 8), array.reshape(-1).tolist())
    path = save(tmp_path / "m.onnx", [numpy_helper.from_array(array, "r"), typed])
    for tensor_ in read_model(path).weights.values():
        part = tensor_.parts["data"]
        assert isinstance(part, FilePart)
        assert part.path == path
        assert same(tensor_.numpy(), array)


def test_strings(tmp_path: Path) -> None:
    proto = helper.make_tensor(
        "s", TensorProto.STRING, [2, 2], [b"a", b"\xff\x00z", "ä".encode(), b""]
    )
    found = read_model(save(tmp_path / "m.onnx", [proto])).weights["s"].numpy()
    assert found.dtype == object
    assert found.tolist() == [["a", "\udcff\x00z"], ["ä", ""]]


@pytest.mark.parametrize("flat", [True, False])
def test_sparse_tensors_are_filled_while_read(tmp_path: Path, flat: bool) -> None:
    dense = np.zeros((4, 3, 5), np.float32)
    places = [(0, 0, 1), (1, 2, 4), (3, 0, 0)]
    for index, place in enumerate(places):
        dense[place] = index + 1
    values = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w")
    rows = np.array(places, np.int64)
    indices = np.ravel_multi_index(tuple(rows.T), dense.shape).astype(np.int64) if flat else rows
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "i"), [4, 3, 5])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 3, 5])
    made = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x],
                             [helper.make_tensor_value_info("y", 1, None)],
                             sparse_initializer=[sparse])  # fmt: skip
    path = tmp_path / "m.onnx"
    onnx.save_model(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)]), path)
    found = read_model(path).weights["w"]
    assert same(found.numpy(), dense)
    assert same(found.decode(2, 7), dense.reshape(12, 5)[2:7])


@pytest.mark.parametrize("number", [1, 9, 10, 16, 22, 27], ids=ONNX_DTYPES.get)
def test_external_data(tmp_path: Path, number: int) -> None:
    arrays = {f"w{i}": values_of(ONNX_DTYPES[number], (9, 7 + i)) for i in range(3)}
    protos = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    path = save(tmp_path / "m.onnx", protos, save_as_external_data=True, size_threshold=0,
                location="m.data")  # fmt: skip
    weights = read_model(path).weights
    assert list(weights) == list(arrays)
    for name, array in arrays.items():
        assert same(weights[name].numpy(), array)


def external_model(folder: Path, **entries: str) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(
        model(graph([node("Add", ["x", "w"], ["y"])], [external("w", [2], FLOAT, **entries)]))
    )
    return path


def test_hub_cache_layout(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc" / "onnx"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    made = external_model(tmp_path, location="m.onnx_data")
    made.rename(blobs / "1234")
    (blobs / "5678").write_bytes(floats(1, 2))
    (snapshot / "m.onnx").symlink_to("../../../blobs/1234")
    (snapshot / "m.onnx_data").symlink_to("../../../blobs/5678")
    found = read_model(snapshot / "m.onnx").weights["w"].numpy()
    assert found.tolist() == [1, 2]


def test_data_beside_the_real_model(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "data").write_bytes(floats(3, 4))
    made = external_model(tmp_path / "real", location="data")
    (tmp_path / "linked.onnx").symlink_to(made)
    assert read_model(tmp_path / "linked.onnx").weights["w"].numpy().tolist() == [3, 4]


def test_checksum_of_external_data(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(floats(3, 4))
    good = hashlib.sha1(floats(3, 4)).hexdigest()
    path = external_model(tmp_path, location="data", checksum=good.upper())
    ONNX.verify_content(path, 1)
    (tmp_path / "data").write_bytes(floats(3, 5))
    with pytest.raises(FormatError, match=f"the model says {good.upper()}; copy it again"):
        ONNX.verify_content(path, 1)


def test_checksum_of_a_constant_in_a_branch(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(floats(3, 4))
    held = attribute("value", 4, blob(5, external("", [2], location="data", checksum="0" * 40)))
    branch = graph([node("Constant", [], ["b"], held)], [], (), (value("b"),))
    branches = [attribute(n, 5, blob(6, branch)) for n in ("then_branch", "else_branch")]
    path = tmp_path / "m.onnx"
    path.write_bytes(model(graph([node("If", ["x"], ["y"], *branches)])))
    with pytest.raises(FormatError, match="the model says 0000"):
        ONNX.verify_content(path, 1)


def test_constant_in_a_tensor_reader_is_named() -> None:
    data = tensor("w", [2], floats(1, 2))
    buffer = Buffer(Path("m.onnx"), data)
    message = buffer.message(TensorMessage, 0, len(data))
    with pytest.raises(FormatError, match="m.onnx"):
        found: Tensor = TensorReader(buffer).tensor(message, "other")
        assert (found.name, found.shape) == ("other", (2,))
        found.numpy()


def test_raw_bool_bytes_other_than_one(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(
        model(graph([node("Identity", ["x"], ["y"])], [tensor("w", [4], bytes([0, 1, 2, 255]), 9)]))
    )
    found = read_model(path).weights["w"].numpy()
    assert found.view(np.uint8).tolist() == [0, 1, 1, 1]
