"""A graph run piece by piece over all samples, so that results can be changed on the way.

A piece ends where the next of some chosen values is made. Between pieces, the values that later
nodes read are held for every sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.runtime.session import Session

Array = NDArray[Any]


class Stream:
    """Runs a graph up to each of `stops`, values in the order in which they are made."""

    def __init__(
        self,
        graph: Graph,
        stops: Sequence[Value],
        samples: Sequence[Mapping[str, Array]],
        threads: int | None = None,
    ) -> None:
        """Take the graph, which must not change while it is run, and its inputs."""
        self.graph = graph
        self.stops = stops
        self.threads = threads
        inputs = {value.name: value for value in graph.inputs}
        self.held: list[dict[Value, Array]] = [
            {inputs[name]: np.asarray(array) for name, array in sample.items()}
            for sample in samples
        ]
        self._last = _last_reads(graph)

    def __iter__(self) -> Iterator[list[Array]]:
        """Yield the values of each stop for every sample; `put` may change them before the next."""
        done = 0
        for stop in self.stops:
            assert stop.producer is not None
            end = self.graph.position(stop.producer) + 1
            if end > done:
                self._run(self.graph.nodes[done:end], end, stop)
                done = end
            yield [held[stop] for held in self.held]
            self._forget(end, None)

    def put(self, stop: Value, arrays: Sequence[Array]) -> None:
        """Let later pieces read other values of a stop."""
        for held, array in zip(self.held, arrays, strict=True):
            held[stop] = array

    def _run(self, nodes: list[Node], end: int, stop: Value) -> None:
        piece, inputs, outputs = self._piece(nodes, end, stop)
        session = Session(piece, threads=self.threads)
        for held in self.held:
            results = session.run({value.name: held[value] for value in inputs if value in held})
            for value in outputs:
                held[value] = results[value.name]
        self._forget(end, stop)

    def _forget(self, end: int, stop: Value | None) -> None:
        for held in self.held:
            for value in [v for v in held if self._last.get(v, -1) < end and v is not stop]:
                del held[value]

    def _piece(
        self, nodes: list[Node], end: int, stop: Value
    ) -> tuple[Graph, list[Value], list[Value]]:
        """Return a graph of some nodes, and the values that go into it and come out of it."""
        made = {value for node in nodes for value in node.outputs}
        read = dict.fromkeys(v for node in nodes for v in node.inputs if v is not None)
        piece = Graph(opset=self.graph.opset)
        twins: dict[Value, Value] = {}
        inputs = [value for value in read if value not in made and value.constant is None]
        for value in inputs:
            shape = None if value.shape is None else tuple(value.shape)
            twin = Value(value.name, value.dtype, shape)
            piece.inputs.append(twin)
            twins[value] = twin
        for value in read:
            if value.constant is not None:
                twins[value] = piece.add_constant(value.constant, value.name, fixed=value.fixed)
                twins[value].dtype = value.dtype
        for node in nodes:
            for value in node.outputs:
                twins[value] = Value(value.name, value.dtype, value.shape)
            taken: list[Value | None] = [None if v is None else twins[v] for v in node.inputs]
            results = [twins[value] for value in node.outputs]
            twin_node = Node(
                node.op, taken, results, dict(node.attributes), node.domain, node.since_version
            )
            piece.insert(twin_node)
        outputs = [v for v in made if v is stop or self._last.get(v, -1) >= end]
        piece.outputs = [twins[value] for value in outputs]
        return piece, inputs, outputs


def _last_reads(graph: Graph) -> dict[Value, int]:
    """Return the place of the last node that reads each value."""
    found: dict[Value, int] = {}
    for place, node in enumerate(graph.nodes):
        for value in node.inputs:
            if value is not None:
                found[value] = place
    return found
