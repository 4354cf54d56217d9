"""What a plan leaves for run time: nodes whose result shapes only values decide, and all behind.

When a plan has run, the nodes of its frontier are evaluated on real values. Their results have
shapes now, so the rest of the graph is planned like any other; plans are kept by those shapes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from halfbyte.ir.dtypes import dtype_of, numpy_dtype
from halfbyte.ir.graph import Node, Value
from halfbyte.ir.ops.sequence import sequence_of
from halfbyte.ir.ops.spec import ValueType, adapts
from halfbyte.ir.tensor import Tensor, tensor_from_array
from halfbyte.runtime.backend import BoundNode, Slot
from halfbyte.runtime.memory_plan import check_bytes
from halfbyte.runtime.reference import evaluated, owned

if TYPE_CHECKING:
    from halfbyte.runtime.compile import Plan, PlanBuilder

KEPT_STAGES = 4


def kind_of(value: Any, declared: str | None = None) -> ValueType:
    """Return the type of a value at run time."""
    if isinstance(value, list):
        return sequence_of(dtype_of(value[0])) if value else ValueType(declared, None)
    if value is None:
        return ValueType(declared, None)
    return ValueType(dtype_of(value), value.shape)


@dataclass(eq=False)
class Frontier:
    """A node that waits for values, and its twin over the types known when it was planned."""

    bound: BoundNode
    shadow: Node

    def run(self, builder: PlanBuilder) -> tuple[list[Any], bool]:
        """Return the node's results, and whether a kernel made them."""
        operands = [_operand(slot) for slot in self.bound.inputs]
        outputs = self._outputs(operands)
        made = self._with_kernel(builder, operands, outputs)
        if made is not None:
            return made, True
        return [owned(v, operands) for v in evaluated(self.bound, operands)], False

    def _outputs(self, operands: Sequence[Any]) -> list[Slot] | None:
        """Return slots for the results where values decide their shapes before the node runs."""
        inputs = [_known(v, o) for v, o in zip(self.shadow.inputs, operands, strict=True)]
        types = self.bound.spec.infer(replace(self.shadow, inputs=inputs))
        slots = []
        for slot, kind in zip(self.bound.outputs, types, strict=False):
            if kind.shape is None or kind.dtype is None:
                return None
            dims = tuple(dim for dim in kind.shape if isinstance(dim, int))
            made = Slot(slot.name, kind.dtype, dims)
            if len(dims) != len(kind.shape) or not made.static:
                return None
            nbytes = math.prod(dims) * numpy_dtype(kind.dtype).itemsize
            check_bytes(self.bound.node.label, nbytes)
            slots.append(made)
        return slots if len(slots) == len(self.bound.outputs) else None

    def _with_kernel(
        self, builder: PlanBuilder, operands: Sequence[Any], outputs: list[Slot] | None
    ) -> list[Any] | None:
        """Bind a kernel to these very arrays and run it; None where there is none."""
        if outputs is None or builder.backend.name == "reference":
            return None
        inputs = [
            replace(slot, array=np.asarray(v, order="C"), shape=v.shape, dtype=dtype_of(v))
            if slot is not None and isinstance(v, np.ndarray)
            else slot
            for slot, v in zip(self.bound.inputs, operands, strict=True)
        ]
        for slot in outputs:
            slot.array = np.empty(slot.shape or (), numpy_dtype(slot.dtype or "float32"))
        step = builder.backend.bind(replace(self.bound, inputs=inputs, outputs=outputs))
        if step is None:
            return None
        if all(slot.array.size for slot in outputs):
            step()
        return [slot.array for slot in outputs]


def _operand(slot: Slot | None) -> Any:
    if slot is None:
        return None
    return slot.tensor if slot.tensor is not None else slot.value()


def _known(value: Value | None, operand: Any) -> Value | None:
    """Return a value with what is known of it now: its real type, and a constant if it is short."""
    if value is None or adapts(value) or isinstance(operand, Tensor):
        return value
    dtype, shape = kind_of(operand, value.dtype)
    constant = tensor_from_array(value.name, operand) if isinstance(operand, np.ndarray) else None
    return Value(value.name, dtype, shape, constant=constant, fixed=True)


class Stages:
    """Runs a plan's frontier and then the plan of the rest."""

    def __init__(
        self,
        builder: PlanBuilder,
        frontier: Sequence[Frontier],
        nodes: Sequence[Node],
        outputs: dict[str, Slot],
    ) -> None:
        """Take the builder of the plan before, its frontier, what is left and the final slots."""
        self._builder = builder
        self._frontier = list(frontier)
        self._nodes = list(nodes)
        self._outputs = outputs
        self._made = [v for front in self._frontier for v in front.bound.node.outputs]
        self._plans: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()
        self._slow: list[str] = []

    def run(self) -> None:
        """Evaluate the frontier, plan the rest if need be, run it and fill the final slots."""
        values: list[Any] = []
        self._slow = []
        for front in self._frontier:
            results, fast = front.run(self._builder)
            count = len(front.bound.node.outputs)
            values += [*results, *[None] * count][:count]
            self._slow += [] if fast else [front.bound.node.label]
        ends = [v for v in self._builder.graph.outputs if v in self._builder.waiting]
        found = dict(zip(self._made, values, strict=True))
        if self._nodes:
            plan = self._plan(values)
            for value, array in found.items():
                plan.inputs[value.name].fill(array)
            plan.run()
            for value in ends:
                self._outputs[value.name].array = plan.outputs[value.name].value()
        else:
            for value in ends:
                self._outputs[value.name].array = found[value]

    def _plan(self, values: Sequence[Any]) -> Plan:
        from halfbyte.runtime.compile import Plan

        declared = [value.dtype for value in self._made]
        kinds = [kind_of(v, d) for v, d in zip(values, declared, strict=True)]
        key = tuple(kinds)
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        builder, plan = self._builder.next_stage(), Plan()
        for value, kind in zip(self._made, kinds, strict=True):
            plan.inputs[value.name] = builder.receive(value, kind)
        self._plans[key] = builder.finish(plan, self._nodes)
        if len(self._plans) > KEPT_STAGES:
            self._plans.popitem(last=False)
        return self._plans[key]

    def fallbacks(self) -> list[str]:
        """Return the nodes that ran without a kernel in the latest run."""
        latest = next(reversed(self._plans.values())).every_fallback() if self._plans else []
        return [*self._slow, *latest]
