"""Which values of a graph are quantized where it computes in integers.

Convolutions and products with stored weights read quantized values. What such an operator gives,
and what operators that pass integers on make of it, is quantized again where that ends at another
integer operator; everything else (norms, softmax, gates, sums of floats) stays float and reads the
value before it was rounded. Values whose operator only moves them, picks the largest or joins them
share one range. A Relu or Clip goes where the ends of the range do the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node, Value
from halfbyte.ir.ops.spec import input_at
from halfbyte.ir.passes.quantized_values import clip_limits, only_use

# The result has values of the first input only, so it has its range.
MOVES = frozenset(
    {
        *("Expand", "Flatten", "Gather", "GatherElements", "Identity", "MaxPool", "Reshape"),
        *("Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze", "DepthToSpace", "SpaceToDepth"),
        "Split",
    }
)
# Computed in integers where all that they read is quantized; they have a range of their own.
SUMS = frozenset({"Add", "Mul"})
POOLS = frozenset({"AveragePool", "GlobalAveragePool", "LeakyRelu"})
FIRST, LAST = "first", "last"


@dataclass
class Placement:
    """What is computed in integers.

    nodes: those with weights, in order. passing: those that pass integers on. shared: values that
    have the same range, the first of each group by each. made: values all of whose readers get
    the rounded ones; of the others only the integer operators do. ends: the values whose Relu or
    Clip may go, and that node. kept: how many nodes with weights stay float.
    """

    nodes: list[Node] = field(default_factory=list)
    passing: list[Node] = field(default_factory=list)
    shared: dict[Value, Value] = field(default_factory=dict)
    made: set[Value] = field(default_factory=set)
    ends: dict[Value, Node] = field(default_factory=dict)
    kept: int = 0

    @property
    def values(self) -> list[Value]:
        """Return the quantized values in the order in which they were met."""
        return list(self.shared)

    def leader(self, value: Value) -> Value:
        """Return the value that stands for the group of another."""
        while self.shared[value] is not value:
            value = self.shared[value]
        return value

    def add(self, value: Value, like: Value | None = None) -> None:
        """Quantize a value, with the range of another if one is given."""
        self.shared.setdefault(value, value)
        if like is not None:
            first, other = self.leader(like), self.leader(value)
            if first is not other:
                self.shared[other] = first

    def groups(self) -> dict[Value, list[Value]]:
        """Return the values of each group by its leader."""
        found: dict[Value, list[Value]] = {}
        for value in self.shared:
            found.setdefault(self.leader(value), []).append(value)
        return found


def weight_of(node: Node) -> Value | None:
    """Return the stored float weight of a Conv or Linear, None for other nodes."""
    conv = node.op == "Conv" and not node.domain
    linear = node.op == "Linear" and node.domain == HALFBYTE_DOMAIN
    if not (conv or linear):
        return None
    data, weight, bias = (input_at(node, index) for index in range(3))
    if data is None or data.constant is not None or data.dtype != "float32":
        return None
    for value in (weight, bias):
        if value is not None and not _is_stored(value):
            return None
    if weight is None or weight.constant is None:
        return None
    ranks = (3, 4, 5) if conv else (2,)
    return weight if len(weight.constant.shape) in ranks and weight.constant.size else None


def _is_stored(value: Value) -> bool:
    floats = ("float32", "float16", "bfloat16")
    held = value.constant
    return held is not None and getattr(held.encoding, "dtype_name", "") in floats


def names_of(node: Node) -> set[str]:
    """Return what `--keep-float` may call a node: operator, own name, results, stored weights."""
    names = {node.op, *(value.name for value in node.outputs)}
    if node.op == "Linear":
        names |= {"MatMul", "Gemm"}
    if node.origin is not None and node.origin.name:
        names.add(node.origin.name)
    return names | {v.name for v in node.inputs if v is not None and v.constant is not None}


def kept_float(nodes: Sequence[Node], patterns: Iterable[str]) -> set[Node]:
    """Return the nodes with weights that stay float.

    patterns: globs over `names_of`; `first` and `last` are the first and the last node.

    Raises:
        UnsupportedError: a pattern fits none.
    """
    kept: set[Node] = set()
    for pattern in patterns:
        if pattern in (FIRST, LAST) and nodes:
            kept.add(nodes[0] if pattern == FIRST else nodes[-1])
            continue
        found = [n for n in nodes if any(fnmatchcase(name, pattern) for name in names_of(n))]
        if not found:
            known = sorted(next(v.name for v in node.outputs) for node in nodes)
            what, advice = f"--keep-float {pattern!r}", "give a glob that fits a node"
            raise UnsupportedError(what, "this graph", known, advice)
        kept.update(found)
    return kept


def place(graph: Graph, keep_float: Iterable[str] = ()) -> Placement:
    """Return what of a graph is computed in integers.

    graph: with types inferred, norms folded and constants computed. keep_float: `kept_float`.

    Raises:
        UnsupportedError: a pattern fits no node.
    """
    every = [node for node in graph.nodes if weight_of(node) is not None]
    kept = kept_float(every, keep_float)
    placement = Placement([node for node in every if node not in kept], kept=len(kept))
    needed = _needed(graph, placement.nodes)
    integers = set(placement.nodes)
    for node in graph.nodes:
        if node in integers:
            _add_node(graph, placement, node)
        elif not node.domain:
            _pass_on(graph, placement, node, needed)
    return placement


def _needed(graph: Graph, nodes: Sequence[Node]) -> set[Value]:
    """Return the values that reach an integer operator through operators that pass integers on."""
    integers, needed = set(nodes), {node.inputs[0] for node in nodes}
    for node in reversed(graph.nodes):
        if node in integers or node.domain or not any(out in needed for out in node.outputs):
            continue
        if clip_limits(node) is not None or node.op in MOVES | POOLS:
            needed.add(node.inputs[0])
        elif node.op in SUMS or node.op == "Concat":
            needed.update(node.inputs)
    return {value for value in needed if value is not None}


def _ended(graph: Graph, value: Value) -> tuple[Value, Node | None]:
    """Return what the Relu or Clip behind a value gives, and it; the value where none is."""
    following = only_use(graph, value)
    if following is None or following.domain or clip_limits(following) is None:
        return value, None
    return following.outputs[0], following


def _add_made(graph: Graph, placement: Placement, value: Value) -> None:
    """Quantize what an integer operator gives, after a Relu or Clip behind it."""
    result, end = _ended(graph, value)
    placement.add(result)
    placement.made.add(result)
    if end is not None:
        placement.ends[result] = end


def _add_node(graph: Graph, placement: Placement, node: Node) -> None:
    data = node.inputs[0]
    assert data is not None
    placement.add(data)
    _note_end(graph, placement, data)
    if node.op == "Conv":
        _add_made(graph, placement, node.outputs[0])


def _note_end(graph: Graph, placement: Placement, value: Value) -> None:
    """Note a Relu or Clip whose result only integer operators read."""
    end = value.producer
    if value in placement.made or end is None or end.domain or value in graph.outputs:
        return
    readers = all(index == 0 and weight_of(node) is not None for node, index in value.uses)
    if clip_limits(end) is not None and readers:
        placement.ends.setdefault(value, end)


def _pass_on(graph: Graph, placement: Placement, node: Node, needed: set[Value]) -> None:
    """Quantize what a node makes of integers, if that is where they are needed."""
    data = node.inputs[0] if node.inputs else None
    if data is None or not any(out in needed for out in node.outputs):
        return
    if node.op in MOVES and data in placement.made:
        for out in node.outputs:
            placement.add(out, data)
            placement.made.add(out)
    elif node.op in POOLS and data in placement.made:
        _add_made(graph, placement, node.outputs[0])
    elif node.op == "Concat" and all(value in placement.made for value in node.inputs):
        _join(graph, placement, node)
    elif node.op in SUMS and _is_integer_sum(placement, node):
        _add_made(graph, placement, node.outputs[0])
        for value in node.inputs:
            if value is not None and value not in placement.made:
                placement.add(value)
    else:
        return
    placement.passing.append(node)


def _join(graph: Graph, placement: Placement, node: Node) -> None:
    """Let a joined value share the range of those parts that nothing else reads."""
    out = node.outputs[0]
    placement.add(out)
    placement.made.add(out)
    for value in node.inputs:
        assert value is not None
        if len(value.uses) == 1 and value not in graph.outputs:
            placement.add(value, out)


def _is_integer_sum(placement: Placement, node: Node) -> bool:
    """Whether both sides come from integers; a small factor (a gate) may come from floats."""
    sides = [value for value in node.inputs if value is not None]
    from_integers = [value in placement.made for value in sides]
    if any(value.constant is not None or value.dtype != "float32" for value in sides):
        return False
    if node.op == "Mul" and any(from_integers):
        return all(yes or _is_gate(value) for yes, value in zip(from_integers, sides, strict=True))
    return all(from_integers)


def _is_gate(value: Value) -> bool:
    """Whether a value has one number for each channel."""
    shape = value.shape or ()
    return len(shape) > 2 and all(dim == 1 for dim in shape[2:])
