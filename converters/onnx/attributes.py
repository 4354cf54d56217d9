"""AttributeProto as a value of the IR; graphs are left to the caller."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from halfbyte.converters.onnx.messages import AttributeMessage, Span
from halfbyte.converters.onnx.tensors import TensorReader
from halfbyte.converters.onnx.types import value_type
from halfbyte.errors import FormatError
from halfbyte.ir.dtypes import dtype_name
from halfbyte.ir.ops.spec import Attribute


class AttributeType(IntEnum):
    """AttributeProto.AttributeType."""

    UNDEFINED = 0
    FLOAT = 1
    INT = 2
    STRING = 3
    TENSOR = 4
    GRAPH = 5
    FLOATS = 6
    INTS = 7
    STRINGS = 8
    TENSORS = 9
    GRAPHS = 10
    SPARSE_TENSOR = 11
    SPARSE_TENSORS = 12
    TYPE_PROTO = 13
    TYPE_PROTOS = 14


HELD_IN = {
    AttributeType.FLOAT: "f",
    AttributeType.INT: "i",
    AttributeType.STRING: "s",
    AttributeType.TENSOR: "t",
    AttributeType.GRAPH: "g",
    AttributeType.FLOATS: "floats",
    AttributeType.INTS: "ints",
    AttributeType.STRINGS: "strings",
    AttributeType.TENSORS: "tensors",
    AttributeType.GRAPHS: "graphs",
    AttributeType.SPARSE_TENSOR: "sparse_tensor",
    AttributeType.SPARSE_TENSORS: "sparse_tensors",
    AttributeType.TYPE_PROTO: "tp",
    AttributeType.TYPE_PROTOS: "type_protos",
}
# What a scalar is when a writer left its default out.
ABSENT = {AttributeType.FLOAT: 0.0, AttributeType.INT: 0, AttributeType.STRING: ""}


def attribute_type(message: AttributeMessage) -> AttributeType:
    """Return the type that an attribute says, or, in files of 2017, the one that it holds."""
    if message.type:
        try:
            return AttributeType(message.type)
        except ValueError:
            return AttributeType.UNDEFINED
    for kind, name in HELD_IN.items():
        held = getattr(message, name)
        if held is not None and held != ():
            return kind
    return AttributeType.UNDEFINED


class AttributeReader:
    """Turns attribute messages of one file into values."""

    def __init__(self, tensors: TensorReader) -> None:
        """Take the reader of tensors."""
        self.tensors = tensors
        self.buffer = tensors.buffer

    def text(self, span: Span) -> str:
        """Return a byte string as text; bytes that are no UTF-8 survive as surrogates."""
        return self.buffer.take(span).decode("utf-8", "surrogateescape")

    def value(self, message: AttributeMessage) -> Any:
        """Return the value of an attribute that is no graph.

        Raises:
            FormatError: the type is unknown, or the value is not there.
        """
        kind = attribute_type(message)
        held = getattr(message, HELD_IN[kind]) if kind in HELD_IN else None
        if held is None:
            if kind in ABSENT:
                return ABSENT[kind]
            rule = f"attribute {message.name!r} of type {message.type} has no value"
            raise FormatError(self.buffer.path, rule, message.offset)
        return self._converted(kind, held)

    def _converted(self, kind: AttributeType, held: Any) -> Any:
        match kind:
            case AttributeType.STRING:
                return self.text(held)
            case AttributeType.STRINGS:
                return [self.text(span) for span in held]
            case AttributeType.TENSOR:
                return self.tensors.array(held)
            case AttributeType.TENSORS:
                return [self.tensors.array(tensor) for tensor in held]
            case AttributeType.SPARSE_TENSOR:
                return self.tensors.sparse(held).numpy()
            case AttributeType.SPARSE_TENSORS:
                return [self.tensors.sparse(tensor).numpy() for tensor in held]
            case AttributeType.TYPE_PROTO:
                return value_type(self.buffer, held).dtype
            case AttributeType.TYPE_PROTOS:
                return [value_type(self.buffer, entry).dtype for entry in held]
            case _:
                return list(held) if isinstance(held, (list, tuple)) else held


def adapted(value: Any, rule: Attribute | None) -> Any:
    """Return a value in the kind that the operator's table asks for: types by name."""
    if rule is None:
        return value
    if rule.kind == "dtype" and isinstance(value, int):
        return dtype_name(value)
    if rule.kind == "dtypes" and isinstance(value, list):
        return [dtype_name(entry) for entry in value]
    return value
