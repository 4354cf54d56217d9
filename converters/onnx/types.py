"""TypeProto as dtype name and shape."""

from __future__ import annotations

from halfbyte.converters.onnx.messages import (
    DimensionMessage,
    ShapeMessage,
    Span,
    TensorTypeMessage,
    TypeMessage,
)
from halfbyte.converters.onnx.protobuf import Buffer
from halfbyte.errors import FormatError
from halfbyte.ir.dtypes import ONNX_DTYPES
from halfbyte.ir.graph import Dim
from halfbyte.ir.ops.spec import UNKNOWN, ValueType

# A type inside a value inside a graph inside the model.
TYPE_DEPTH = 4
UNTYPED = ValueType(None, None)


def read_type(buffer: Buffer, span: Span | None) -> ValueType:
    """Return the type that a value declares; what it leaves open is None or `?`.

    Raises:
        FormatError: the type is damaged or of a kind that tensors programs do not have.
    """
    if span is None:
        return UNTYPED
    end = span.offset + span.length
    message = buffer.message(TypeMessage, span.offset, end, TYPE_DEPTH)
    return value_type(buffer, message)


def value_type(buffer: Buffer, message: TypeMessage) -> ValueType:
    """Return dtype name and shape of a type message; composed types have no shape."""
    for prefix, wrapped in (
        ("sequence", message.sequence_type),
        ("optional", message.optional_type),
    ):
        if wrapped is not None:
            inner = UNTYPED
            if wrapped.elem_type is not None:
                inner = value_type(buffer, wrapped.elem_type)
            return ValueType(None if inner.dtype is None else f"{prefix}.{inner.dtype}", None)
    tensor = message.tensor_type or message.sparse_tensor_type
    return UNTYPED if tensor is None else _tensor_type(buffer, tensor)


def _tensor_type(buffer: Buffer, message: TensorTypeMessage) -> ValueType:
    number = message.elem_type
    if number and number not in ONNX_DTYPES:
        rule = f"element type {number} is unknown, known are 1 to 28"
        raise FormatError(buffer.path, rule, message.offset)
    shape = None if message.shape is None else _shape(buffer, message.shape)
    return ValueType(ONNX_DTYPES.get(number), shape)


def _shape(buffer: Buffer, message: ShapeMessage) -> tuple[Dim, ...]:
    return tuple(_dim(buffer, dim) for dim in message.dim)


def _dim(buffer: Buffer, message: DimensionMessage) -> Dim:
    if message.dim_value is None:
        return message.dim_param or UNKNOWN
    if message.dim_value < 0:
        # Some exporters write -1 for a dimension that is open.
        return UNKNOWN
    return message.dim_value
