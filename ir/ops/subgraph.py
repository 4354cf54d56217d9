"""Graphs inside nodes: the types that they yield, and their evaluation in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import MIXED, WIDE_FLOATS, dtype_of, numpy_dtype
from halfbyte.ir.graph import Dim, Graph, Node, Value
from halfbyte.ir.ops import spec_of
from halfbyte.ir.ops.spec import UNKNOWN, Context, ValueType, adapts
from halfbyte.ir.tensor import Tensor

# A body is inferred several times for one node around it; deeper ones give what they declare.
MAX_DEPTH = 4
_DEPTH: ContextVar[int] = ContextVar("depth of graphs being inferred", default=0)


def body_types(
    graph: Graph, kinds: Sequence[ValueType], constants: Sequence[Tensor | None] = ()
) -> list[ValueType]:
    """Return the types of a graph's outputs for inputs of these types; nothing is changed.

    constants: the inputs' values where they are known.

    Raises:
        GraphError: a node breaks a rule of its operator.
    """
    depth = _DEPTH.get()
    if depth == MAX_DEPTH:
        return [ValueType(value.dtype, None) for value in graph.outputs]
    token = _DEPTH.set(depth + 1)
    try:
        return _body_types(graph, kinds, constants)
    finally:
        _DEPTH.reset(token)


def _body_types(
    graph: Graph, kinds: Sequence[ValueType], constants: Sequence[Tensor | None]
) -> list[ValueType]:
    shadows: dict[Value, Value] = {}
    known = [*constants, *[None] * (len(graph.inputs) - len(constants))]
    for value, kind, tensor in zip(graph.inputs, kinds, known, strict=False):
        dtype, shape = kind.dtype or value.dtype, kind.shape
        if shape is None and not is_mixed(dtype):
            shape = None if value.shape is None else tuple(anonymous(d) for d in value.shape)
        shadows[value] = Value(value.name, dtype, shape, constant=tensor, fixed=True)
    for node in graph.nodes:
        inputs = [None if v is None else shadows.get(v, v) for v in node.inputs]
        twin = replace(node, inputs=inputs)
        found = spec_of(node).infer(twin)
        for value, kind in zip(node.outputs, found, strict=False):
            shape = kind.shape if kind.shape is not None else value.shape
            shadows[value] = Value(value.name, kind.dtype or value.dtype, shape)
    results = [shadows.get(value, value) for value in graph.outputs]
    return [ValueType(value.dtype, value.shape) for value in results]


def is_mixed(dtype: str | None) -> bool:
    """Whether a dtype is a sequence or an optional."""
    return dtype is not None and dtype.partition(".")[0] in MIXED


def anonymous(dim: Dim) -> Dim:
    """Return a dimension whose symbol, if it is one, is forgotten."""
    return dim if isinstance(dim, int) else UNKNOWN


def joined(first: ValueType, second: ValueType) -> ValueType:
    """Return the type that both are of: what differs is unknown."""
    dtype = first.dtype if first.dtype == second.dtype else None
    if first.shape is None or second.shape is None or len(first.shape) != len(second.shape):
        return ValueType(dtype, None)
    pairs = zip(first.shape, second.shape, strict=True)
    return ValueType(dtype, tuple(a if a == b else UNKNOWN for a, b in pairs))


def constant_operand(node: Node, index: int, value: Value, meeting: list[str]) -> Any:
    """Return a constant as `evaluate` takes it: encoded, or read in the dtype that it meets."""
    assert value.constant is not None
    tensor, encoded = value.constant, spec_of(node).encoded
    if index in encoded and len(tensor.shape) == 2:
        return tensor
    array = tensor.numpy()
    if not adapts(value):
        return array
    return array.astype(numpy_dtype(meeting[0] if meeting else "float32"), copy=False)


def evaluate_node(node: Node, operands: Sequence[Any]) -> list[Any]:
    """Return the outputs of one node; operands that are None may be constants or omitted."""
    arrays = list(operands)
    meeting = [
        dtype_of(v) for v in arrays if isinstance(v, np.ndarray) and dtype_of(v) in WIDE_FLOATS
    ]
    for index, value in enumerate(node.inputs):
        if value is not None and value.constant is not None:
            arrays[index] = constant_operand(node, index, value, meeting)
    spec = spec_of(node)
    context = Context(outputs=len(node.outputs), run=interpret)
    return list(spec.evaluate(arrays, spec.with_defaults(node.attributes), context))


def interpret(graph: Graph, inputs: Sequence[Any]) -> list[Any]:
    """Evaluate a graph in numpy on its inputs in order; results are arrays, lists or None.

    Raises:
        GraphError: a value is read before anything makes it.
    """
    held: dict[Value, Any] = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        operands: list[Any] = []
        for value in node.inputs:
            if value is not None and value.constant is None and value not in held:
                raise GraphError(node.label, f"input {value.name!r} is read before it is made")
            operands.append(None if value is None else held.get(value))
        results = evaluate_node(node, operands)
        held.update(zip(node.outputs, results, strict=False))
    return [v.constant.numpy() if v.constant is not None else held[v] for v in graph.outputs]
