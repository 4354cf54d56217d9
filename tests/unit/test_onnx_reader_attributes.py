"""Attributes and declared types of ONNX files, kind by kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from halfbyte.converters.onnx.attributes import AttributeReader, adapted, attribute_type
from halfbyte.converters.onnx.messages import AttributeMessage
from halfbyte.converters.onnx.protobuf import Buffer
from halfbyte.converters.onnx.reader import read_model
from halfbyte.converters.onnx.tensors import TensorReader
from halfbyte.errors import FormatError
from halfbyte.ir.ops.spec import Attribute
from halfbyte.verification.inspection import describe
from support.onnx_wire import attribute, blob, floats, graph, model, node, number, tensor, value


def read(tmp_path: Path, proto: Any) -> Any:
    path = tmp_path / "attribute"
    path.write_bytes(proto.SerializeToString())
    buffer = Buffer(path, path.read_bytes())
    message = buffer.message(AttributeMessage, 0, buffer.size)
    return AttributeReader(TensorReader(buffer)).value(message)


@pytest.mark.parametrize(
    "value_", [1, -3, 0.5, "text", [1, 2], [0.5, 1.5], ["a", "b"], b"raw"], ids=repr
)
def test_plain_values(tmp_path: Path, value_: Any) -> None:
    wanted = value_.decode() if isinstance(value_, bytes) else value_
    found = read(tmp_path, helper.make_attribute("a", value_))
    assert (type(found), found) == (type(wanted), wanted)


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    assert read(tmp_path, helper.make_attribute("a", b"\xff")) == "\udcff"
    strings = onnx.AttributeProto(
        name="a", type=onnx.AttributeProto.STRINGS, strings=[b"\xfe", b""]
    )
    assert read(tmp_path, strings) == ["\udcfe", ""]


def test_tensors(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    proto = numpy_helper.from_array(array)
    np.testing.assert_array_equal(read(tmp_path, helper.make_attribute("a", proto)), array)
    found = read(tmp_path, helper.make_attribute("a", [proto, proto]))
    assert len(found) == 2
    np.testing.assert_array_equal(found[1], array)


def test_sparse_tensors(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "v")
    places = numpy_helper.from_array(np.array([1, 3], np.int64), "i")
    sparse = helper.make_sparse_tensor(values, places, [4])
    assert read(tmp_path, helper.make_attribute("a", sparse)).tolist() == [0, 5, 0, 7]
    kind = onnx.AttributeProto.SPARSE_TENSORS
    several = onnx.AttributeProto(name="a", type=kind, sparse_tensors=[sparse])
    assert read(tmp_path, several)[0].tolist() == [0, 5, 0, 7]


def test_types(tmp_path: Path) -> None:
    plain = helper.make_tensor_type_proto(TensorProto.FLOAT16, [1, 2])
    sequence = helper.make_sequence_type_proto(plain)
    wrapped = helper.make_optional_type_proto(sequence)
    assert read(tmp_path, helper.make_attribute("a", wrapped)) == "optional.sequence.float16"
    kind = onnx.AttributeProto.TYPE_PROTOS
    several = onnx.AttributeProto(name="a", type=kind, type_protos=[plain, sequence])
    assert read(tmp_path, several) == ["float16", "sequence.float16"]


@pytest.mark.parametrize(
    ("kind", "default"), [("FLOAT", 0.0), ("INT", 0), ("STRING", ""), ("INTS", [])]
)
def test_values_left_out_are_defaults(tmp_path: Path, kind: str, default: Any) -> None:
    proto = onnx.AttributeProto(name="a", type=getattr(onnx.AttributeProto, kind))
    assert read(tmp_path, proto) == default


def test_an_attribute_without_anything(tmp_path: Path) -> None:
    assert attribute_type(AttributeMessage()) == 0
    with pytest.raises(FormatError, match="has no value"):
        read(tmp_path, onnx.AttributeProto(name="a"))


def test_types_by_number_become_names() -> None:
    assert adapted(16, Attribute("dtype")) == "bfloat16"
    assert adapted([1, 7], Attribute("dtypes")) == ["float32", "int64"]
    assert adapted(16, Attribute("int")) == 16
    assert adapted(16, None) == 16


def open_graph(tmp_path: Path, inputs: list[Any], **more: Any) -> Any:
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Identity", [inputs[0].name], ["y"])]
    made = helper.make_graph(nodes, "g", inputs, [out])
    path = tmp_path / "m.onnx"
    opsets = [helper.make_opsetid("", 21)]
    path.write_bytes(helper.make_model(made, opset_imports=opsets, **more).SerializeToString())
    return read_model(path)


def test_declared_types_of_inputs(tmp_path: Path) -> None:
    plain = helper.make_tensor_type_proto(TensorProto.STRING, ["n", -1, None, 3])
    infos = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, []),
        helper.make_value_info("t", plain),
        helper.make_value_info("s", helper.make_sequence_type_proto(plain)),
        helper.make_value_info("o", helper.make_optional_type_proto(plain)),
        helper.make_tensor_value_info("u", TensorProto.INT8, None),
    ]
    found = {v.name: (v.dtype, v.shape) for v in open_graph(tmp_path, infos).graph.inputs}
    assert found == {
        "x": ("float32", ()),
        "t": ("string", ("n", "?", "?", 3)),
        "s": ("sequence.string", None),
        "o": ("optional.string", None),
        "u": ("int8", None),
    }


def test_a_newer_ir_version_is_a_problem_not_an_error(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [])
    found = open_graph(tmp_path, [info], ir_version=99)
    assert found.warnings == ("IR version 99 is newer than 14, read as that",)
    assert describe(found, "m").problems == list(found.warnings)


def test_a_sparse_constant_node(tmp_path: Path) -> None:
    values = tensor("", [1], floats(2.5))
    places = tensor("", [1], np.array([2], np.int64).tobytes(), 7)
    sparse = blob(1, values) + blob(2, places) + number(3, 4)
    constant = node("Constant", [], ["y"], attribute("sparse_value", 11, blob(22, sparse)))
    path = tmp_path / "m.onnx"
    path.write_bytes(model(graph([constant], [], (), (value("y", (4,)),))))
    found = read_model(path).graph
    assert found.constants["y"].numpy().tolist() == [0, 0, 2.5, 0]


def test_weights_that_are_text_or_complex_can_be_looked_at(tmp_path: Path) -> None:
    text = tensor("s", [2], None, 8, blob(6, "a"), blob(6, "b"))
    number_ = tensor("c", [1], np.array([np.inf + 1j], np.complex64).tobytes(), 14)
    path = tmp_path / "m.onnx"
    path.write_bytes(model(graph([node("Abs", ["x"], ["y"])], [text, number_])))
    found = describe(read_model(path), "m", read_weights=True)
    assert found.problems == ["tensor 'c' has 1 values that are not finite"]
