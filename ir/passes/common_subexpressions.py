"""Let equal nodes (same operator, attributes and inputs) share one result."""

from __future__ import annotations

from typing import Any

import numpy as np

from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.passes.dead_code import has_effect, is_random

MAX_COMPARED = 1 << 16


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_plain(v) for v in value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "O" or value.nbytes > MAX_COMPARED:
            return id(value)
        return (value.dtype.name, value.shape, value.tobytes())
    if isinstance(value, float):
        return ("float", value.hex())
    return value if isinstance(value, (int, str, bytes, type(None))) else id(value)


def identity(node: Node) -> tuple[Any, ...]:
    """Return a key that equal nodes share."""
    attributes = tuple((name, _plain(node.attributes[name])) for name in sorted(node.attributes))
    inputs = tuple(None if value is None else id(value) for value in node.inputs)
    dtypes = tuple(value.dtype for value in node.outputs)
    return (node.domain, node.op, node.since_version, inputs, attributes, dtypes)


def apply(graph: Graph) -> bool:
    """Redirect readers of a repeated node to its first occurrence and remove it."""
    first: dict[tuple[Any, ...], Node] = {}
    outputs = set(graph.outputs)
    changed = False
    for node in list(graph.nodes):
        if has_effect(node) or is_random(node):
            continue
        known = first.setdefault(identity(node), node)
        same_arity = len(known.outputs) == len(node.outputs)
        if known is node or not same_arity or any(v in outputs for v in node.outputs):
            continue
        for old, new in zip(node.outputs, known.outputs, strict=True):
            graph.replace_all_uses(old, new)
        graph.remove(node)
        changed = True
    return changed
