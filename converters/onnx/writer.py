"""Writing ONNX: any graph of standard and foreign operators, weights streamed.

The graph is checked by ONNX's own checker before a file gets its name. Constants lie inside the
file (up to INLINE_BYTES) or in one file beside it, `NAME.onnx.data`, at aligned offsets; either
way they are written piece by piece and are never in memory together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import halfbyte
from halfbyte.converters.format import Progress, WrittenTensor
from halfbyte.converters.onnx.external_data_writer import (
    Layout,
    external_layout,
    write_constants,
)
from halfbyte.converters.onnx.graph_proto import ProtoBuilder, tensor_proto, value_proto
from halfbyte.converters.onnx.initializers import Initializer
from halfbyte.converters.onnx.model_check import check_written, fill_output_types
from halfbyte.converters.onnx.opset_choice import (
    DEFAULT_DOMAINS,
    LOWEST_IR,
    every_graph,
    fitting_ir_version,
    fitting_opset,
)
from halfbyte.errors import UnsupportedError
from halfbyte.files import atomic_file
from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.legality import check

INLINE_BYTES = 1 << 30
PROTOBUF_BYTES = (1 << 31) - 1
DATA_ENDING = ".data"
SMALL_BYTES = 1024  # smaller constants stand in the graph even if there is a data file

_GRAPH_FIELD, _INITIALIZER_FIELD, _RAW_DATA_FIELD = 7, 5, 9


@dataclass
class _Entry:
    """A constant of the outermost graph: its proto, and what is to be streamed, if anything."""

    proto: Any
    streamed: Initializer | None


def write_graph(
    graph: Graph,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    doc: str = "",
    opset: int | None = None,
    ir_version: int | None = None,
    external: bool | None = None,
    companions: Mapping[str, bytes] | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> list[WrittenTensor]:
    """Write a graph of operators that ONNX files may hold; return one entry for each constant.

    graph: nodes of ai.onnx and of foreign domains (`com.microsoft`), taken as they are; constants
    are dense, of any ONNX dtype, and may be computed while they are read. Names of values stay.
    metadata: becomes metadata_props. opset, ir_version: what fits lowest, if not given.
    external: constants in `NAME.onnx.data`; None decides by size. companions: further files, by
    name, that appear in the same folder together with the model.

    Constants whose `data` parts are the same object, or `ReshapedPart`s over one object, share
    their bytes in the data file. A `TransposedPart` is transposed by blocks on its way out.

    Raises:
        UnsupportedError: an operator, type or form that ONNX cannot hold at this opset.
        GraphError: the graph breaks a rule; ONNX's checker or ours names it.
    """
    graph = graph.copy()
    if all(node.domain in DEFAULT_DOMAINS for part in every_graph(graph) for node in part.nodes):
        check(graph)
    _separate_outputs(graph)
    chosen = fitting_opset(graph, opset)
    builder = ProtoBuilder(graph, chosen)
    model = _model_proto(graph, chosen, ir_version, metadata or {}, doc)
    total = sum(constant.nbytes for constant in builder.constants)
    if external is None:
        external = total > INLINE_BYTES
    if not external and total > PROTOBUF_BYTES:
        raise UnsupportedError(f"{total} bytes of constants in one file", str(path), ["2 GiB"])
    entries = [_entry(constant) for constant in builder.constants]
    small = [entry.proto for entry in entries if entry.streamed is None]
    inputs = [_as_input(entry.streamed) for entry in entries if entry.streamed is not None]
    fill_output_types(model, builder.graph, small, inputs)
    check_written(model, builder.graph, small, inputs)
    with ExitStack() as stack:
        # The model comes first on the stack, so it gets its name last, when all else is there.
        stream = stack.enter_context(atomic_file(path))
        for name, raw in (companions or {}).items():
            stack.enter_context(atomic_file(path.with_name(name))).write(raw)
        if external:
            beside = path.with_name(path.name + DATA_ENDING)
            data = stack.enter_context(atomic_file(beside))
            layout = _described(entries, beside.name)
            places = [(constant, layout.offsets[constant.name]) for constant in layout.stored]
            write_constants(data, places, threads, progress)
            builder.graph.initializer.extend(entry.proto for entry in entries)
            model.graph.CopyFrom(builder.graph)
            stream.write(model.SerializeToString())
        else:
            _write_inline(stream, model, builder.graph, entries, threads, progress)
    return [
        WrittenTensor(c.name, c.name, str(c.tensor.encoding), c.nbytes) for c in builder.constants
    ]


def _separate_outputs(graph: Graph, captures: int | None = None) -> None:
    """Put an Identity, in place, where one value is two outputs, or a subgraph's is not its own."""
    foreign: set[Value] = set()
    if captures is not None:
        foreign.update(graph.inputs[len(graph.inputs) - captures :])
        foreign.update(graph.constant_value(name) for name in graph.constants)
    for index, value in enumerate(graph.outputs):
        if value in foreign:
            name = f"{value.name}.output"
            graph.outputs[index] = graph.add(
                "Identity", [value], name=name, dtype=value.dtype, shape=value.shape
            )
        foreign.add(value)
    for node in graph.nodes:
        for inner in graph.subgraphs([node]):
            _separate_outputs(inner, node.attributes.get("captures") or 0)


def _model_proto(
    graph: Graph, opset: int, ir_version: int | None, metadata: Mapping[str, str], doc: str
) -> Any:
    import onnx

    domains = {"": opset}
    for part in every_graph(graph):
        for node in part.nodes:
            if node.domain not in DEFAULT_DOMAINS:
                domains[node.domain] = max(domains.get(node.domain, 1), node.since_version)
    ir = fitting_ir_version(graph, opset) if ir_version is None else ir_version
    model = onnx.ModelProto(
        ir_version=max(ir, LOWEST_IR),
        producer_name="halfbyte",
        producer_version=halfbyte.__version__,
    )
    if doc:
        model.doc_string = doc
    for domain, version in domains.items():
        model.opset_import.add(domain=domain, version=version)
    for key, text in metadata.items():
        model.metadata_props.add(key=key, value=text)
    return model


def _entry(constant: Initializer) -> _Entry:
    streamed = not constant.is_text and constant.nbytes >= SMALL_BYTES
    return _Entry(tensor_proto(constant, data=not streamed), constant if streamed else None)


def _as_input(constant: Initializer) -> Any:
    return value_proto(constant.name, Value(constant.name, constant.dtype, constant.tensor.shape))


def _described(entries: Sequence[_Entry], location: str) -> Layout:
    """Return where constants lie in the data file, and say so in their protos."""
    from onnx import TensorProto

    layout = external_layout(e.streamed for e in entries if e.streamed is not None)
    for entry in entries:
        if entry.streamed is None:
            continue
        offset, length = layout.offsets[entry.streamed.name], entry.streamed.nbytes
        entry.proto.data_location = TensorProto.EXTERNAL
        for key, text in (("location", location), ("offset", offset), ("length", length)):
            entry.proto.external_data.add(key=key, value=str(text))
    return layout


def _write_inline(
    stream: IO[bytes],
    model: Any,
    graph: Any,
    entries: Sequence[_Entry],
    threads: int,
    progress: Progress | None,
) -> None:
    """Write one protobuf message by hand, so that constants pass through piece by piece."""
    head, body = model.SerializeToString(), graph.SerializeToString()
    frames = [_frame(entry) for entry in entries]
    sizes = [0 if entry.streamed is None else entry.streamed.nbytes for entry in entries]
    length = len(body) + sum(map(len, frames)) + sum(sizes)
    stream.write(head + _tag(_GRAPH_FIELD, length) + body)
    places = []
    position = stream.tell()
    for entry, frame, size in zip(entries, frames, sizes, strict=True):
        stream.seek(position)
        stream.write(frame)
        position += len(frame)
        if entry.streamed is not None:
            places.append((entry.streamed, position))
        position += size
    write_constants(stream, places, threads, progress)


def _frame(entry: _Entry) -> bytes:
    """Return what stands before the raw bytes of a constant, or the whole of a small one."""
    proto: bytes = entry.proto.SerializeToString()
    if entry.streamed is None:
        return _tag(_INITIALIZER_FIELD, len(proto)) + proto
    raw = _tag(_RAW_DATA_FIELD, entry.streamed.nbytes)
    whole = len(proto) + len(raw) + entry.streamed.nbytes
    return _tag(_INITIALIZER_FIELD, whole) + proto + raw


def _tag(field: int, length: int) -> bytes:
    """Return key and length of a length-delimited protobuf field."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
