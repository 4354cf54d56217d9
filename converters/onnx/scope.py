"""Names of an ONNX graph: what they stand for, and what subgraphs take from outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from halfbyte.converters.onnx.messages import (
    AttributeMessage,
    FunctionMessage,
    GraphMessage,
    NodeMessage,
)
from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.tensor import Tensor

FunctionKey = tuple[str, str, str]
Bound = Value | Tensor | None


def standard_domain(domain: str) -> str:
    """Return a domain; `ai.onnx` is the empty one."""
    return "" if domain == "ai.onnx" else domain


def function_key(message: NodeMessage | FunctionMessage) -> FunctionKey:
    """Return domain, name and overload by which nodes call a function."""
    name = message.name if isinstance(message, FunctionMessage) else message.op_type
    return standard_domain(message.domain), name, message.overload


@dataclass(frozen=True)
class Program:
    """What all nodes of one graph or function body share.

    opsets: version by domain. attributes: those of the call, for references; None outside of
    functions. calls: the functions being inlined, outermost first.
    """

    opsets: Mapping[str, int]
    attributes: Mapping[str, Given] | None = None
    calls: tuple[FunctionKey, ...] = ()


@dataclass
class Scope:
    """Names of one graph or function body over those of the graphs around it.

    names: a value, a stored tensor, or None for an input that the caller left out. prefix: put
    before the names of values, so that an inlined body does not meet the names around it.
    results: names that outputs of an inlined body have outside. layer: of the calling node.
    """

    graph: Graph
    program: Program
    names: dict[str, Bound] = field(default_factory=dict)
    parent: Scope | None = None
    prefix: str = ""
    results: Mapping[str, str] = field(default_factory=dict)
    layer: int | None = None

    def holder(self, name: str) -> Scope | None:
        """Return the innermost scope that defines a name."""
        scope: Scope | None = self
        while scope is not None and name not in scope.names:
            scope = scope.parent
        return scope

    def find(self, name: str) -> Bound:
        """Return what a defined name stands for."""
        scope = self.holder(name)
        return None if scope is None else scope.names[name]


@dataclass(frozen=True)
class Given:
    """An attribute as a node has it, and the scope in which a graph that it holds finds names.

    That of a reference, in a function's body, is where the function is called.
    """

    message: AttributeMessage
    scope: Scope


def inner_graphs(nodes: Iterable[NodeMessage]) -> Iterable[tuple[NodeMessage, GraphMessage]]:
    """Yield the subgraphs that nodes hold, with their node."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.g is not None:
                yield node, attribute.g
            for graph in attribute.graphs:
                yield node, graph


class FreeNames:
    """The names that a graph reads and does not define, in order of first use; each found once."""

    def __init__(self) -> None:
        """Start without any."""
        self._known: dict[int, tuple[str, ...]] = {}

    def of(self, graph: GraphMessage) -> tuple[str, ...]:
        """Return the free names of a subgraph, those of its own subgraphs included."""
        if id(graph) not in self._known:
            self._known[id(graph)] = self._search(graph)
        return self._known[id(graph)]

    def read_by(self, node: NodeMessage) -> Sequence[str]:
        """Return the names that a node reads, through its subgraphs too."""
        names = [name for name in node.input if name]
        for _, graph in inner_graphs([node]):
            names += self.of(graph)
        return names

    def _search(self, graph: GraphMessage) -> tuple[str, ...]:
        own = {value.name for value in graph.input}
        own |= {tensor.name for tensor in graph.initializer}
        own |= {s.values.name for s in graph.sparse_initializer if s.values is not None}
        for node in graph.node:
            own.update(node.output)
        free: dict[str, None] = {}
        for node in graph.node:
            free.update(dict.fromkeys(n for n in self.read_by(node) if n not in own))
        free.update(dict.fromkeys(v.name for v in graph.output if v.name not in own))
        return tuple(name for name in free if name)


class FreshNames:
    """Gives each name once; one that is taken gets a number behind it."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        """Start with names that are taken."""
        self._counts = dict.fromkeys(taken, 0)

    def __call__(self, stem: str) -> str:
        """Return a name that was not given yet."""
        name = stem
        while name in self._counts:
            self._counts[stem] += 1
            name = f"{stem}.{self._counts[stem]}"
        self._counts[name] = 0
        return name
