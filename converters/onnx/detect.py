"""Whether a file is an ONNX model. The format has no magic: the outermost message is judged."""

from __future__ import annotations

from pathlib import Path

from halfbyte.converters.onnx.messages import FIELDS, GraphMessage, Kind, ModelMessage
from halfbyte.converters.onnx.protobuf import BYTES, VARINT, Buffer, mapped
from halfbyte.errors import FormatError

# Fields that are not kept but may stand in a file: training_info, configuration.
OTHER_FIELDS = frozenset({20, 26})
GRAPH_FIELDS = frozenset({*FIELDS[GraphMessage], 14, 16})
GRAPH, IR_VERSION = 7, 1
MAX_IR_VERSION = 1000
MAX_FIELDS = 100_000


def is_onnx(path: Path) -> bool:
    """Whether the outermost fields are those of a ModelProto, up to a graph or the end.

    A file that is cut off inside its graph counts, so that the reader can say so.
    """
    if not path.is_file():
        return False
    try:
        with mapped(path) as data:
            return _has_graph(Buffer(path, data))
    except FormatError:
        return False


def _has_graph(buffer: Buffer) -> bool:
    at = 0
    for _ in range(MAX_FIELDS):
        if at >= buffer.size:
            return False
        tag, at = buffer.varint(at, buffer.size)
        number, wire = tag >> 3, tag & 7
        rule = FIELDS[ModelMessage].get(number)
        expected = VARINT if rule is not None and rule.kind is Kind.INT else BYTES
        if (rule is None and number not in OTHER_FIELDS) or wire != expected:
            return False
        if number == GRAPH:
            return _starts_like_graph(buffer, at)
        if number == IR_VERSION and buffer.varint(at, buffer.size)[0] > MAX_IR_VERSION:
            return False
        at = buffer.skip(tag, at, buffer.size)
    return False


def _starts_like_graph(buffer: Buffer, at: int) -> bool:
    """Whether a graph of some length starts with a delimited field that graphs have."""
    length, at = buffer.varint(at, buffer.size)
    if not length or at == buffer.size:
        return at == buffer.size
    tag = buffer.varint(at, buffer.size)[0]
    return tag & 7 == BYTES and tag >> 3 in GRAPH_FIELDS
