"""The opset that a graph is lowered to."""

from __future__ import annotations

from halfbyte.converters.onnx.lowering.dequantized import needed_opset
from halfbyte.converters.onnx.lowering.table import LOWERINGS
from halfbyte.converters.onnx.opset_choice import (
    LOWEST,
    RUNTIME_HIGHEST,
    every_graph,
    fitting_opset,
    obstacle,
    standard_nodes,
    upgrade_nodes,
)
from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph

ATTENTION_OPSET = 13  # what the parts of an attention are said in


def target_opset(graph: Graph, asked: int | None) -> int:
    """Return `asked`, or the lowest opset that a graph's operators and encoded weights take.

    Older forms of operators become newer ones, in place, where the opset is past them.

    Raises:
        UnsupportedError: its operators have no opset in common.
    """
    if asked is not None:
        upgrade_nodes(graph, asked)
        return asked
    lowest = _lowest(graph)
    for part in every_graph(graph):
        lowest = max([lowest, *(needed_opset(tensor) for tensor in part.constants.values())])
        for node in part.nodes:
            if node.domain == HALFBYTE_DOMAIN and node.op == "CachedAttention":
                lowest = max(lowest, ATTENTION_OPSET)
    return lowest


def _lowest(graph: Graph) -> int:
    try:
        lowest = fitting_opset(graph)
    except UnsupportedError:
        upgrade_nodes(graph, RUNTIME_HIGHEST)
        return fitting_opset(graph)
    if lowest < LOWEST:
        upgrade_nodes(graph, RUNTIME_HIGHEST)
        return fitting_opset(graph)
    if lowest > RUNTIME_HIGHEST:
        stopped = (node for _, node in standard_nodes(graph) if obstacle(node, RUNTIME_HIGHEST))
        if all(node.op in LOWERINGS for node in stopped):
            return RUNTIME_HIGHEST
    return lowest
