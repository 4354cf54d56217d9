"""Products with int8 weights whose activations have stored ranges: QDQ pairs that runtimes fuse.

    MatMul(x, DequantizeLinear(codes, scale))    becomes
    MatMul(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(codes [in, out], scale [out]))

Only weights with one scale for each output column and codes around zero are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from halfbyte.converters.format import StoredGrid
from halfbyte.converters.onnx.dynamic_integers import IntegerWeight, NodeWriter, integer_weight
from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.passes import dead_code
from halfbyte.ir.passes.matching import new_constant

FLOAT = "float32"


def use_static_integers(graph: Graph, grids: Mapping[str, StoredGrid]) -> int:
    """Put pairs around every product that allows it, in place; return how many got them.

    grids: of activations, by the names of the constants that hold the codes of weights.
    """
    writer, count = NodeWriter(graph), 0
    rounded: dict[tuple[Value, StoredGrid], Value] = {}
    for node in list(graph.nodes):
        if node.op != "MatMul" or node.domain:
            continue
        data = node.inputs[0]
        if data is None or data.constant is not None or data.dtype not in (None, FLOAT):
            continue
        writer.at = node
        weight = integer_weight(writer, node.inputs[1])
        grid = None if weight is None else grids.get(weight.name)
        if weight is None or grid is None:
            continue
        if (data, grid) not in rounded:
            rounded[data, grid] = _pair(writer, data, grid)
        graph.set_input(node, 0, rounded[data, grid])
        graph.set_input(node, 1, _floats(writer, weight))
        count += 1
    dead_code.apply(graph)
    return count


def require_static_integers(graph: Graph, grids: Mapping[str, StoredGrid], path: Path) -> None:
    """Put pairs into a graph that is to be written as `path`.

    Raises:
        UnsupportedError: no product allows it.
    """
    if not use_static_integers(graph, grids):
        what = "int8-static without a product over int8 weights"
        raise UnsupportedError(what, str(path), advice="give --type int8 and --to onnx")


def _pair(writer: NodeWriter, data: Value, grid: StoredGrid) -> Value:
    """Return data as a runtime reads it from its codes."""
    scale = new_constant(writer.graph, f"{data.name}.scale", np.array(grid.scale, np.float32))
    zero = new_constant(writer.graph, f"{data.name}.zero_point", np.array(grid.zero, grid.dtype))
    codes = writer.add("QuantizeLinear", data, scale, zero, name=data.name)[0]
    result = writer.add("DequantizeLinear", codes, scale, zero, name=data.name)[0]
    codes.shape = result.shape = data.shape
    return result


def _floats(writer: NodeWriter, weight: IntegerWeight) -> Value:
    made = writer.add("DequantizeLinear", weight.codes, weight.scale, name=weight.name, axis=1)
    return made[0]
