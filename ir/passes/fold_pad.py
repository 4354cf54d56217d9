"""A Pad with zeros before a convolution becomes padding of the convolution."""

from __future__ import annotations

from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.ops.spec import input_at, known_ints
from halfbyte.ir.passes import dead_code
from halfbyte.ir.passes.matching import is_op, maker, scalar


def zero_pads(pad: Node, rank: int) -> tuple[list[int], list[int]] | None:
    """Return the counts before and after each spatial axis of a Pad that adds zeros there only."""
    counts, axes = known_ints(pad.inputs[1]), known_ints(input_at(pad, 3))
    value = input_at(pad, 2)
    if counts is None or (input_at(pad, 3) is not None and axes is None):
        return None
    if pad.attributes.get("mode", "constant") != "constant":
        return None
    if value is not None and scalar(value) != 0.0:
        return None
    places = list(range(rank)) if axes is None else [axis % rank for axis in axes]
    before, after = [0] * rank, [0] * rank
    for number, place in enumerate(places):
        before[place], after[place] = counts[number], counts[number + len(places)]
    if any(before[:2]) or any(after[:2]) or min(before) < 0 or min(after) < 0:
        return None
    return before[2:], after[2:]


def fold(graph: Graph, node: Node) -> bool:
    """Fold the Pad that a convolution reads."""
    pad = maker(node.inputs[0], "Pad")
    if pad is None or pad.inputs[0] is None or pad.inputs[0].shape is None:
        return False
    rank = len(pad.inputs[0].shape)
    if (node.attributes.get("auto_pad") or "NOTSET") not in ("NOTSET", "VALID"):
        return False
    found = zero_pads(pad, rank)
    if found is None:
        return False
    own = list(node.attributes.get("pads") or [0] * (2 * (rank - 2)))
    added = [*found[0], *found[1]]
    pads = [mine + more for mine, more in zip(own, added, strict=True)]
    node.attributes = {**node.attributes, "pads": pads, "auto_pad": "NOTSET"}
    graph.set_input(node, 0, pad.inputs[0])
    return True


def apply(graph: Graph) -> bool:
    """Fold every such Pad."""
    changed = False
    for node in list(graph.nodes):
        if is_op(node, "Conv"):
            changed |= fold(graph, node)
    if changed:
        dead_code.apply(graph)
    return changed
