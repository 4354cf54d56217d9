"""Which operators a file uses, in which versions, and which of them are unknown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from halfbyte.converters.onnx.contrib import CONTRIB, DOMAIN, GRADIENT, IN_STANDARD_DOMAIN
from halfbyte.converters.onnx.messages import FunctionMessage, NodeMessage
from halfbyte.converters.onnx.scope import inner_graphs, standard_domain
from halfbyte.ir.ops import OPS, op_key, since_version


def version_of(domain: str, op: str, opsets: Mapping[str, int]) -> int | None:
    """Return the version of an operator that is in force, None where it is unknown."""
    opset = opsets.get(domain, 1)
    key = op_key(op, domain)
    if domain == DOMAIN or (domain, op) == GRADIENT:
        return 1 if op in CONTRIB else None
    version = since_version(key, opset) if key in OPS else None
    if version is None and domain == "" and op in IN_STANDARD_DOMAIN:
        return 1
    return version


def _count(nodes: Iterable[NodeMessage], counts: Counter[str]) -> None:
    nodes = list(nodes)
    for node in nodes:
        counts[op_key(node.op_type, standard_domain(node.domain))] += 1
    for _, graph in inner_graphs(nodes):
        _count(graph.node, counts)


def used_operators(
    nodes: Sequence[NodeMessage], functions: Sequence[FunctionMessage]
) -> dict[str, int]:
    """Return by `domain.op` how often it stands in a file; bodies of functions count once."""
    counts: Counter[str] = Counter()
    _count(nodes, counts)
    for function in functions:
        _count(function.node, counts)
    return dict(sorted(counts.items()))
