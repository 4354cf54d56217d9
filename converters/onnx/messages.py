"""The messages of an ONNX file that this reader keeps, with their field numbers and wire kinds.

Payloads (tensor values, byte strings) are not read: a `Span` says where they lie in the file.
Repeated fields are an empty tuple until the first element makes them a list: most are empty.

Source: onnx/onnx.proto (IR version 14).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class Span(NamedTuple):
    """Bytes [offset, offset + length) of the file."""

    offset: int
    length: int


class Kind(IntEnum):
    """How a field lies on the wire and what becomes of it. A plural kind is a list."""

    INT = 0
    FLOAT = 1
    TEXT = 2
    BYTES = 3
    MESSAGE = 4
    INTS = 5
    FLOATS = 6
    TEXTS = 7
    BYTES_LIST = 8
    MESSAGES = 9
    RUNS = 10


class FieldRule(NamedTuple):
    """Attribute of the message, kind, class of a nested message, bytes of a fixed-size number."""

    name: str
    kind: Kind
    message: type[Message] | None = None
    width: int = 0


@dataclass(slots=True)
class Message:
    """Any message; `offset` is where its content starts in the file."""

    offset: int = 0


@dataclass(slots=True)
class Pair(Message):
    """StringStringEntryProto."""

    key: str = ""
    value: str = ""


@dataclass(slots=True)
class Run(Message):
    """Numbers of a repeated field: whole packed runs, or single values one by one.

    width: bytes of one number, 0 for varints. singles: the file positions of unpacked numbers.
    """

    width: int = 0
    spans: list[Span] = field(default_factory=list)
    singles: list[int] = field(default_factory=list)


@dataclass(slots=True)
class TensorMessage(Message):
    """TensorProto."""

    dims: Sequence[int] = ()
    data_type: int = 0
    segment: Message | None = None
    name: str = ""
    runs: dict[str, Run] | None = None
    string_data: Sequence[Span] = ()
    raw_data: Span | None = None
    external_data: Sequence[Pair] = ()
    data_location: int = 0


@dataclass(slots=True)
class SparseTensorMessage(Message):
    """SparseTensorProto."""

    values: TensorMessage | None = None
    indices: TensorMessage | None = None
    dims: Sequence[int] = ()


@dataclass(slots=True)
class DimensionMessage(Message):
    """TensorShapeProto.Dimension."""

    dim_value: int | None = None
    dim_param: str = ""


@dataclass(slots=True)
class ShapeMessage(Message):
    """TensorShapeProto."""

    dim: Sequence[DimensionMessage] = ()


@dataclass(slots=True)
class TensorTypeMessage(Message):
    """TypeProto.Tensor and TypeProto.SparseTensor."""

    elem_type: int = 0
    shape: ShapeMessage | None = None


@dataclass(slots=True)
class WrappedTypeMessage(Message):
    """TypeProto.Sequence and TypeProto.Optional."""

    elem_type: TypeMessage | None = None


@dataclass(slots=True)
class TypeMessage(Message):
    """TypeProto."""

    tensor_type: TensorTypeMessage | None = None
    sequence_type: WrappedTypeMessage | None = None
    map_type: Message | None = None
    opaque_type: Message | None = None
    sparse_tensor_type: TensorTypeMessage | None = None
    optional_type: WrappedTypeMessage | None = None


@dataclass(slots=True)
class ValueInfoMessage(Message):
    """ValueInfoProto; the type is read when somebody asks for it."""

    name: str = ""
    type: Span | None = None


@dataclass(slots=True)
class AttributeMessage(Message):
    """AttributeProto. Scalars are None where the file has none."""

    name: str = ""
    ref_attr_name: str = ""
    type: int = 0
    f: float | None = None
    i: int | None = None
    s: Span | None = None
    t: TensorMessage | None = None
    g: GraphMessage | None = None
    sparse_tensor: SparseTensorMessage | None = None
    tp: TypeMessage | None = None
    floats: Sequence[float] = ()
    ints: Sequence[int] = ()
    strings: Sequence[Span] = ()
    tensors: Sequence[TensorMessage] = ()
    graphs: Sequence[GraphMessage] = ()
    sparse_tensors: Sequence[SparseTensorMessage] = ()
    type_protos: Sequence[TypeMessage] = ()


@dataclass(slots=True)
class NodeMessage(Message):
    """NodeProto."""

    input: Sequence[str] = ()
    output: Sequence[str] = ()
    name: str = ""
    op_type: str = ""
    domain: str = ""
    overload: str = ""
    attribute: Sequence[AttributeMessage] = ()


@dataclass(slots=True)
class GraphMessage(Message):
    """GraphProto."""

    node: Sequence[NodeMessage] = ()
    name: str = ""
    initializer: Sequence[TensorMessage] = ()
    sparse_initializer: Sequence[SparseTensorMessage] = ()
    doc_string: str = ""
    input: Sequence[ValueInfoMessage] = ()
    output: Sequence[ValueInfoMessage] = ()
    value_info: Sequence[ValueInfoMessage] = ()


@dataclass(slots=True)
class OpsetMessage(Message):
    """OperatorSetIdProto."""

    domain: str = ""
    version: int = 0


@dataclass(slots=True)
class FunctionMessage(Message):
    """FunctionProto."""

    name: str = ""
    input: Sequence[str] = ()
    output: Sequence[str] = ()
    attribute: Sequence[str] = ()
    attribute_proto: Sequence[AttributeMessage] = ()
    node: Sequence[NodeMessage] = ()
    opset_import: Sequence[OpsetMessage] = ()
    domain: str = ""
    overload: str = ""
    value_info: Sequence[ValueInfoMessage] = ()


@dataclass(slots=True)
class ModelMessage(Message):
    """ModelProto."""

    ir_version: int = 0
    producer_name: str = ""
    producer_version: str = ""
    domain: str = ""
    model_version: int = 0
    doc_string: str = ""
    graph: GraphMessage | None = None
    opset_import: Sequence[OpsetMessage] = ()
    metadata_props: Sequence[Pair] = ()
    functions: Sequence[FunctionMessage] = ()


def _text(name: str) -> FieldRule:
    return FieldRule(name, Kind.TEXT)


def _int(name: str) -> FieldRule:
    return FieldRule(name, Kind.INT)


def _one(name: str, message: type[Message]) -> FieldRule:
    return FieldRule(name, Kind.MESSAGE, message)


def _many(name: str, message: type[Message]) -> FieldRule:
    return FieldRule(name, Kind.MESSAGES, message)


def _texts(name: str) -> FieldRule:
    return FieldRule(name, Kind.TEXTS)


FIELDS: dict[type[Message], dict[int, FieldRule]] = {
    Message: {},
    Pair: {1: _text("key"), 2: _text("value")},
    TensorMessage: {
        1: FieldRule("dims", Kind.INTS),
        2: _int("data_type"),
        3: _one("segment", Message),
        4: FieldRule("float_data", Kind.RUNS, width=4),
        5: FieldRule("int32_data", Kind.RUNS),
        6: FieldRule("string_data", Kind.BYTES_LIST),
        7: FieldRule("int64_data", Kind.RUNS),
        8: _text("name"),
        9: FieldRule("raw_data", Kind.BYTES),
        10: FieldRule("double_data", Kind.RUNS, width=8),
        11: FieldRule("uint64_data", Kind.RUNS),
        13: _many("external_data", Pair),
        14: _int("data_location"),
    },
    SparseTensorMessage: {
        1: _one("values", TensorMessage),
        2: _one("indices", TensorMessage),
        3: FieldRule("dims", Kind.INTS),
    },
    DimensionMessage: {1: _int("dim_value"), 2: _text("dim_param")},
    ShapeMessage: {1: _many("dim", DimensionMessage)},
    TensorTypeMessage: {1: _int("elem_type"), 2: _one("shape", ShapeMessage)},
    WrappedTypeMessage: {1: _one("elem_type", TypeMessage)},
    TypeMessage: {
        1: _one("tensor_type", TensorTypeMessage),
        4: _one("sequence_type", WrappedTypeMessage),
        5: _one("map_type", Message),
        7: _one("opaque_type", Message),
        8: _one("sparse_tensor_type", TensorTypeMessage),
        9: _one("optional_type", WrappedTypeMessage),
    },
    ValueInfoMessage: {1: _text("name"), 2: FieldRule("type", Kind.BYTES)},
    AttributeMessage: {
        1: _text("name"),
        2: FieldRule("f", Kind.FLOAT, width=4),
        3: _int("i"),
        4: FieldRule("s", Kind.BYTES),
        5: _one("t", TensorMessage),
        6: _one("g", GraphMessage),
        7: FieldRule("floats", Kind.FLOATS, width=4),
        8: FieldRule("ints", Kind.INTS),
        9: FieldRule("strings", Kind.BYTES_LIST),
        10: _many("tensors", TensorMessage),
        11: _many("graphs", GraphMessage),
        14: _one("tp", TypeMessage),
        15: _many("type_protos", TypeMessage),
        20: _int("type"),
        21: _text("ref_attr_name"),
        22: _one("sparse_tensor", SparseTensorMessage),
        23: _many("sparse_tensors", SparseTensorMessage),
    },
    NodeMessage: {
        1: _texts("input"),
        2: _texts("output"),
        3: _text("name"),
        4: _text("op_type"),
        5: _many("attribute", AttributeMessage),
        7: _text("domain"),
        8: _text("overload"),
    },
    GraphMessage: {
        1: _many("node", NodeMessage),
        2: _text("name"),
        5: _many("initializer", TensorMessage),
        10: _text("doc_string"),
        11: _many("input", ValueInfoMessage),
        12: _many("output", ValueInfoMessage),
        13: _many("value_info", ValueInfoMessage),
        15: _many("sparse_initializer", SparseTensorMessage),
    },
    OpsetMessage: {1: _text("domain"), 2: _int("version")},
    FunctionMessage: {
        1: _text("name"),
        4: _texts("input"),
        5: _texts("output"),
        6: _texts("attribute"),
        7: _many("node", NodeMessage),
        9: _many("opset_import", OpsetMessage),
        10: _text("domain"),
        11: _many("attribute_proto", AttributeMessage),
        12: _many("value_info", ValueInfoMessage),
        13: _text("overload"),
    },
    ModelMessage: {
        1: _int("ir_version"),
        2: _text("producer_name"),
        3: _text("producer_version"),
        4: _text("domain"),
        5: _int("model_version"),
        6: _text("doc_string"),
        7: _one("graph", GraphMessage),
        8: _many("opset_import", OpsetMessage),
        14: _many("metadata_props", Pair),
        25: _many("functions", FunctionMessage),
    },
}
