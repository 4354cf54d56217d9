"""The opset that a graph is lowered to."""

from __future__ import annotations

from halfbyte.converters.onnx.lowering.dequantized import needed_opset
from halfbyte.converters.onnx.lowering.older_forms import can_be_older
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
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node
from halfbyte.ir.ops import op_key

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
    nodes = [node for _, node in standard_nodes(graph)]
    for opset in range(LOWEST, min(lowest, RUNTIME_HIGHEST + 1)):
        if all(_can_be_said(node, opset, lowest) for node in nodes):
            return opset
    return lowest


def _can_be_said(node: Node, opset: int, lowest: int) -> bool:
    """Whether a node exists at an opset, in its own or an older form.

    Newer operators are only taken apart where no runtime would load them otherwise.
    """
    if not obstacle(node, opset) or can_be_older(node, opset):
        return True
    return lowest > RUNTIME_HIGHEST and op_key(node.op, node.domain) in LOWERINGS
