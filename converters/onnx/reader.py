"""An ONNX file as a model: weights by name, still on disk, and its graph.

Structure (names, order, places of data) is judged at once. What keeps a sound file from being run
(unknown operators, inconsistent shapes) is kept and raised when the graph is asked for, so that
any file can be inspected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from halfbyte.converters.onnx.contrib import is_contrib, lower_all
from halfbyte.converters.onnx.functions import Functions, opsets_of
from halfbyte.converters.onnx.graph_reader import GraphReader
from halfbyte.converters.onnx.language.reading import language_model, with_reason
from halfbyte.converters.onnx.messages import (
    GraphMessage,
    ModelMessage,
    SparseTensorMessage,
    TensorMessage,
    ValueInfoMessage,
)
from halfbyte.converters.onnx.operators import used_operators
from halfbyte.converters.onnx.profile import with_kinds
from halfbyte.converters.onnx.protobuf import Buffer, mapped, parse
from halfbyte.converters.onnx.scope import FreshNames, inner_graphs
from halfbyte.converters.onnx.tensors import TensorReader
from halfbyte.converters.onnx.type_filling import BROKEN, TypeFiller
from halfbyte.converters.onnx.types import read_type
from halfbyte.errors import FormatError, GraphError, HalfbyteError, UnsupportedError
from halfbyte.ir.graph import CANONICAL_OPSET, Graph
from halfbyte.ir.legality import check
from halfbyte.ir.model import Model, Provenance
from halfbyte.ir.passes import linear_from_matmul, upgrade
from halfbyte.ir.tensor import Tensor
from halfbyte.memory import collections_paused

NEWEST_IR = 14
# A Constant node of at least so many values is a weight like any initializer.
WEIGHT_VALUES = 1024


def read_model(path: Path) -> Model:
    """Return the model in an ONNX file; weights stay on disk, inline ones too.

    Raises:
        FormatError: the file, or a file of data beside it, breaks a rule.
    """
    try:
        with mapped(path) as data, collections_paused():
            buffer, message = parse(path, data)
            found = language_model(buffer, message)
            if isinstance(found, Model):
                facts = _metadata(buffer, message, opsets_of(message.opset_import) or {"": 1})
                del facts["metadata_props"]  # read into the model already
                whole = {**found.metadata, "onnx": facts}
                return replace(found, metadata=whole, stored_graph=partial(_stored_graph, path))
            return with_reason(_model(buffer, message), found)
    except RecursionError as error:
        raise FormatError(path, "nests graphs or calls too deep; simplify the model") from error


def read_graph_model(path: Path) -> Model:
    """Return the model in an ONNX file as a plain graph, even if it is a language model.

    Raises:
        FormatError: as `read_model`.
    """
    with mapped(path) as data, collections_paused():
        return _model(*parse(path, data))


def _stored_graph(path: Path) -> Graph:
    return read_graph_model(path).graph


def read_checksums(path: Path) -> dict[str, str]:
    """Return the SHA-1 that the file gives for its files of data, by path.

    Raises:
        FormatError: the file breaks a rule.
    """
    with mapped(path) as data:
        buffer, message = parse(path, data)
        reader = TensorReader(buffer)
        for tensor in _tensors(message):
            reader.tensor(tensor)
        return reader.checksums


def external_locations(path: Path) -> list[str]:
    """Return the names of the files of data that an ONNX file reads; they need not be there.

    Raises:
        FormatError: the file breaks a rule.
    """
    with mapped(path) as data:
        _, message = parse(path, data)
        found = {
            pair.value: None
            for tensor in _tensors(message)
            for pair in tensor.external_data
            if pair.key == "location"
        }
    return list(found)


def _tensors(message: ModelMessage) -> Iterator[TensorMessage]:
    """Yield the initializers of all graphs and the tensors that nodes hold."""
    groups = [function.node for function in message.functions]
    graphs = [] if message.graph is None else [message.graph]
    while graphs or groups:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            yield from _sparse_parts(graph.sparse_initializer)
            groups.append(graph.node)
        nodes = groups.pop()
        graphs += [graph for _, graph in inner_graphs(nodes)]
        for attribute in (held for node in nodes for held in node.attribute):
            yield from (t for t in (attribute.t, *attribute.tensors) if t is not None)
            yield from _sparse_parts((attribute.sparse_tensor, *attribute.sparse_tensors))


def _sparse_parts(tensors: Iterable[SparseTensorMessage | None]) -> Iterator[TensorMessage]:
    for tensor in tensors:
        if tensor is not None:
            yield from (part for part in (tensor.values, tensor.indices) if part is not None)


def _model(buffer: Buffer, message: ModelMessage) -> Model:
    if message.graph is None:
        buffer.fail("has no graph", message.offset)
    opsets = opsets_of(message.opset_import) or {"": 1}
    functions = Functions(buffer, message.functions, opsets)
    functions.check_size(message.graph.node)
    reader = GraphReader(TensorReader(buffer), functions)
    build: Callable[[Model], Graph]
    try:
        graph = _finished(reader, reader.graph(message.graph, opsets), opsets)
        weights = _weights(graph, reader)
        build = _Rebuilt(graph)
    except (UnsupportedError, GraphError) as error:
        weights = _stored_weights(reader)
        build = _Failing(error)
    return Model(
        weights,
        metadata={"onnx": _metadata(buffer, message, opsets)},
        provenance=Provenance("onnx", str(buffer.path)),
        build=build,
        warnings=(*_warnings(message), *reader.notes),
    )


def _finished(reader: GraphReader, graph: Graph, opsets: Mapping[str, int]) -> Graph:
    """Return the graph with types, newest operators and Linear nodes, checked."""
    where = str(reader.buffer.path)
    newer = opsets.get("", 1) > CANONICAL_OPSET
    if newer:
        what = f"opset {opsets['']}"
        raise UnsupportedError(what, where, [f"opsets 1 to {CANONICAL_OPSET}"], "export it lower")
    if reader.missing:
        found = ", ".join(f"{name} x{count}" for name, count in sorted(reader.missing.items()))
        raise UnsupportedError(f"operators {found}", where, advice="all others of the file are")
    types = TypeFiller(reader.buffer, reader.declared)
    try:
        types.fill(graph)
        reader.notes += types.contradictions()
        foreign = any(is_contrib(node) for inner in every_graph(graph) for node in inner.nodes)
        if foreign and lower_all(graph):
            types.fill(graph)
        if upgrade.apply(graph):
            types.fill(graph)
        linear_from_matmul.apply(graph)
        check(graph)
    except BROKEN as error:
        raise GraphError(graph.name, f"makes no sense ({error!r})") from error
    return graph


def every_graph(graph: Graph) -> Iterator[Graph]:
    """Yield a graph and all its subgraphs."""
    yield graph
    for inner in graph.subgraphs():
        yield from every_graph(inner)


def _is_weight(tensor: Tensor, reader: GraphReader) -> bool:
    return tensor.name in reader.initializers or tensor.size >= WEIGHT_VALUES


def _initializer_names(message: GraphMessage) -> frozenset[str]:
    sparse = {s.values.name for s in message.sparse_initializer if s.values is not None}
    return frozenset({tensor.name for tensor in message.initializer} | sparse)


def _named_apart(graph: Graph) -> dict[str, Tensor]:
    """Give tensors that share a name, as upgrades and views of stored ones do, names of their own.

    The first keeps its name: those of the file stand before those that were made.
    """
    held = [(inner, *item) for inner in every_graph(graph) for item in inner.constants.items()]
    named: dict[str, Tensor] = {}
    for _, _, tensor in held:
        named.setdefault(tensor.name, tensor)
    fresh_name = FreshNames(named)
    renamed: dict[int, Tensor] = {}
    for inner, place, tensor in held:
        if named[tensor.name] is tensor:
            continue
        if id(tensor) not in renamed:
            name = fresh_name(tensor.name)
            renamed[id(tensor)] = named[name] = tensor.renamed(name)
        inner.set_constant(place, renamed[id(tensor)])
    return named


def _weights(graph: Graph, reader: GraphReader) -> dict[str, Tensor]:
    """Return the stored tensors as the graph has them, in the order of the file."""
    made = _named_apart(graph)
    order = [*(name for name in reader.stored if name in made), *made]
    found = {name: made[name] for name in order if _is_weight(made[name], reader)}
    return with_kinds(found, every_graph(graph))


def _stored_weights(reader: GraphReader) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in reader.stored.items() if _is_weight(tensor, reader)}


class _Rebuilt:
    """Makes the graph of a model over the weights that the model has by then."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __call__(self, model: Model) -> Graph:
        """Return a copy of the graph over the model's weights."""
        with collections_paused():
            graph = self.graph.copy()
        for inner in every_graph(graph):
            for name, tensor in inner.constants.items():
                held = model.weights.get(tensor.name)
                if held is not None and held is not tensor:
                    inner.set_constant(name, held)
        return graph


class _Failing:
    """Says why there is no graph."""

    def __init__(self, error: HalfbyteError) -> None:
        self.error = error

    def __call__(self, model: Model) -> Graph:
        """Raise the error that reading met."""
        raise self.error


def _metadata(buffer: Buffer, message: ModelMessage, opsets: Mapping[str, int]) -> dict[str, Any]:
    graph = message.graph
    assert graph is not None
    stored = _initializer_names(graph)
    inputs = [info for info in graph.input if info.name not in stored]
    return {
        "ir_version": message.ir_version,
        "opset_import": dict(opsets),
        "producer_name": message.producer_name,
        "producer_version": message.producer_version,
        "domain": message.domain,
        "model_version": message.model_version,
        "doc_string": message.doc_string,
        "graph_name": graph.name,
        "metadata_props": {pair.key: pair.value for pair in message.metadata_props},
        "inputs": [_described(buffer, info) for info in inputs],
        "outputs": [_described(buffer, info) for info in graph.output],
        "operators": used_operators(graph.node, message.functions),
    }


def _described(buffer: Buffer, info: ValueInfoMessage) -> dict[str, Any]:
    kind = read_type(buffer, info.type)
    shape = None if kind.shape is None else list(kind.shape)
    return {"name": info.name, "dtype": kind.dtype or "", "shape": shape}


def _warnings(message: ModelMessage) -> tuple[str, ...]:
    found = []
    if message.ir_version > NEWEST_IR:
        found.append(f"IR version {message.ir_version} is newer than {NEWEST_IR}, read as that")
    return tuple(found)
