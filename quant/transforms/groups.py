"""Groups: linear layers that read one value, and what makes it and can take a factor per channel.

Found from the operations, not from names. With a divisor d per channel of x, the columns of all
weights that read x are multiplied by d, and the source divides what it makes by d:

- the scale (and shift) of a normalization, or a constant vector that multiplies or is added;
- the rows of a linear layer, seen through multiplication by something else (a gated feed-forward),
  through activations with f(c x) = c f(x) for c > 0, through a split, and through the values of an
  attention. There query heads that share a value head share its divisors.

A value that anything else reads too has no source, nor has one made by other operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.graph import Graph, Node, Value

LINEAR, EXPERT_LINEAR = "Linear", "ExpertLinear"
NORMS = frozenset({"RMSNormalization", "LayerNormalization"})
HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "Identity", "Dropout"})


class NoSource(Exception):  # noqa: N818
    """Why a value has no source."""


@dataclass(frozen=True)
class Source:
    """What can be divided: constants of the graph by name.

    vectors: constants [size], divided by all divisors. rows: weights of linear layers (their biases
    stand among `vectors` where start and size are the whole) whose rows from `start` on are
    divided. channels: for each channel of the value, which divisor is its own. experts: how many
    matrices the weights stack, each with divisors of its own; 0 for plain weights.
    """

    size: int
    channels: NDArray[np.int64]
    vectors: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    start: int = 0
    experts: int = 0


@dataclass(frozen=True)
class Group:
    """A value, the weights of the linear layers that read it, and its source."""

    x: Value
    readers: tuple[str, ...]
    source: Source

    @property
    def members(self) -> tuple[str, ...]:
        """Return the names of all constants that change."""
        return (*self.source.vectors, *self.source.rows, *self.readers)


def find_groups(graph: Graph, values: Iterable[Value]) -> tuple[list[Group], dict[str, str]]:
    """Return a group for each value that has one, and for the others by name why not."""
    groups, reasons = [], {}
    for x in values:
        try:
            groups.append(_group(graph, x))
        except NoSource as reason:
            reasons[x.name] = str(reason)
    return groups, reasons


def _group(graph: Graph, x: Value) -> Group:
    if x in graph.outputs:
        raise NoSource("it is an output of the model")
    readers: dict[str, None] = {}
    nodes = {node for node, _ in x.uses}
    for node, index in x.uses:
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if node.op not in (LINEAR, EXPERT_LINEAR) or index or weight is None:
            raise NoSource(f"{node.op} reads it too")
        if weight.constant is None:
            raise NoSource(f"the weight of {node.op} is no constant")
        if any(user not in nodes or place != 1 for user, place in weight.uses):
            raise NoSource("a weight that reads it is used elsewhere too")
        readers[weight.name] = None
    source = _source(graph, x)
    if source.experts and not all(_same_choice(node, x) for node in nodes):
        raise NoSource("its rows meet other experts than those that made it")
    return Group(x, tuple(readers), source)


def _same_choice(reader: Node, x: Value) -> bool:
    """Whether an expert layer sends every row to the expert that made it."""
    maker = _maker(x)
    chosen = reader.inputs[2] if reader.op == EXPERT_LINEAR else None
    return chosen is not None and maker is not None and maker.inputs[2] is chosen


def _maker(value: Value) -> Node | None:
    """Return the expert layer before a value, if one is near."""
    node = value.producer
    while node is not None and node.op != EXPERT_LINEAR:
        made = [v for v in node.inputs if v is not None and v.producer is not None]
        nexts = [v.producer for v in made if v.producer is not None]
        experts = [found for found in nexts if found.op == EXPERT_LINEAR]
        node = experts[0] if experts else (nexts[0] if len(nexts) == 1 else None)
    return node


def _only_use(graph: Graph, value: Value) -> None:
    if value in graph.outputs or len(value.uses) > 1:
        raise NoSource("what makes it is read elsewhere too")


def _vector(value: Value | None, size: int) -> str | None:
    """Return the name of a constant that holds one number for each channel and has one reader."""
    if value is None or value.constant is None or len(value.uses) != 1 or value.fixed:
        return None
    shape = tuple(value.constant.shape)
    return value.name if shape and shape[-1] == size == math.prod(shape) else None


def _source(graph: Graph, x: Value) -> Source:
    """Return what makes x.

    Raises:
        NoSource: nothing that can be divided does.
    """
    node = x.producer
    size = x.shape[-1] if x.shape else None
    if node is None or not isinstance(size, int):
        raise NoSource("it is an input, or its width is not known")
    if node.op in NORMS:
        return _norm(node, size)
    if node.op in (LINEAR, EXPERT_LINEAR):
        return _linear(node, size)
    if node.op in HOMOGENEOUS:
        return _through(graph, node.inputs[0])
    if node.op in ("Mul", "Add"):
        return _elementwise(graph, node, size)
    if node.op == "Split":
        return _split(graph, node, x, size)
    if node.op == "CachedAttention":
        return _attention(graph, node, size)
    raise NoSource(f"{node.op} takes no factors")


def _through(graph: Graph, value: Value | None) -> Source:
    assert value is not None
    _only_use(graph, value)
    return _source(graph, value)


def _norm(node: Node, size: int) -> Source:
    names = [_vector(value, size) for value in node.inputs[1:] if value is not None]
    found = tuple(name for name in names if name is not None)
    if not found or len(found) < len(names) or node.attributes.get("axis", -1) != -1:
        raise NoSource(f"{node.op} has no scale of its own for each channel")
    return Source(size, np.arange(size), found)


def _linear(node: Node, size: int) -> Source:
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or weight.constant is None or len(weight.uses) != 1:
        raise NoSource(f"the weight of {node.op} is used elsewhere too")
    if node.op == EXPERT_LINEAR:
        count = weight.constant.shape[0]
        return Source(size, np.arange(size), rows=(weight.name,), experts=count)
    name = None if bias is None else _vector(bias, size)
    if bias is not None and name is None:
        raise NoSource(f"the bias of {node.op} is used elsewhere too")
    return Source(size, np.arange(size), () if name is None else (name,), (weight.name,))


def _elementwise(graph: Graph, node: Node, size: int) -> Source:
    """Return the source of one factor, or of both terms."""
    first, second = node.inputs
    assert first is not None and second is not None
    if second.constant is None:
        first, second = second, first
    vector = _vector(second, size) if first.constant is None else None
    if node.op == "Add":
        if vector is None:
            raise NoSource(f"{node.op} adds what takes no factors")
        below = _through(graph, first)
        if below.size != size or below.start or below.experts:
            raise NoSource(f"{node.op} adds a vector that others do not share")
        return replace(below, vectors=(*below.vectors, vector))
    if vector is not None:
        return Source(size, np.arange(size), (vector,))
    reasons = []
    for value in sorted((first, second), key=_distance):
        try:
            if value.shape and value.shape[-1] == size:
                return _through(graph, value)
        except NoSource as reason:
            reasons.append(str(reason))
    raise NoSource(reasons[0] if reasons else f"{node.op} takes no factors")


def _distance(value: Value) -> int:
    """Return 0 for what a linear layer makes itself, so that of two factors this one is taken."""
    return int(value.producer is None or value.producer.op not in (LINEAR, EXPERT_LINEAR))


def _split(graph: Graph, node: Node, x: Value, size: int) -> Source:
    """Return the rows of a linear layer that one piece of its output comes from.

    The bias is shared with the other pieces: only a layer's own part of it is divided.
    """
    widths = [value.shape[-1] if value.shape else None for value in node.outputs]
    value = node.inputs[0]
    axis = node.attributes.get("axis", 0)
    last = value is not None and value.shape is not None and axis in (-1, len(value.shape) - 1)
    if not last or not all(isinstance(width, int) for width in widths):
        raise NoSource(f"{node.op} cuts something else than channels of known width")
    whole = sum(width for width in widths if isinstance(width, int))
    before = widths[: node.outputs.index(x)]
    below = _through(graph, value)
    if not below.rows or below.experts or below.size != whole or below.start:
        raise NoSource(f"{node.op} cuts what is no linear layer")
    start = sum(width for width in before if isinstance(width, int))
    return replace(below, size=size, channels=np.arange(size), start=start)


def _attention(graph: Graph, node: Node, size: int) -> Source:
    heads, groups = node.attributes["num_heads"], node.attributes["num_kv_heads"]
    values = node.inputs[2]
    below = _through(graph, values)
    width = size // heads
    if below.experts or len(below.channels) != width * groups:
        raise NoSource(f"{node.op} mixes what no linear layer makes")
    head, place = np.divmod(np.arange(size), width)
    return replace(below, channels=below.channels[head // (heads // groups) * width + place])
