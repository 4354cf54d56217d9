"""The order of nodes: as in the file where that works, otherwise sorted."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence

from halfbyte.converters.onnx.messages import NodeMessage

Known = Callable[[str], bool]
Reads = Callable[[NodeMessage], Sequence[str]]


class OrderError(Exception):
    """Nodes cannot be ordered; `rule` says why, `node` is one of those concerned."""

    def __init__(self, rule: str, node: NodeMessage) -> None:
        """Take the broken rule and a node."""
        super().__init__(rule)
        self.rule = rule
        self.node = node


def ordered(
    nodes: Sequence[NodeMessage], taken: Known, defined: Known, reads: Reads
) -> list[NodeMessage]:
    """Return nodes so that each stands behind those it reads from, otherwise as given.

    taken: whether the graph itself has a name before the first node; defined: whether it, or a
    graph around it, has.

    Raises:
        OrderError: a name is assigned twice or by nobody, or nodes read from each other in a ring.
    """
    producers = _producers(nodes, taken)
    waiting: list[int] = []
    readers: list[list[int]] = [[] for _ in nodes]
    sorted_already = True
    for index, node in enumerate(nodes):
        sources = _sources(node, reads(node), producers, defined)
        sorted_already &= all(source < index for source in sources)
        waiting.append(len(sources))
        for source in sources:
            readers[source].append(index)
    return list(nodes) if sorted_already else _sorted(nodes, waiting, readers)


def _producers(nodes: Sequence[NodeMessage], taken: Known) -> dict[str, int]:
    producers: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.output:
            if name and (name in producers or taken(name)):
                raise OrderError(f"assigns {name!r}, which is there already", node)
            producers[name] = index
    return producers


def _sources(
    node: NodeMessage,
    names: Iterable[str],
    producers: dict[str, int],
    defined: Known,
) -> set[int]:
    found = set()
    for name in names:
        if name in producers:
            found.add(producers[name])
        elif not defined(name):
            raise OrderError(f"reads {name!r}, which nothing defines", node)
    return found


def _sorted(
    nodes: Sequence[NodeMessage], waiting: list[int], readers: list[list[int]]
) -> list[NodeMessage]:
    ready = [index for index, count in enumerate(waiting) if not count]
    result: list[NodeMessage] = []
    while ready:
        index = heapq.heappop(ready)
        result.append(nodes[index])
        for reader in readers[index]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(result) < len(nodes):
        stuck = next(i for i, count in enumerate(waiting) if count)
        raise OrderError("waits for its own result: nodes read from each other", nodes[stuck])
    return result
