"""A model's graph cut into pieces at the inputs of its linear layers.

A `Site` is a value that linear layers read, with the weights it meets. A piece ends where the next
site's input is known, before the first product with it: its weights can then be rounded, and the
pieces after it run over what they became. Each node is in one piece. The exceptions are what
follows from token ids, positions and masks alone (rotary angles, for example): cheap to compute and
sometimes large to keep, it is computed again in each piece that reads it.

Without `true_sequential` the inputs of all linear layers of a layer are found first, over its
unrounded weights; the layer then runs a second time over the rounded ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from halfbyte.ir.dtypes import INTEGERS
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node, Value
from halfbyte.ir.ops.inference import infer_types
from halfbyte.ir.passes.dead_code import has_effect, has_graphs, is_random
from halfbyte.ir.roles import Role

LIGHT_VALUES = 4096  # constants of nodes that several pieces may compute
# Where a linear operator has its weight and the numbers of its experts.
LINEARS = {"Linear": None, "ExpertLinear": 2}


@dataclass(frozen=True, eq=False)
class Site:
    """Linear layers that read one value.

    x: their input, a value of the cut graph. weights: names of their constants, in order. experts:
    which matrices of stacked weights each row meets; None where weights are one matrix.
    """

    x: Value
    weights: tuple[str, ...]
    roles: tuple[Role | None, ...]
    layer: int | None
    columns: int
    matrices: int = 1
    experts: Value | None = None

    @property
    def read(self) -> tuple[Value, ...]:
        """Return the values that its statistics are made from."""
        return (self.x,) if self.experts is None else (self.x, self.experts)


@dataclass(frozen=True, eq=False)
class Piece:
    """Nodes to run, and what can be rounded once they ran.

    graph: its inputs are graph inputs and values that earlier pieces gave, its outputs are the
    values that `sites` and later pieces read. drops: what nobody reads after `sites` are done.
    """

    graph: Graph
    sites: tuple[Site, ...]
    drops: tuple[str, ...]

    @property
    def weights(self) -> tuple[str, ...]:
        """Return the names of the weights to be rounded after this piece."""
        return tuple(name for site in self.sites for name in site.weights)


@dataclass(frozen=True)
class Cut:
    """The pieces of a graph in order, and the wanted weights that no site has.

    graph: the copy with types that sites' values are of. again: weights that meet several inputs
    and have the site of their first.
    """

    graph: Graph
    pieces: tuple[Piece, ...]
    missing: tuple[str, ...]
    again: tuple[str, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Return all sites in order."""
        return tuple(site for piece in self.pieces for site in piece.sites)


@dataclass
class _Range:
    """Nodes [start, stop), of which a probe gives its sites' inputs only."""

    start: int
    stop: int
    sites: tuple[Site, ...] = ()
    probe: bool = False


def cut(
    graph: Graph,
    wanted: Collection[str],
    true_sequential: bool = True,
    *,
    replay: bool = True,
) -> Cut:
    """Return the pieces up to the inputs of the last wanted weights; the rest need not run.

    wanted: names of constants. true_sequential: cut at each site, else at layers. replay: without
    `true_sequential`, run layers again over their rounded weights; False if none will be rounded.
    """
    whole = graph.copy()
    infer_types(whole)
    places, sites, again = _sites(whole, wanted)
    found = {name for site in sites for name in site.weights}
    missing = tuple(name for name in wanted if name not in found)
    ranges = _at_sites(places, sites) if true_sequential else _at_layers(places, sites, replay)
    return Cut(whole, _assembled(whole, ranges), missing, again)


def _sites(graph: Graph, wanted: Collection[str]) -> tuple[list[int], list[Site], tuple[str, ...]]:
    """Return for each site the place of its first node, the sites, and weights met again."""
    groups: dict[tuple[Value, Value | None], list[tuple[int, Node]]] = {}
    seen: set[str] = set()
    again: dict[str, None] = {}
    for place, node in enumerate(graph.nodes):
        if node.domain != HALFBYTE_DOMAIN or node.op not in LINEARS:
            continue
        x, weight = node.inputs[:2]
        if x is None or weight is None or x.constant is not None or weight.name not in wanted:
            continue
        if weight.name in seen:
            again[weight.name] = None
            continue
        seen.add(weight.name)
        index = LINEARS[node.op]
        groups.setdefault((x, None if index is None else node.inputs[index]), []).append(
            (place, node)
        )
    made = [(members[0][0], _site(*key, members)) for key, members in groups.items()]
    made.sort(key=lambda entry: entry[0])
    return [place for place, _ in made], [site for _, site in made], tuple(again)


def _site(x: Value, experts: Value | None, members: Sequence[tuple[int, Node]]) -> Site:
    values = [value for _, node in members if (value := node.inputs[1]) is not None]
    tensors = [value.constant for value in values if value.constant is not None]
    return Site(
        x,
        tuple(value.name for value in values),
        tuple(tensor.role for tensor in tensors),
        members[0][1].layer,
        tensors[0].columns,
        tensors[0].shape[0] if experts is not None else 1,
        experts,
    )


def _at_sites(places: Sequence[int], sites: Sequence[Site]) -> list[_Range]:
    starts = [0, *places]
    return [
        _Range(start, stop, (site,))
        for start, stop, site in zip(starts, places, sites, strict=False)
    ]


def _at_layers(places: Sequence[int], sites: Sequence[Site], replay: bool) -> list[_Range]:
    layers: list[list[int]] = []
    for index, site in enumerate(sites):
        same = layers and site.layer is not None and sites[layers[-1][0]].layer == site.layer
        if same:
            layers[-1].append(index)
        else:
            layers.append([index])
    ranges: list[_Range] = []
    start = 0
    for number, indices in enumerate(layers):
        first, last = places[indices[0]], places[indices[-1]]
        held = tuple(sites[index] for index in indices)
        if not replay:
            ranges.append(_Range(start, last, held))
            start = last
            continue
        if number == 0:
            ranges.append(_Range(0, first))
        ranges.append(_Range(first, last, held, probe=True))
        if number + 1 < len(layers):
            ranges.append(_Range(first, places[layers[number + 1][0]]))
    return ranges


def _assembled(graph: Graph, ranges: Sequence[_Range]) -> tuple[Piece, ...]:
    """Return the pieces of ranges of nodes, each with only the nodes that some site needs."""
    aims = {value for held in ranges for site in held.sites for value in site.read}
    needed = _ancestors(aims)
    light = _light(graph, aims)
    places = {node: place for place, node in enumerate(graph.nodes)}
    chosen: list[list[Node]] = []
    for held in ranges:
        own = [node for node in graph.nodes[held.start : held.stop] if node in needed]
        if held.probe:
            reached = _ancestors({value for site in held.sites for value in site.read})
            own = [node for node in own if node in reached]
        chosen.append(_with_light(places, [node for node in own if node not in light], light))
    readers = _last_readers(ranges, chosen)
    return tuple(
        _piece(graph, index, held, chosen[index], light, readers)
        for index, held in enumerate(ranges)
    )


def _ancestors(values: Iterable[Value]) -> set[Node]:
    """Return the nodes that the values need."""
    found: set[Node] = set()
    waiting = [value.producer for value in values]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [value.producer for value in node.inputs if value is not None]
    return found


def _light(graph: Graph, aims: set[Value]) -> set[Node]:
    """Return the nodes that follow from integer inputs, and shapes of inputs, alone."""
    known = {value for value in graph.inputs if value.dtype in INTEGERS or value.dtype == "bool"}
    shaped = set(graph.inputs)
    light: set[Node] = set()
    for node in graph.nodes:
        heavy = has_effect(node) or has_graphs(node) or is_random(node)
        if heavy or any(value in aims for value in node.outputs):
            continue
        sources = shaped if node.op == "Shape" and not node.domain else known
        if all(_is_light(value, sources) for value in node.inputs if value is not None):
            light.add(node)
            known.update(node.outputs)
    return light


def _is_light(value: Value, sources: set[Value]) -> bool:
    if value.constant is not None:
        return value.constant.size <= LIGHT_VALUES
    return value in sources


def _with_light(places: dict[Node, int], nodes: list[Node], light: set[Node]) -> list[Node]:
    """Return the nodes and the light ones that they need, in the graph's order."""
    found = set(nodes)
    waiting = list(nodes)
    while waiting:
        for value in waiting.pop().inputs:
            node = None if value is None else value.producer
            if node in light and node is not None and node not in found:
                found.add(node)
                waiting.append(node)
    return sorted(found, key=places.__getitem__)


def _outside(nodes: Sequence[Node]) -> set[Value]:
    """Return what nodes read that none of them makes and is no constant."""
    made = {value for node in nodes for value in node.outputs}
    read = {value for node in nodes for value in node.inputs if value is not None}
    return {value for value in read - made if value.constant is None}


def _last_readers(ranges: Sequence[_Range], chosen: Sequence[Sequence[Node]]) -> dict[Value, int]:
    last: dict[Value, int] = {}
    for index, (held, nodes) in enumerate(zip(ranges, chosen, strict=True)):
        aims = {value for site in held.sites for value in site.read}
        for value in _outside(nodes) | aims:
            last[value] = index
    return last


def _forget_states(graph: Graph) -> None:
    """Let attention see what is given only: sequences run whole, from an empty cache."""
    for node in graph.nodes:
        if has_effect(node):
            node.attributes |= {"key_state": "", "value_state": ""}
    graph.states.clear()


def _piece(
    graph: Graph,
    index: int,
    held: _Range,
    nodes: Sequence[Node],
    light: set[Node],
    readers: dict[Value, int],
) -> Piece:
    aims = {value for site in held.sites for value in site.read}
    kept = [
        value
        for node in nodes
        if node not in light
        for value in node.outputs
        if value in aims or (not held.probe and readers.get(value, -1) > index)
    ]
    part = graph.part(nodes, kept, f"{graph.name}.{index}")
    _forget_states(part)
    ended = [value for value, last in readers.items() if last == index]
    drops = [value.name for value in ended if value.producer is not None]
    return Piece(part, held.sites, tuple(drops))
