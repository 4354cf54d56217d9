"""What the fusing passes share: one node of our domain takes the place of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node, Origin, Value


def fuse(
    graph: Graph,
    fused: Sequence[Node],
    op: str,
    inputs: Sequence[Value | None],
    results: Sequence[Value],
    *,
    attributes: Mapping[str, Any] | None = None,
    origin: Origin | None = None,
) -> None:
    """Put a node `op` where the first of `fused` stands and remove those, in their order.

    results: the values that the new node yields in their stead. A node goes before those whose
    outputs it reads. origin: the first node's unless given.
    """
    place = fused[0]
    outputs = [Value(old.name, old.dtype, old.shape) for old in results]
    node = Node(
        op,
        list(inputs),
        outputs,
        dict(attributes or {}),
        HALFBYTE_DOMAIN,
        1,
        place.layer,
        origin or place.origin,
    )
    graph.insert(node, place)
    for old, new in zip(results, outputs, strict=True):
        graph.replace_all_uses(old, new)
    for node in fused:
        graph.remove(node)
