"""Evaluate one operator in a version, its inferred types held to the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.ir.dtypes import dtype_of
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops import infer, op_key, op_spec, spec_of
from halfbyte.ir.ops.spec import Context, ValueType
from halfbyte.ir.tensor import tensor_from_array

Arrays = Sequence[np.ndarray | None]


def node_of(
    key: str, inputs: Sequence[Any], attributes: dict[str, Any], outputs: int, version: int | None
) -> Node:
    """Return a node over arrays (known integers are constants) or values."""
    spec = op_spec(key, version)
    values: list[Value | None] = []
    for index, given in enumerate(inputs):
        if given is None or isinstance(given, Value):
            values.append(given)
            continue
        array = np.asarray(given)
        small = array.ndim < 2 and index > 0 and array.dtype != object
        tensor = tensor_from_array(f"in{index}", array) if small else None
        values.append(Value(f"in{index}", dtype_of(array), array.shape, None, tensor, True))
    outs = [Value(f"out{i}") for i in range(outputs)]
    since = spec.versions[-1] if version is None else version
    return Node(spec.op, values, outs, attributes, spec.domain, since)


def assert_of_type(result: Any, kind: ValueType) -> None:
    """Hold an array to an inferred type: its dtype, and the dimensions that are integers."""
    assert kind.dtype == dtype_of(result)
    if kind.shape is not None:
        assert len(kind.shape) == result.ndim
        for dim, length in zip(kind.shape, result.shape, strict=True):
            assert isinstance(dim, str) or dim == length


def inferred(
    key: str, *inputs: Any, outputs: int = 1, version: int | None = None, **attributes: Any
) -> list[ValueType]:
    """Return the types that an operator infers."""
    node = node_of(key, inputs, attributes, outputs, version)
    return op_spec(key, version).infer(node)


def evaluated(
    key: str, *inputs: Any, outputs: int = 1, version: int | None = None, **attributes: Any
) -> list[Any]:
    """Return all results of an operator; integers among the inferred dimensions hold."""
    spec = op_spec(key, version)
    kinds = inferred(key, *inputs, outputs=outputs, version=version, **attributes)
    arrays = [None if v is None else np.asarray(v) for v in inputs]
    before = [None if v is None else v.copy() for v in arrays]
    results = spec.evaluate(arrays, spec.with_defaults(attributes), Context(outputs=outputs))
    for array, copy in zip(arrays, before, strict=True):
        if array is not None and copy is not None:
            assert array.tobytes() == copy.tobytes()
    assert len(kinds) == len(results) == outputs
    for kind, result in zip(kinds, results, strict=True):
        assert_of_type(result, kind)
    return results


def evaluated_one(key: str, *inputs: Any, version: int | None = None, **attributes: Any) -> Any:
    """Return the only result of an operator."""
    return evaluated(key, *inputs, version=version, **attributes)[0]


def node_graph(
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
            assert_of_type(result, kind)
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
