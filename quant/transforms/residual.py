"""What reads and writes a decoder's residual stream, found from the graph.

The stream starts at the embedding and goes through additions. It is read by RMS normalizations of
which linear layers are the only readers, and written by tables and linear layers, whose products
may be weighted per token and summed over experts on the way. Whatever else touches it (a layer
normalization, which takes the mean away, an activation) makes a rotation inexact and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.quant.transforms.groups import EXPERT_LINEAR, LINEAR

WHERE = "rotate"
PASSING = frozenset({"Gather", "Identity", "Cast"})


@dataclass
class Stream:
    """Names of constants around a residual stream `width` wide.

    tables: embeddings. writers: weights whose rows add to the stream; biases: theirs. norms: scale
    of each normalization, with the weights whose columns meet it. tied: of these, tables as well.
    """

    width: int
    tables: dict[str, None] = field(default_factory=dict)
    writers: dict[str, None] = field(default_factory=dict)
    biases: dict[str, None] = field(default_factory=dict)
    norms: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tied: dict[str, None] = field(default_factory=dict)


def refuse(reason: str) -> UnsupportedError:
    """Return the error for a graph whose function would change."""
    advice = f"{reason}; leave `rotate` out of the method"
    return UnsupportedError("rotation of this model", WHERE, advice=advice)


def find_stream(graph: Graph) -> Stream:
    """Return the residual stream of a decoder.

    Raises:
        UnsupportedError: there is none, or something else than linear layers behind an RMS
            normalization reads it.
    """
    start = next((node for node in graph.nodes if _is_table(node)), None)
    width = start.outputs[0].shape[-1] if start is not None and start.outputs[0].shape else None
    if start is None or not isinstance(width, int):
        raise refuse("no table is looked up by token ids")
    return _Walk(graph, width).over(start)


def _is_table(node: Node) -> bool:
    table = node.inputs[0] if node.op == "Gather" and node.attributes.get("axis", 0) == 0 else None
    if table is None or table.constant is None or len(table.constant.shape) != 2:
        return False
    return node.inputs[1] is not None and node.inputs[1].constant is None


class _Walk:
    def __init__(self, graph: Graph, width: int) -> None:
        self.graph = graph
        self.found = Stream(width)
        self.stream: set[Value] = set()

    def over(self, start: Node) -> Stream:
        """Follow the stream from the table's node on."""
        self._written(start.outputs[0])
        for node in self.graph.nodes:
            touched = [value for value in node.inputs if value in self.stream]
            if touched:
                self._reader(node)
        if any(value in self.stream for value in self.graph.outputs):
            raise refuse("the residual stream itself is an output")
        if not self.found.norms:
            raise refuse("no RMS normalization reads the residual stream")
        for name in self.found.tables:
            for user, _ in self.graph.constant_value(name).uses:
                if not _is_table(user) and name not in self.found.tied:
                    raise refuse(f"{user.label} reads the table {name!r} too")
        return self.found

    def _reader(self, node: Node) -> None:
        if node.op == "Add":
            for value in node.inputs:
                assert value is not None
                if value not in self.stream:
                    self._written(value)
            self.stream.add(node.outputs[0])
        elif node.op == "RMSNormalization" and node.inputs[0] in self.stream:
            self._norm(node)
        elif self._passes(node):
            self.stream.add(node.outputs[0])
        elif node.op == "LayerNormalization":
            raise refuse(f"{node.label} takes the mean away, RMS normalizations are required")
        else:
            raise refuse(f"{node.label} reads the residual stream")

    def _passes(self, node: Node) -> bool:
        """Whether a node gives the stream on: at fewer positions, or all of it times a number."""
        if node.op == "Mul":
            return any(_is_number(value) for value in node.inputs)
        source = node.inputs[0]
        if source not in self.stream or source is None or node.op not in PASSING:
            return False
        rank = len(source.shape or ())
        return node.op != "Gather" or node.attributes.get("axis", 0) % max(rank, 1) != rank - 1

    def _norm(self, node: Node) -> None:
        scale, normed = node.inputs[1], node.outputs[0]
        if scale is None or scale.constant is None or len(scale.uses) != 1:
            raise refuse(f"{node.label} has no scale of its own")
        readers: dict[str, None] = {}
        for user, index in normed.uses:
            weight = user.inputs[1] if user.op in (LINEAR, EXPERT_LINEAR) and not index else None
            if weight is None or weight.constant is None:
                raise refuse(f"{user.label} reads what {node.label} makes")
            for other, _ in weight.uses:
                if other.inputs[0] is weight and _is_table(other):
                    self.found.tied[weight.name] = None
                elif other.inputs[0] is not normed:
                    raise refuse(f"weight {weight.name!r} meets several inputs")
            readers[weight.name] = None
        if normed in self.graph.outputs or not readers:
            raise refuse(f"{node.label} is not read by linear layers alone")
        self.found.norms[scale.name] = tuple(readers)

    def _written(self, value: Value) -> None:
        """Record what makes a value that is added to the stream."""
        node = value.producer
        if node is None or value in self.graph.outputs:
            raise refuse(f"{value.name!r} is added to the residual stream")
        if _is_table(node):
            assert node.inputs[0] is not None
            self.found.tables[node.inputs[0].name] = None
            self.stream.add(value)
            return
        if len(value.uses) != 1:
            raise refuse(f"{value.name!r} is added to the residual stream and read elsewhere")
        if node.op in (LINEAR, EXPERT_LINEAR):
            self._writer(node)
        elif node.op == "Add":
            for term in node.inputs:
                assert term is not None
                self._written(term)
        elif node.op == "Mul":
            self._written(_weighted(node, self.found.width))
        elif node.op == "ReduceSum" and _keeps_channels(node) and node.inputs[0] is not None:
            self._written(node.inputs[0])
        else:
            raise refuse(f"{node.label} is added to the residual stream")

    def _writer(self, node: Node) -> None:
        for index, names in ((1, self.found.writers), (2, self.found.biases)):
            if index == 2 and (node.op == EXPERT_LINEAR or len(node.inputs) < 3):
                break
            value = node.inputs[index]
            if value is None:
                continue
            if value.constant is None or len(value.uses) != 1:
                raise refuse(f"{node.label} has no {'weight' if index == 1 else 'bias'} of its own")
            names[value.name] = None


def _is_number(value: Value | None) -> bool:
    return value is not None and value.constant is not None and value.constant.size == 1


def _weighted(node: Node, width: int) -> Value:
    """Return the factor that has channels, where the other has one number for all of them."""
    first, second = node.inputs
    assert first is not None and second is not None
    for value, other in ((first, second), (second, first)):
        one = _is_number(other) or (other.shape is not None and other.shape[-1] == 1)
        if one and value.shape is not None and value.shape[-1] == width:
            return value
    raise refuse(f"{node.label} is added to the residual stream")


def _keeps_channels(node: Node) -> bool:
    """Whether a sum leaves the last axis."""
    axes = node.inputs[1].constant if len(node.inputs) > 1 and node.inputs[1] is not None else None
    source = node.inputs[0]
    if axes is None or source is None or source.shape is None:
        return False
    rank = len(source.shape)
    return all(int(axis) % rank != rank - 1 for axis in axes.numpy().reshape(-1))
