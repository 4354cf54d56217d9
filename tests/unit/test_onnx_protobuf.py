"""The wire reader against the onnx package, and rule by rule."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from halfbyte.converters.onnx import messages
from halfbyte.converters.onnx.messages import FIELDS, Kind, Run, Span
from halfbyte.converters.onnx.protobuf import Buffer, numbers, parse, run_length
from halfbyte.errors import FormatError
from support.onnx_wire import attribute, blob, graph, model, node, number, varint

PROTOS = {
    messages.Pair: onnx.StringStringEntryProto,
    messages.TensorMessage: onnx.TensorProto,
    messages.SparseTensorMessage: onnx.SparseTensorProto,
    messages.DimensionMessage: onnx.TensorShapeProto.Dimension,
    messages.ShapeMessage: onnx.TensorShapeProto,
    messages.TensorTypeMessage: onnx.TypeProto.Tensor,
    messages.WrappedTypeMessage: onnx.TypeProto.Sequence,
    messages.TypeMessage: onnx.TypeProto,
    messages.ValueInfoMessage: onnx.ValueInfoProto,
    messages.AttributeMessage: onnx.AttributeProto,
    messages.NodeMessage: onnx.NodeProto,
    messages.GraphMessage: onnx.GraphProto,
    messages.OpsetMessage: onnx.OperatorSetIdProto,
    messages.FunctionMessage: onnx.FunctionProto,
    messages.ModelMessage: onnx.ModelProto,
}


@pytest.mark.parametrize("kind", PROTOS, ids=lambda kind: kind.__name__)
def test_field_numbers_are_those_of_onnx(kind: type) -> None:
    described = PROTOS[kind].DESCRIPTOR
    for number_, rule in FIELDS[kind].items():
        field = described.fields_by_name[rule.name]
        assert field.number == number_
        repeated = rule.kind in (Kind.INTS, Kind.FLOATS, Kind.TEXTS, Kind.MESSAGES)
        repeated |= rule.kind in (Kind.BYTES_LIST, Kind.RUNS)
        assert field.is_repeated == repeated, rule.name
        if rule.kind in (Kind.FLOAT, Kind.FLOATS, Kind.RUNS):
            width = {field.TYPE_DOUBLE: 8, field.TYPE_FLOAT: 4}.get(field.type, 0)
            assert rule.width == width, rule.name


def test_no_field_of_a_graph_is_forgotten() -> None:
    ignored = {"doc_string", "metadata_props", "quantization_annotation", "device_configurations"}
    for kind in (messages.NodeMessage, messages.GraphMessage, messages.AttributeMessage):
        names = {field.name for field in PROTOS[kind].DESCRIPTOR.fields}
        assert names - {rule.name for rule in FIELDS[kind].values()} <= ignored


def read(data: bytes) -> messages.ModelMessage:
    return parse(Path("m.onnx"), data)[1]


def test_model_as_the_onnx_package_writes_it() -> None:
    nodes = [
        helper.make_node("Add", ["x", "w"], ["s"], name="n", domain="d"),
        helper.make_node("Sum", ["s"], ["y"], ints=list(range(-2, 90)), f=0.5, s="text", i=-7),
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3], [1, 2, 3])
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    made = helper.make_model(
        helper.make_graph(nodes, "g", [info], [info], [weight]),
        producer_name="p",
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("d", 1)],
    )
    found = read(made.SerializeToString())
    assert (found.producer_name, found.ir_version) == ("p", made.ir_version)
    assert [(o.domain, o.version) for o in found.opset_import] == [("", 20), ("d", 1)]
    assert found.graph is not None
    first, second = found.graph.node
    assert (first.op_type, first.domain, first.name) == ("Add", "d", "n")
    assert (list(first.input), list(first.output)) == (["x", "w"], ["s"])
    held = {a.name: a for a in second.attribute}
    assert list(held["ints"].ints) == list(range(-2, 90))
    assert (held["f"].f, held["i"].i, held["f"].type) == (0.5, -7, 1)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31, 2**63 - 1, -1, -(2**63)])
def test_signed_numbers(value: int) -> None:
    assert read(number(1, value)).ir_version == value


@pytest.mark.parametrize("count", [0, 1, 3, 64, 65, 1000])
def test_packed_and_single_numbers_are_the_same(count: int) -> None:
    rng = np.random.default_rng(count)
    values = [
        int(v) >> int(s)
        for v, s in zip(rng.integers(-(2**62), 2**62, count), range(count), strict=True)
    ]
    values = [max(-(2**63), min(2**63 - 1, v)) for v in values]
    packed = attribute("a", 7, blob(8, *(varint(v) for v in values)))
    single = attribute("a", 7, *(number(8, v) for v in values))
    for held in (packed, single):
        found = read(model(graph([node("Op", ["x"], ["y"], held)])))
        assert found.graph is not None
        assert list(found.graph.node[0].attribute[0].ints) == values


def test_numbers_of_runs() -> None:
    data = b"".join(varint(v) for v in (5, -1, 2**40)) + struct.pack("<2f", 1.5, -2)
    buffer = Buffer(Path("x"), data)
    whole = Run(0, 0, [Span(0, len(data) - 8)])
    assert run_length(buffer, whole) == 3
    assert numbers(buffer, whole).tolist() == [5, -1, 2**40]
    floats = Run(0, 4, [Span(len(data) - 8, 4)], [len(data) - 4])
    assert numbers(buffer, floats).tolist() == [-2.0, 1.5]


def test_unknown_fields_of_every_wire_type_are_skipped() -> None:
    extra = number(999, 5) + blob(998, b"zz") + varint(997 << 3 | 1) + bytes(8)
    extra += varint(996 << 3 | 5) + bytes(4)
    found = read(extra + number(1, 8) + extra)
    assert found.ir_version == 8


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"\x08", "ends inside a number"),
        (b"\x08" + b"\x80" * 10, "more than 10 bytes"),
        (b"\x08" + b"\xff" * 9 + b"\x7f", "more than 64 bits"),
        (b"\x3a\x05ab", "a field needs 5 bytes, 2 are left"),
        (b"\x3a" + b"\xff" * 9 + b"\x01", "a field needs 18446744073709551615 bytes"),
        (b"\x00\x00", "field number 0"),
        (b"\x0a\x00", "ModelMessage.ir_version has wire type 2"),
        (b"\x38\x01", "ModelMessage.graph has wire type 0"),
        (b"\x7b", "wire type 3 is not part"),
        (b"\x7f", "wire type 7 is not part"),
        (b"\x7d\x00", "ends inside a number"),
        (b"\x3a\x00\x3a\x00", "ModelMessage.graph stands twice"),
    ],
)
def test_broken_rules_name_the_byte(data: bytes, rule: str) -> None:
    with pytest.raises(FormatError, match=rule) as caught:
        read(data)
    assert caught.value.offset is not None


def test_a_hundred_thousand_nodes_are_counted_against_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from halfbyte.converters.onnx import protobuf

    monkeypatch.setattr(protobuf, "MAX_MESSAGES", 50)
    with pytest.raises(FormatError, match="more than 50 messages"):
        read(model(graph([b""] * 60)))
