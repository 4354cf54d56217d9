"""Values, nodes and graphs.

Operator names, attributes and since_version are ai.onnx's; domain `halfbyte` adds `Linear`,
`ExpertLinear` and `CachedAttention`. Nodes stand in topological order. Nodes are changed through
the graph's methods only, which keep producer and uses right.

A subgraph (an attribute of If, Loop, Scan, SequenceMap) sees nothing of the graph around it: what
it needs beyond its formal inputs are further inputs of the subgraph, fed by the last `captures`
inputs of the node (an attribute), in the same order. Each branch of If takes all captures.
Constants are not captured: each graph holds the tensors that it reads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from halfbyte.ir.tensor import Tensor

ONNX_DOMAIN = ""
HALFBYTE_DOMAIN = "halfbyte"
CANONICAL_OPSET = 28
# How far around its expected place a node is looked for, before the whole graph is searched.
REACHES = (16, 1024)

Dim = int | str


@dataclass(eq=False)
class Value:
    """A result or an input: name, dtype (a name of `dtypes.py`), shape of ints and symbols.

    fixed: a constant that is read in its own dtype; other floating constants are read in the dtype
    of the values they meet.
    """

    name: str
    dtype: str | None = None
    shape: tuple[Dim, ...] | None = None
    producer: Node | None = field(default=None, repr=False)
    constant: Tensor | None = field(default=None, repr=False)
    fixed: bool = False
    _uses: dict[tuple[Node, int], None] = field(default_factory=dict, repr=False)

    @property
    def uses(self) -> tuple[tuple[Node, int], ...]:
        """Return (node, input index) for every place that reads the value."""
        return tuple(self._uses)


@dataclass(frozen=True)
class Origin:
    """Where a node came from: file, byte offset if known, original name."""

    file: str
    name: str = ""
    offset: int | None = None


@dataclass(eq=False)
class Node:
    """One operation. `inputs` may hold None for an omitted optional input."""

    op: str
    inputs: list[Value | None]
    outputs: list[Value]
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ONNX_DOMAIN
    since_version: int = 1
    layer: int | None = None
    origin: Origin | None = None
    _place: int = field(default=0, init=False, repr=False)

    @property
    def label(self) -> str:
        """Return `domain.op` and the first output, for messages."""
        prefix = f"{self.domain}." if self.domain else ""
        target = self.outputs[0].name if self.outputs else "?"
        return f"{prefix}{self.op} -> {target!r}"


@dataclass(frozen=True)
class State:
    """Memory that outlives a run, owned by the session and written in place.

    shape: dims, where `capacity` stands for the positions held; `axis` is the position axis.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    axis: int
    window: int | None = None
    layer: int | None = None


@dataclass
class Graph:
    """Inputs, outputs, states, nodes in topological order and constants by name."""

    name: str = "main"
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    states: dict[str, State] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    opset: int = CANONICAL_OPSET
    _constants: dict[str, Value] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict, repr=False)
    _drift: int = field(default=0, init=False, repr=False)

    @property
    def constants(self) -> dict[str, Tensor]:
        """Return constant tensors by value name."""
        return {name: v.constant for name, v in self._constants.items() if v.constant is not None}

    def fresh_name(self, stem: str) -> str:
        """Return a value name not used yet, derived from `stem`."""
        count = self._names.get(stem, -1) + 1
        self._names[stem] = count
        return stem if count == 0 else self.fresh_name(f"{stem}.{count}")

    def add_input(self, name: str, dtype: str, shape: Sequence[Dim]) -> Value:
        """Add a graph input."""
        value = Value(self.fresh_name(name), dtype, tuple(shape))
        self.inputs.append(value)
        return value

    def add_state(self, state: State) -> State:
        """Add a state; nodes refer to it by name in their attributes."""
        self.states[state.name] = state
        return state

    def add_constant(
        self, tensor: Tensor, name: str | None = None, *, fixed: bool = False
    ) -> Value:
        """Return the value of a constant; the same name gives the same value."""
        name = tensor.name if name is None else name
        if name in self._constants and self._constants[name].constant is tensor:
            return self._constants[name]
        dtype = getattr(tensor.encoding, "dtype_name", "float32")
        value = Value(
            self.fresh_name(name), dtype, tuple(tensor.shape), constant=tensor, fixed=fixed
        )
        self._constants[value.name] = value
        return value

    def constant_value(self, name: str) -> Value:
        """Return the value that carries constant `name`."""
        return self._constants[name]

    def set_constant(self, name: str, tensor: Tensor) -> None:
        """Exchange the tensor of a constant; its uses stay."""
        self._constants[name].constant = tensor

    def remove_constant(self, name: str) -> None:
        """Drop a constant that nothing uses.

        Raises:
            ValueError: something does.
        """
        if self._constants[name].uses:
            raise ValueError(f"constant {name!r} is still used")
        del self._constants[name]

    def rename_constant(self, name: str, new: str) -> None:
        """Give a constant another name; the tensor keeps its own.

        Raises:
            ValueError: another value has the new name.
        """
        self.rename_constants({name: new})

    def rename_constants(self, names: Mapping[str, str]) -> None:
        """Give constants other names, all at once: one may take the name that another gives up.

        Raises:
            ValueError: another value has a new name, or two would get the same.
        """
        taken = {value.name for value in self.values()} - names.keys()
        for new in names.values():
            if new in taken:
                raise ValueError(f"name {new!r} is taken")
            taken.add(new)
        for value in [self._constants[name] for name in names]:
            value.name = names[value.name]
        self._constants = {value.name: value for value in self._constants.values()}

    def add(
        self,
        op: str,
        inputs: Sequence[Value | None],
        *,
        name: str | None = None,
        dtype: str | None = None,
        shape: Sequence[Dim] | None = None,
        domain: str = ONNX_DOMAIN,
        since_version: int = 1,
        layer: int | None = None,
        origin: Origin | None = None,
        **attributes: Any,
    ) -> Value:
        """Add a node with one output at the end and return that output."""
        out = Value(
            self.fresh_name(name or op.lower()), dtype, None if shape is None else tuple(shape)
        )
        node = Node(op, list(inputs), [out], attributes, domain, since_version, layer, origin)
        self.insert(node)
        return out

    def insert(self, node: Node, before: Node | None = None) -> Node:
        """Insert a complete node at the end or before another, linking producer and uses."""
        for index, value in enumerate(node.inputs):
            if value is not None:
                value._uses[node, index] = None
        for value in node.outputs:
            value.producer = node
        position = len(self.nodes) if before is None else self.position(before)
        node._place = position - self._drift
        self.nodes.insert(position, node)
        return node

    def position(self, node: Node) -> int:
        """Return the index of a node: near its old one, moved as far as the last one found was.

        Raises:
            ValueError: the graph does not hold the node.
        """
        guess = node._place + self._drift
        for reach in REACHES:
            span = max(0, guess - reach), max(0, guess + reach + 1)
            with contextlib.suppress(ValueError):
                found = self.nodes.index(node, *span)
                break
        else:
            found = self.nodes.index(node)
        self._drift = found - node._place
        return found

    def remove(self, node: Node) -> None:
        """Remove a node whose outputs are unused.

        Raises:
            ValueError: an output is used, or is an output of the graph.
        """
        for value in node.outputs:
            if value.uses or value in self.outputs:
                raise ValueError(f"{node.label} is still used")
        position = self.position(node)
        self._unlink(node)
        del self.nodes[position]

    def _unlink(self, node: Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None:
                del value._uses[node, index]
        for value in node.outputs:
            value.producer = None

    def set_input(self, node: Node, index: int, value: Value | None) -> None:
        """Exchange one input of a node."""
        old = node.inputs[index]
        if old is not None:
            del old._uses[node, index]
        node.inputs[index] = value
        if value is not None:
            value._uses[node, index] = None

    def replace_all_uses(self, old: Value, new: Value) -> None:
        """Let every reader of `old`, graph outputs included, read `new`."""
        for node, index in old.uses:
            self.set_input(node, index, new)
        self.outputs = [new if value is old else value for value in self.outputs]

    def values(self) -> Iterator[Value]:
        """Yield inputs, constants and node outputs."""
        yield from self.inputs
        yield from self._constants.values()
        for node in self.nodes:
            yield from node.outputs

    def segments(self) -> list[tuple[int | None, list[Node]]]:
        """Return runs of consecutive nodes with the same layer, in order."""
        found: list[tuple[int | None, list[Node]]] = []
        for node in self.nodes:
            if not found or found[-1][0] != node.layer:
                found.append((node.layer, []))
            found[-1][1].append(node)
        return found

    def subgraphs(self, nodes: Iterable[Node] | None = None) -> Iterator[Graph]:
        """Yield graphs held in node attributes (If, Loop, Scan)."""
        for node in self.nodes if nodes is None else nodes:
            for attribute in node.attributes.values():
                if isinstance(attribute, Graph):
                    yield attribute

    def copy(self) -> Graph:
        """Return an independent graph over the same tensors, subgraphs included."""
        twins: dict[Value, Value] = {}
        result = Graph(self.name, opset=self.opset, states=dict(self.states))
        for value in self.values():
            twins[value] = _twin_value(value)
        result._names = {value.name: 0 for value in twins}  # names of what is gone are free
        result.inputs = [twins[value] for value in self.inputs]
        result._constants = {name: twins[value] for name, value in self._constants.items()}
        for node in self.nodes:
            result.insert(_twin_of(node, twins))
        result.outputs = [twins[value] for value in self.outputs]
        return result

    def part(self, nodes: Iterable[Node], outputs: Sequence[Value], name: str = "part") -> Graph:
        """Return an independent graph of some nodes, in the order given, over the same tensors.

        What the nodes read and none of them makes, and is no constant, are its inputs.
        """
        result = Graph(name, opset=self.opset)
        twins: dict[Value, Value] = {}
        for node in nodes:
            for value in (*(v for v in node.inputs if v is not None), *node.outputs):
                if value not in twins:
                    twins[value] = _twin_value(value)
                    made = value.producer is node
                    if value.constant is not None:
                        result._constants[value.name] = twins[value]
                    elif not made:
                        result.inputs.append(twins[value])
            result.insert(_twin_of(node, twins))
            used = (node.attributes.get(key) for key in ("key_state", "value_state"))
            result.states |= {state: self.states[state] for state in used if state}
        result._names = {value.name: 0 for value in twins.values()}
        result.outputs = [twins[value] for value in outputs]
        return result

    def __str__(self) -> str:
        """Return stable text that `halfbyte.ir.text.parse` reads back."""
        from halfbyte.ir.text import print_graph

        return print_graph(self)


def _twin_value(value: Value) -> Value:
    return Value(value.name, value.dtype, value.shape, constant=value.constant, fixed=value.fixed)


def _twin_of(node: Node, twins: Mapping[Value, Value]) -> Node:
    """Return a node over other values, its subgraphs copied."""
    inputs = [None if value is None else twins[value] for value in node.inputs]
    outputs = [twins[value] for value in node.outputs]
    attributes = {
        name: held.copy() if isinstance(held, Graph) else held
        for name, held in node.attributes.items()
    }
    return replace(node, inputs=inputs, outputs=outputs, attributes=attributes)
