"""Fill in the types of a graph's values."""

from __future__ import annotations

from halfbyte.ir.graph import Graph
from halfbyte.ir.ops import spec_of
from halfbyte.ir.ops.spec import UNKNOWN


def infer_types(graph: Graph) -> None:
    """Give every node output the dtype and shape that its operator infers, where not declared.

    Raises:
        GraphError: a node breaks a rule of its operator.
        UnsupportedError: an operator is unknown.
    """
    for node in graph.nodes:
        for value, kind in zip(node.outputs, spec_of(node).infer(node), strict=False):
            if value.dtype is None:
                value.dtype = kind.dtype
            if value.shape is None or UNKNOWN in value.shape:
                value.shape = kind.shape if kind.shape is not None else value.shape
