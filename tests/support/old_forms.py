"""Evaluate a node of an old version, and what its upgrades make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.ir.dtypes import dtype_of
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops import infer, op_key, op_spec, spec_of
from halfbyte.ir.ops.spec import Context

Arrays = Sequence[np.ndarray | None]


def old_graph(
    key: str, version: int, inputs: Arrays, attributes: Mapping[str, Any], outputs: int = 1
) -> tuple[Graph, Node]:
    """Return a graph of one node of a version, with an input for each array."""
    graph = Graph(opset=version)
    values: list[Value | None] = []
    for index, array in enumerate(inputs):
        known = array is not None
        values.append(
            graph.add_input(f"in{index}", dtype_of(array), array.shape) if known else None
        )
    outs = [Value(f"out{i}") for i in range(outputs)]
    spec = op_spec(key)
    node = Node(spec.op, values, outs, dict(attributes), spec.domain, version)
    graph.insert(node)
    graph.outputs = list(outs)
    return graph, node


def evaluate_graph(graph: Graph, inputs: Arrays) -> list[Any]:
    """Return the outputs of a graph by the meaning of its nodes, inferred types checked."""
    held: dict[Value, Any] = dict(
        zip(graph.inputs, (v for v in inputs if v is not None), strict=True)
    )
    for node in graph.nodes:
        spec = spec_of(node)
        operands = [None if v is None else held_or_constant(held, v) for v in node.inputs]
        context = Context(outputs=len(node.outputs))
        results = spec.evaluate(operands, spec.with_defaults(node.attributes), context)
        for value, kind, result in zip(node.outputs, infer(node), results, strict=False):
            assert kind.dtype == dtype_of(result)
            if kind.shape is not None:
                sizes = [d for d in kind.shape if isinstance(d, int)]
                assert len(kind.shape) == result.ndim
                assert all(d in result.shape for d in sizes)
            value.dtype, value.shape = dtype_of(result), result.shape
            held[value] = result
    return [held[value] for value in graph.outputs]


def held_or_constant(held: Mapping[Value, Any], value: Value) -> Any:
    """Return a value of the run, or a constant's."""
    return held[value] if value.constant is None else value.constant.numpy()


def upgrade_fully(graph: Graph) -> bool:
    """Rewrite the last node until it has the newest form; return whether all could be done."""
    node = next(n for n in graph.nodes if op_key(n.op, n.domain) != "Shape")
    while (upgrade := spec_of(node).upgrade) is not None:
        before = node.since_version
        if not upgrade(graph, node):
            return False
        assert node.since_version > before
    return True
