"""Old forms of operators: how a node of one becomes a node of the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.spec import Array, Attribute, Context, Evaluate, OpSpec, input_at
from halfbyte.ir.tensor import tensor_from_array

Upgrade = Callable[[Graph, Node], bool]
CONSUMED = {"consumed_inputs": Attribute("ints")}
UNSQUEEZE = 25


def constant(graph: Graph, node: Node, role: str, array: Array) -> Value:
    """Return a new constant of a graph, named after the node's first output."""
    stem = f"{node.outputs[0].name}.{role}" if node.outputs else role
    return graph.add_constant(tensor_from_array(stem, np.asarray(array)), fixed=True)


def set_inputs(graph: Graph, node: Node, values: Sequence[Value | None]) -> None:
    """Let a node read other values; the list may be longer or shorter than before."""
    for index in range(len(node.inputs)):
        graph.set_input(node, index, None)
    node.inputs[:] = [None] * len(values)
    for index, value in enumerate(values):
        graph.set_input(node, index, value)


def drop_unused_outputs(graph: Graph, node: Node, keep: int) -> bool:
    """Cut outputs from `keep` on; return whether nothing reads them."""
    if any(value.uses or value in graph.outputs for value in node.outputs[keep:]):
        return False
    del node.outputs[keep:]
    return True


def renewed(node: Node, version: int, *dropped: str) -> bool:
    """Give a node another version, without some attributes; return True."""
    for name in dropped:
        node.attributes.pop(name, None)
    node.since_version = version
    return True


def to_version(version: int, *dropped: str) -> Upgrade:
    """Return an upgrade that only drops attributes without meaning."""
    return lambda graph, node: renewed(node, version, *dropped)


def consuming(newer: OpSpec, *versions: int, **changes: Any) -> OpSpec:
    """Return the form of an operator that says which inputs it may overwrite."""
    attributes = {**newer.attributes, **changes.pop("attributes", {}), **CONSUMED}
    return replace(
        newer,
        versions=versions or (1,),
        attributes=attributes,
        upgrade=to_version(newer.versions[-1], "consumed_inputs"),
        cases=list,
        **changes,
    )


def aligned(left: Array, right: Array, axis: int | None) -> Array:
    """Return the second operand in a shape that numpy broadcasts as the old forms did."""
    if right.size == 1:
        return right.reshape(())
    if axis is None:
        return right
    start = axis % max(left.ndim, 1)
    return right.reshape(right.shape + (1,) * (left.ndim - start - right.ndim))


def _aligned_first(evaluate: Evaluate) -> Evaluate:
    def old(inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context) -> list[Array]:
        left, right = (np.asarray(v) for v in inputs)
        if attributes["broadcast"]:
            right = aligned(left, right, attributes["axis"])
        return evaluate([left, right], {}, context)

    return old


def _align(version: int) -> Upgrade:
    def upgrade(graph: Graph, node: Node) -> bool:
        axis, left, right = node.attributes.get("axis"), input_at(node, 0), input_at(node, 1)
        if node.attributes.get("broadcast") and axis is not None:
            if left is None or left.shape is None or right is None or right.shape is None:
                return False
            extra = len(left.shape) - axis % max(len(left.shape), 1) - len(right.shape)
            if extra > 0 and any(dim != 1 for dim in right.shape):
                unsqueeze_end(graph, node, 1, extra)
        return renewed(node, version, "axis", "broadcast", "consumed_inputs")

    return upgrade


def insert_before(
    graph: Graph, node: Node, op: str, inputs: Sequence[Value | None], version: int, **kind: Any
) -> Value:
    """Insert a node with one output before another, in its layer, and return the output.

    kind: dtype and shape of the output, as far as they are known.
    """
    stem = f"{node.outputs[0].name}.{op.lower()}" if node.outputs else op.lower()
    out = Value(graph.fresh_name(stem), **kind)
    made = Node(op, list(inputs), [out], {}, node.domain, version, node.layer, node.origin)
    graph.insert(made, before=node)
    return out


def unsqueeze_end(graph: Graph, node: Node, index: int, count: int) -> None:
    """Give an input of known shape `count` more dimensions of 1 at its end."""
    value = node.inputs[index]
    if value is None or value.shape is None:
        raise ValueError(f"input {index} has no known shape")
    rank = len(value.shape)
    axes = constant(graph, node, "axes", np.arange(rank, rank + count))
    wide = {"dtype": value.dtype, "shape": value.shape + (1,) * count}
    out = insert_before(graph, node, "Unsqueeze", [value, axes], UNSQUEEZE, **wide)
    graph.set_input(node, index, out)


def broadcasting(newer: OpSpec, *versions: int) -> OpSpec:
    """Return the form whose attributes `broadcast` and `axis` say how the second input aligns."""
    attributes = {"axis": Attribute("int"), "broadcast": Attribute("int", 0)}
    consumed = CONSUMED if versions[0] == 1 and 6 in versions else {}
    return replace(
        newer,
        versions=versions,
        attributes={**newer.attributes, **attributes, **consumed},
        infer=infer_like_first(newer),
        evaluate=_aligned_first(newer.evaluate),
        upgrade=_align(newer.versions[-1]),
        cases=list,
    )


def infer_like_first(newer: OpSpec) -> Callable[[Node], Any]:
    """Return an infer with the newer form's dtype and the first input's shape."""

    def infer(node: Node) -> Any:
        left, right = node.inputs[:2]
        free = Node(node.op, [left, left], node.outputs, {}, node.domain)
        if left is not None and right is not None:
            same = Value(right.name, right.dtype, left.shape)
            same.constant, same.fixed = right.constant, right.fixed
            free.inputs[1] = same
        return newer.infer(free)

    return infer
