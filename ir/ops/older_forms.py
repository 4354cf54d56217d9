"""Older forms of operators over newer ones: what they mean, and how a node becomes the newer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from halfbyte.ir.dtypes import numpy_dtype
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Context,
    Evaluate,
    OpSpec,
    ValueType,
    input_at,
    required_input,
)
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


@dataclass(frozen=True)
class Lift:
    """Where an attribute of an older form stands in the newer one.

    index: the input that it became. dtype: its dtype, None for that of the first input. scalar:
    whether that input is one value and not a vector.
    """

    index: int
    dtype: str | None = "int64"
    scalar: bool = False

    def array(self, value: Any, first: str | None) -> Array:
        """Return the input's values; `first` is the dtype of the first input."""
        dtype = numpy_dtype(self.dtype or first or "float32")
        array = np.asarray(value, dtype=dtype)
        return array.reshape(()) if self.scalar else array.reshape(-1)


def set_operand(graph: Graph, node: Node, index: int, array: Array, name: str) -> None:
    """Give a node a constant at an input that may lie beyond its present ones."""
    node.inputs += [None] * (index + 1 - len(node.inputs))
    graph.set_input(node, index, constant(graph, node, name, array))


@dataclass(frozen=True)
class Older:
    """An older form over its newer one: `lifts` by attribute name; `dropped` mean nothing."""

    newer: OpSpec
    lifts: Mapping[str, Lift]
    dropped: frozenset[str]

    def arrays(self, attributes: Mapping[str, Any], first: str | None) -> dict[str, Array]:
        """Return the values of the attributes that are inputs in the newer form."""
        given = {name: attributes.get(name) for name in self.lifts}
        return {n: self.lifts[n].array(v, first) for n, v in given.items() if v is not None}

    def kept(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes that stay attributes."""
        gone = self.dropped | set(self.lifts)
        return {name: v for name, v in attributes.items() if name not in gone}

    def infer(self, node: Node) -> list[ValueType]:
        """Infer as the newer form does."""
        spec = self.newer
        attributes = {n: node.attributes.get(n) for n in self.lifts}
        first = required_input(node, 0).dtype if spec.inputs else None
        inputs = list(node.inputs)
        for name, array in self.arrays(attributes, first).items():
            index = self.lifts[name].index
            inputs += [None] * (index + 1 - len(inputs))
            tensor = tensor_from_array(name, array)
            dtype = getattr(tensor.encoding, "dtype_name", None)
            inputs[index] = Value(name, dtype, tensor.shape, constant=tensor, fixed=True)
        changed = replace(node, inputs=inputs, attributes=self.kept(node.attributes))
        return spec.infer(changed)

    def evaluate(
        self, inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        """Evaluate as the newer form does."""
        operands = list(inputs)
        first = str(operands[0].dtype) if operands and operands[0] is not None else None
        for name, array in self.arrays(attributes, first).items():
            index = self.lifts[name].index
            operands += [None] * (index + 1 - len(operands))
            operands[index] = array
        kept = self.newer.with_defaults(self.kept(attributes))
        return self.newer.evaluate(operands, kept, context)

    def upgrade(self, graph: Graph, node: Node) -> bool:
        """Turn the attributes into constant inputs."""
        first = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
        typed = all(lift.dtype is not None or first is not None for lift in self.lifts.values())
        if not typed:
            return False
        for name, array in self.arrays(node.attributes, first).items():
            set_operand(graph, node, self.lifts[name].index, array, name)
        node.attributes = self.kept(node.attributes)
        node.since_version = self.newer.versions[0]
        return True


def older(
    newer: OpSpec,
    versions: Iterable[int],
    lifts: Mapping[str, Lift],
    attributes: Mapping[str, Attribute],
    *,
    dropped: Iterable[str] = (),
    without: Iterable[str] = (),
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> OpSpec:
    """Return the spec of an older form.

    attributes: those of the older form that the newer one lacks. without: those of the newer one
    that the older lacks; their defaults hold. dropped: attributes that have no meaning. inputs:
    the older form's inputs; by default the newer one's before the first that was an attribute.
    """
    form = Older(newer, lifts, frozenset(dropped))
    first = min((lift.index for lift in lifts.values()), default=len(newer.inputs))
    gone = set(without)
    return replace(
        newer,
        versions=tuple(versions),
        inputs=tuple(newer.inputs[:first] if inputs is None else inputs),
        outputs=newer.outputs if outputs is None else tuple(outputs),
        attributes={n: a for n, a in newer.attributes.items() if n not in gone} | dict(attributes),
        infer=form.infer,
        evaluate=form.evaluate,
        upgrade=form.upgrade,
        cases=list,
    )


def renumbered(newer: OpSpec, versions: Iterable[int], **changes: Any) -> OpSpec:
    """Return an older form of the same meaning that lacks attributes, whose defaults hold."""

    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        return newer.evaluate(inputs, newer.with_defaults(attributes), context)

    upgrade = to_version(newer.versions[0])
    parts: dict[str, Any] = {"upgrade": upgrade, "evaluate": evaluate, "cases": list} | changes
    return replace(newer, versions=tuple(versions), **parts)
