"""Softmax, its logarithm and Hardmax; the old forms normalize all dimensions from an axis on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.numerics import quiet
from halfbyte.ir.ops.older_forms import constant, insert_before, renewed
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    axis_of,
    normal,
    required_input,
    same_as_first,
)

Along = Callable[[Array, int], Array]
RESHAPE, SHAPE = 25, 25


def softmax(values: Array, axis: int) -> Array:
    """Return softmax along an axis, summed in float64."""
    wide = np.asarray(values, np.float64)
    if wide.size == 0:
        return np.array(values)
    weights = np.exp(wide - wide.max(axis=axis, keepdims=True))
    return np.asarray(weights / weights.sum(axis=axis, keepdims=True)).astype(
        np.asarray(values).dtype
    )


def log_softmax(values: Array, axis: int) -> Array:
    """Return the logarithm of softmax along an axis, summed in float64."""
    wide = np.asarray(values, np.float64)
    if wide.size == 0:
        return np.array(values)
    wide = wide - wide.max(axis=axis, keepdims=True)
    total = np.log(np.exp(wide).sum(axis=axis, keepdims=True))
    return np.asarray(wide - total).astype(np.asarray(values).dtype)


def hardmax(values: Array, axis: int) -> Array:
    """Return 1 at the first largest element along an axis, 0 elsewhere."""
    result = np.zeros_like(values)
    if values.size:
        best = np.expand_dims(np.argmax(values, axis=axis), axis)
        np.put_along_axis(result, best, np.ones((), values.dtype), axis)
    return result


def along_axis(function: Along) -> Callable[..., list[Array]]:
    """Return an evaluate along attribute `axis`; scalars have one element along it."""

    @quiet
    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        data = np.asarray(inputs[0])
        if not data.ndim:
            return [function(data.reshape(1), 0).reshape(())]
        return [function(data, attributes["axis"])]

    return evaluate


def from_axis(function: Along) -> Callable[..., list[Array]]:
    """Return an evaluate over all dimensions from attribute `axis` on."""

    @quiet
    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        data, axis = np.asarray(inputs[0]), attributes["axis"]
        lead = data.shape[: axis % data.ndim if axis < 0 else axis]
        rows = data.reshape(int(np.prod(lead)), int(np.prod(data.shape[len(lead) :])))
        return [function(rows, 1).reshape(data.shape)]

    return evaluate


def infer_softmax(node: Node) -> list[ValueType]:
    """Infer: like the input; the axis must exist."""
    value = required_input(node, 0)
    if value.shape is not None:
        axis_of(node, node.attributes.get("axis", -1), len(value.shape))
    return same_as_first(node)


def upgrade_softmax(graph: Graph, node: Node) -> bool:
    """Join the dimensions from the axis on, normalize the last one and part them again."""
    data, out = required_input(node, 0), node.outputs[0]
    axis = node.attributes.get("axis", 1)
    if data.shape is None or 0 in data.shape:
        return False
    rank = len(data.shape)
    axis = axis % rank if axis < 0 else axis
    if axis < rank - 1:
        joined = constant(graph, node, "joined", np.asarray([0] * axis + [-1], np.int64))
        sizes = insert_before(graph, node, "Shape", [data], SHAPE, dtype="int64", shape=(rank,))
        flat = insert_before(graph, node, "Reshape", [data, joined], RESHAPE, dtype=data.dtype)
        graph.set_input(node, 0, flat)
        inner = Value(graph.fresh_name(f"{out.name}.flat"), data.dtype)
        node.outputs[0], inner.producer = inner, node
        after = graph.position(node) + 1
        following = graph.nodes[after] if after < len(graph.nodes) else None
        parted = Node("Reshape", [inner, sizes], [out], since_version=RESHAPE, layer=node.layer)
        graph.insert(parted, before=following)
    node.attributes["axis"] = -1
    return renewed(node, 13)


def softmax_cases() -> list[Case]:
    """Return the last and the first axis."""
    return [
        Case("last", [normal(21, 2, 3, 7)]),
        Case("first", [normal(21, 2, 3, 7) * 50], {"axis": 0}),
        Case("before one", [normal(21, 4, 3, 1)], {"axis": -2}),
    ]


def forms(op: str, function: Along) -> tuple[OpSpec, OpSpec]:
    """Return the old and the new form."""
    newest = OpSpec(
        op,
        (13,),
        ("input",),
        ("output",),
        infer=infer_softmax,
        evaluate=along_axis(function),
        attributes={"axis": Attribute("int", -1)},
        cases=softmax_cases,
    )
    old = replace(
        newest,
        versions=(1, 11),
        infer=same_as_first,
        evaluate=from_axis(function),
        attributes={"axis": Attribute("int", 1)},
        upgrade=upgrade_softmax,
        cases=list,
    )
    return old, newest


SPECS: tuple[OpSpec, ...] = (
    *forms("Softmax", softmax),
    *forms("LogSoftmax", log_softmax),
    *forms("Hardmax", hardmax),
)
