"""Older forms of operators, made from the newer ones: attributes that later became inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from halfbyte.ir.dtypes import numpy_dtype
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.spec import Array, Attribute, Context, OpSpec, ValueType, required_input
from halfbyte.ir.tensor import tensor_from_array


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
    tensor = tensor_from_array(graph.fresh_name(f"{node.outputs[0].name}.{name}"), array)
    while len(node.inputs) <= index:
        node.inputs.append(None)
    graph.set_input(node, index, graph.add_constant(tensor, fixed=True))


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

    def upgrade(graph: Graph, node: Node) -> bool:
        node.since_version = newer.versions[0]
        return True

    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        return newer.evaluate(inputs, newer.with_defaults(attributes), context)

    parts: dict[str, Any] = {"upgrade": upgrade, "evaluate": evaluate, "cases": list} | changes
    return replace(newer, versions=tuple(versions), **parts)
