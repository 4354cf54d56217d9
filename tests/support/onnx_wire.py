"""ONNX files byte by byte, for tests that need what the onnx package would not write."""

from __future__ import annotations

import struct
from collections.abc import Sequence

FLOAT, INT64, STRING = 1, 7, 8
A_INT, A_TENSOR, A_GRAPH, A_INTS = 2, 4, 5, 7


def varint(value: int) -> bytes:
    """Return an unsigned varint; negative numbers as 64 bits."""
    value %= 1 << 64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    """Return a varint field."""
    return varint(field << 3) + varint(value)


def blob(field: int, *payload: bytes | str) -> bytes:
    """Return a length-delimited field."""
    whole = b"".join(p.encode() if isinstance(p, str) else p for p in payload)
    return varint(field << 3 | 2) + varint(len(whole)) + whole


def pair(key: str, value: str) -> bytes:
    """Return the content of a StringStringEntryProto."""
    return blob(1, key) + blob(2, value)


def tensor(
    name: str, dims: Sequence[int], raw: bytes | None = None, kind: int = FLOAT, *more: bytes
) -> bytes:
    """Return the content of a TensorProto."""
    data = b"" if raw is None else blob(9, raw)
    return (
        b"".join(number(1, d) for d in dims)
        + number(2, kind)
        + blob(8, name)
        + data
        + b"".join(more)
    )


def external(name: str, dims: Sequence[int], kind: int = FLOAT, **entries: str) -> bytes:
    """Return the content of a TensorProto whose data lies elsewhere."""
    pairs = [blob(13, pair(key, value)) for key, value in entries.items()]
    return tensor(name, dims, None, kind, number(14, 1), *pairs)


def attribute(name: str, kind: int, *content: bytes) -> bytes:
    """Return the content of an AttributeProto."""
    return blob(1, name) + number(20, kind) + b"".join(content)


def node(
    op: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *attributes: bytes,
    name: str = "",
    domain: str = "",
) -> bytes:
    """Return the content of a NodeProto."""
    edges = b"".join(blob(1, i) for i in inputs) + b"".join(blob(2, o) for o in outputs)
    held = b"".join(blob(5, a) for a in attributes)
    return edges + blob(3, name) + blob(4, op) + held + (blob(7, domain) if domain else b"")


def value(name: str, dims: Sequence[int | str] | None = (2,), kind: int = FLOAT) -> bytes:
    """Return the content of a ValueInfoProto of a tensor."""
    shape = b""
    if dims is not None:
        entries = [blob(2, d) if isinstance(d, str) else number(1, d) for d in dims]
        shape = blob(2, *(blob(1, entry) for entry in entries))
    return blob(1, name) + blob(2, blob(1, number(1, kind) + shape))


def graph(
    nodes: Sequence[bytes] = (),
    initializers: Sequence[bytes] = (),
    inputs: Sequence[bytes] = (value("x"),),
    outputs: Sequence[bytes] = (value("y"),),
    *more: bytes,
) -> bytes:
    """Return the content of a GraphProto."""
    parts = [blob(1, n) for n in nodes] + [blob(2, "g")] + [blob(5, t) for t in initializers]
    parts += [blob(11, i) for i in inputs] + [blob(12, o) for o in outputs]
    return b"".join(parts) + b"".join(more)


def opset(version: int, domain: str = "") -> bytes:
    """Return the content of an OperatorSetIdProto."""
    return blob(1, domain) + number(2, version)


def function(
    name: str, inputs: Sequence[str], outputs: Sequence[str], nodes: Sequence[bytes], *more: bytes
) -> bytes:
    """Return the content of a FunctionProto of domain `local`."""
    edges = b"".join(blob(4, i) for i in inputs) + b"".join(blob(5, o) for o in outputs)
    body = b"".join(blob(7, n) for n in nodes)
    return blob(1, name) + edges + body + blob(9, opset(21)) + blob(10, "local") + b"".join(more)


def model(content: bytes, *more: bytes, version: int = 21, ir: int = 10) -> bytes:
    """Return a file."""
    return number(1, ir) + blob(7, content) + blob(8, opset(version)) + b"".join(more)


def floats(*values: float) -> bytes:
    """Return float32 bytes."""
    return struct.pack(f"<{len(values)}f", *values)
