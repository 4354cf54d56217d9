"""Graph and concrete input shapes to a flat plan: slots in one arena, a list of bound steps.

Shapes are inferred with the real dimensions; what then is known (Shape of a value, arithmetic on
constants) is computed once, reshapes become views, and every other node becomes one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from halfbyte.errors import GraphError, HalfbyteError
from halfbyte.ir.dtypes import dtype_of, numpy_dtype
from halfbyte.ir.graph import Dim, Graph, Node, Value
from halfbyte.ir.ops import spec_of
from halfbyte.ir.ops.spec import (
    Array,
    Context,
    OpSpec,
    ValueType,
    adapts,
    known_array,
    required_input,
)
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.runtime.backend import Backend, BoundNode, Slot, Step, WeightStore
from halfbyte.runtime.kv_cache import KvCache
from halfbyte.runtime.memory_plan import Lifetime, place
from halfbyte.runtime.reference import reference_step

KNOWN_ELEMENTS = 1 << 12


@dataclass(eq=False)
class Plan:
    """Steps to run in order, and the slots to fill before and to read after."""

    steps: list[Step] = field(default_factory=list)
    inputs: dict[str, Slot] = field(default_factory=dict)
    outputs: dict[str, Slot] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)
    arena_bytes: int = 0

    def run(self) -> None:
        """Run every step; infinities and NaN are results, not warnings."""
        with np.errstate(all="ignore"):
            for step in self.steps:
                step()


class PlanBuilder:
    """Builds one plan."""

    def __init__(
        self, graph: Graph, backend: Backend, weights: WeightStore, cache: KvCache | None
    ) -> None:
        """Take what the plan binds to."""
        self.graph = graph
        self.backend = backend
        self.weights = weights
        self.cache = cache
        self.slots: dict[Value, Slot] = {}
        self.shadows: dict[Value, Value] = {}
        self.roots: dict[Slot, Slot] = {}
        self.pending: list[tuple[BoundNode, int]] = []

    def build(self, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
        """Return the plan for inputs of these shapes."""
        plan = Plan()
        for value in self.graph.inputs:
            slot = Slot(value.name, value.dtype, shapes[value.name])
            slot.array = np.zeros(shapes[value.name], numpy_dtype(value.dtype or "float32"))
            self._define(value, slot, shapes[value.name])
            plan.inputs[value.name] = slot
        for node in self.graph.nodes:
            self._node(node)
        for value in self.graph.outputs:
            plan.outputs[value.name] = self._result(self._slot(value))
        plan.arena_bytes = self._allocate(plan.outputs.values())
        for bound, _ in self.pending:
            self._bind(plan, bound)
        return plan

    def _define(self, value: Value, slot: Slot, shape: tuple[Dim, ...] | None) -> None:
        self.slots[value] = slot
        constant = None
        known = slot.tensor is None and slot.array is not None and value not in self.graph.inputs
        if known and slot.array is not None:
            constant = tensor_from_array(value.name, slot.array)
        self.shadows[value] = Value(value.name, slot.dtype, shape, constant=constant, fixed=True)

    def _slot(self, value: Value) -> Slot:
        if value not in self.slots:
            if value.constant is None:
                raise GraphError(value.name, "is read before any node makes it")
            tensor = value.constant
            self.slots[value] = Slot(value.name, value.dtype, tuple(tensor.shape), tensor=tensor)
            self.shadows[value] = value
        return self.slots[value]

    def _result(self, slot: Slot) -> Slot:
        if slot.tensor is None:
            return slot
        array = slot.tensor.numpy()
        return Slot(slot.name, array.dtype.name, tuple(array.shape), array)

    def _node(self, node: Node) -> None:
        spec = spec_of(node)
        slots = [None if value is None else self._slot(value) for value in node.inputs]
        shadow = self._shadow(node)
        types = spec.infer(shadow)
        if node.op == "Gather":
            check_known_indices(shadow)
        outputs = [
            Slot(value.name, kind.dtype or value.dtype, _static_shape(kind))
            for value, kind in zip(node.outputs, types, strict=False)
        ]
        bound = BoundNode(
            node,
            spec,
            spec.with_defaults(node.attributes),
            self._operands(spec, shadow, slots),
            outputs,
            self.weights,
            self.cache,
        )
        if not self._folded(bound, shadow):
            self._schedule(bound)
        for value, slot, kind in zip(node.outputs, outputs, types, strict=False):
            self._define(value, slot, kind.shape)

    def _shadow(self, node: Node) -> Node:
        inputs = [None if value is None else self.shadows[value] for value in node.inputs]
        return replace(node, inputs=inputs)

    def _operands(
        self, spec: OpSpec, shadow: Node, slots: Sequence[Slot | None]
    ) -> list[Slot | None]:
        """Return the input slots; constants that come decoded get arrays of the right dtype."""
        meeting = [v.dtype for v in shadow.inputs if v is not None and not adapts(v)]
        floats = [d for d in meeting if d in ("float64", "float32", "float16", "bfloat16")]
        result: list[Slot | None] = []
        for index, slot in enumerate(slots):
            value = shadow.inputs[index]
            kept = index in spec.encoded and slot is not None and len(slot.shape or ()) == 2
            if slot is None or slot.tensor is None or value is None or kept:
                result.append(slot)
            else:
                own = value.dtype or "float32"
                dtype = (floats[0] if floats else "float32") if adapts(value) else own
                array = self.weights.array(slot.tensor, numpy_dtype(dtype))
                result.append(Slot(slot.name, dtype, tuple(array.shape), array, constant=True))
        return result

    def _folded(self, bound: BoundNode, shadow: Node) -> bool:
        """Compute a node whose inputs are known and small now."""
        if bound.node.op == "Shape" and bound.inputs[0] is not None and bound.inputs[0].static:
            dims = np.asarray(bound.inputs[0].shape, dtype=np.int64)
            bound.outputs[0].array = dims[bound.attributes["start"] : bound.attributes["end"]]
            bound.outputs[0].constant = True
            return True
        known = all(v is None or _known(v) for v in shadow.inputs)
        if not known or any(bound.attributes.get(n) for n in ("key_state", "value_state")):
            return False
        operands = [None if slot is None else _constant_array(slot) for slot in bound.inputs]
        context = Context(outputs=len(bound.outputs))
        results = bound.spec.evaluate(operands, bound.attributes, context)
        for slot, result in zip(bound.outputs, results, strict=False):
            slot.array = np.asarray(result, order="C")
            slot.dtype, slot.shape, slot.constant = dtype_of(result), result.shape, True
        return True

    def _schedule(self, bound: BoundNode) -> None:
        source = bound.inputs[0] if bound.inputs else None
        output = bound.outputs[0]
        if bound.spec.view and source is not None and source.tensor is None and bound.static:
            self.roots[output] = self.roots.get(source, source)
            return
        self.pending.append((bound, len(self.pending)))

    def _allocate(self, outputs: Iterable[Slot]) -> int:
        """Give every static slot its array; return the arena's bytes."""
        spans = self._lifetimes(outputs)
        lifetimes = [Lifetime(_nbytes(slot), *span) for slot, span in spans.items()]
        offsets, size = place(lifetimes)
        arena = self.backend.empty(size)
        for (slot, _), offset in zip(spans.items(), offsets, strict=True):
            raw = arena[offset : offset + _nbytes(slot)]
            slot.array = raw.view(numpy_dtype(slot.dtype or "")).reshape(slot.shape or ())
        for slot, root in self.roots.items():
            slot.array = root.value().reshape(slot.shape or ())
        return size

    def _lifetimes(self, outputs: Iterable[Slot]) -> dict[Slot, tuple[int, int]]:
        spans: dict[Slot, tuple[int, int]] = {}
        for bound, place_ in self.pending:
            for slot in bound.outputs:
                if slot.static:
                    spans[slot] = (place_, place_)
            for read in filter(None, bound.inputs):
                root = self.roots.get(read, read)
                if root in spans:
                    spans[root] = (spans[root][0], place_)
        for result in outputs:
            root = self.roots.get(result, result)
            if root in spans:
                spans[root] = (spans[root][0], len(self.pending))
        return spans

    def _bind(self, plan: Plan, bound: BoundNode) -> None:
        has_state = bool(bound.attributes.get("key_state"))
        if not has_state and all(slot.static and 0 in (slot.shape or ()) for slot in bound.outputs):
            return
        step = self.backend.bind(bound)
        if step is None:
            plan.fallbacks.append(bound.node.label)
            step = reference_step(bound)
        plan.steps.append(step)
        plan.labels.append(bound.node.label)


def check_known_indices(node: Node) -> None:
    """Check indices that the input shapes alone decide, such as positions of a long sequence.

    Raises:
        HalfbyteError: one is outside the table.
    """
    table, ids = required_input(node, 0), known_array(required_input(node, 1))
    axis = node.attributes.get("axis", 0)
    length = table.shape[axis] if table.shape else None
    if ids is None or not ids.size or not isinstance(length, int):
        return
    low, high = int(ids.min()), int(ids.max())
    if low < -length or high >= length:
        raise HalfbyteError(
            f"session: index {high if high >= length else low} into {table.name!r} of {length}; "
            "the input is too long for the model"
        )


def _static_shape(kind: ValueType) -> tuple[int, ...] | None:
    if kind.shape is None or kind.dtype is None:
        return None
    dims = tuple(dim for dim in kind.shape if isinstance(dim, int))
    return dims if len(dims) == len(kind.shape) else None


def _known(value: Value) -> bool:
    return value.constant is not None and value.constant.size <= KNOWN_ELEMENTS


def _constant_array(slot: Slot) -> Array:
    return slot.value() if slot.tensor is None else slot.tensor.numpy()


def _nbytes(slot: Slot) -> int:
    count = 1
    for dim in slot.shape or ():
        count *= dim
    return count * numpy_dtype(slot.dtype or "float32").itemsize


def compile_plan(
    graph: Graph,
    backend: Backend,
    shapes: Mapping[str, tuple[int, ...]],
    weights: WeightStore | None = None,
    cache: KvCache | None = None,
) -> Plan:
    """Return the plan that runs `graph` on inputs of `shapes`.

    Raises:
        GraphError: shapes contradict the graph.
        UnsupportedError: an operator is unknown.
    """
    return PlanBuilder(graph, backend, weights or WeightStore(backend), cache).build(shapes)
