"""Graph and concrete input shapes to a flat plan: slots in one arena, a list of bound steps.

Shapes are inferred with the real dimensions; what then is known (Shape of a value, arithmetic on
constants) is computed once, reshapes become views, and every other node becomes one step. Nodes
whose result has a shape that only its values decide, and all that read them, are left to the next
stage, which is planned when those shapes are known (`stages.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from halfbyte.errors import GraphError, HalfbyteError
from halfbyte.ir.dtypes import WIDE_FLOATS, dtype_of, numpy_dtype
from halfbyte.ir.graph import Dim, Graph, Node, Value
from halfbyte.ir.ops import spec_of
from halfbyte.ir.ops.spec import (
    Array,
    OpSpec,
    ValueType,
    adapts,
    known_array,
    required_input,
)
from halfbyte.ir.ops.subgraph import is_mixed
from halfbyte.ir.passes.dead_code import has_effect, has_graphs, is_random
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.runtime.backend import Backend, BoundNode, RunGraph, Slot, Step, WeightStore
from halfbyte.runtime.kv_cache import KvCache
from halfbyte.runtime.memory_plan import Lifetime, check_bytes, place
from halfbyte.runtime.observation import Observer, observed_step
from halfbyte.runtime.reference import evaluated, reference_step
from halfbyte.runtime.stages import Frontier, Stages
from halfbyte.runtime.subgraphs import SubgraphRunner

KNOWN_ELEMENTS = 1 << 12
FOLDED_ELEMENTS = 1 << 16
# Their results are never larger than their inputs and attributes.
BOUNDED = frozenset({"Constant", "NonZero", "Unique", "Compress"})
NO_TYPE = ValueType(None, None)


@dataclass(eq=False)
class Plan:
    """Steps to run in order, the slots to fill before and to read after, and what comes next."""

    steps: list[Step] = field(default_factory=list)
    inputs: dict[str, Slot] = field(default_factory=dict)
    outputs: dict[str, Slot] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)
    arena_bytes: int = 0
    stages: Stages | None = None

    def run(self) -> None:
        """Run every step; infinities and NaN are results, not warnings.

        Raises:
            HalfbyteError: a node's inputs contradict each other; names the node.
        """
        label = ""
        with np.errstate(all="ignore"):
            try:
                for step, label in zip(self.steps, self.labels, strict=True):  # noqa: B007
                    step()
            except (ValueError, IndexError) as error:
                raise HalfbyteError(f"session: {label}: {error}") from error
            if self.stages is not None:
                self.stages.run()

    def every_fallback(self) -> list[str]:
        """Return the nodes that ran without a kernel, those of the latest later stages too."""
        later = [] if self.stages is None else self.stages.fallbacks()
        return [*self.fallbacks, *later]


class PlanBuilder:
    """Builds the plan of one stage: of a graph, or of what is left of one."""

    def __init__(
        self,
        graph: Graph,
        backend: Backend,
        weights: WeightStore,
        cache: KvCache | None,
        run: RunGraph,
        observer: Observer | None = None,
    ) -> None:
        """Take what the plan binds to."""
        self.graph = graph
        self.backend = backend
        self.weights = weights
        self.cache = cache
        self.run = run
        self.observer = observer
        self.slots: dict[Value, Slot] = {}
        self.shadows: dict[Value, Value] = {}
        self.roots: dict[Slot, Slot] = {}
        self._start()

    def _start(self) -> None:
        self.views: list[Slot] = []
        self.pending: list[BoundNode] = []
        self.later: list[Node] = []
        self.frontier: list[Frontier] = []
        self.waiting: set[Value] = set()

    def build(self, types: Mapping[str, ValueType]) -> Plan:
        """Return the plan for inputs of these types."""
        plan = Plan()
        for value in self.graph.inputs:
            plan.inputs[value.name] = self.receive(value, types[value.name])
        return self.finish(plan, self.graph.nodes)

    def next_stage(self) -> PlanBuilder:
        """Return a builder for the nodes that were left over, with all that is known so far."""
        twin = PlanBuilder(
            self.graph, self.backend, self.weights, self.cache, self.run, self.observer
        )
        twin.slots, twin.shadows = dict(self.slots), dict(self.shadows)
        twin.roots = dict(self.roots)
        return twin

    def receive(self, value: Value, kind: ValueType) -> Slot:
        """Return the slot that a value from outside the stage is put into before it runs."""
        shape = None if kind.shape is None or is_mixed(kind.dtype) else _whole(kind.shape)
        slot = Slot(value.name, kind.dtype or value.dtype, shape)
        if slot.static:
            check_bytes(value.name, _nbytes(slot))
            slot.array = np.zeros(shape or (), numpy_dtype(slot.dtype or "float32"))
        self.slots[value] = slot
        self.shadows[value] = Value(value.name, slot.dtype, shape, fixed=True)
        return slot

    def finish(self, plan: Plan, nodes: Iterable[Node]) -> Plan:
        """Plan the nodes and return the plan."""
        for node in nodes:
            self._node(node)
        ends: list[Slot] = []
        for value in self.graph.outputs:
            made = value not in self.waiting
            plan.outputs[value.name] = (
                self._result(self._slot(value)) if made else Slot(value.name, value.dtype, None)
            )
            ends += [plan.outputs[value.name]] if made else []
        plan.arena_bytes = self._allocate([*ends, *self._read_later()])
        for bound in self.pending:
            self._bind(plan, bound)
        if self.frontier:
            plan.stages = Stages(self, self.frontier, self.later, plan.outputs)
        return plan

    def _read_later(self) -> list[Slot]:
        found = [slot for front in self.frontier for slot in front.bound.inputs if slot is not None]
        for node in self.later:
            found += [self.slots[v] for v in node.inputs if v is not None and v in self.slots]
        return found

    def _define(self, value: Value, slot: Slot, shape: tuple[Dim, ...] | None) -> None:
        self.slots[value] = slot
        constant = None
        if slot.constant and slot.tensor is None:
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
        return Slot(slot.name, dtype_of(array), tuple(array.shape), array, constant=True)

    def _node(self, node: Node) -> None:
        if any(value in self.waiting for value in node.inputs if value is not None):
            self.later.append(node)
            self.waiting.update(node.outputs)
            return
        spec = spec_of(node)
        slots = [None if value is None else self._slot(value) for value in node.inputs]
        shadow = self._shadow(node)
        types = [*spec.infer(shadow), *[NO_TYPE] * len(node.outputs)][: len(node.outputs)]
        if node.op == "Gather":
            check_known_indices(shadow)
        outputs = [
            Slot(value.name, kind.dtype or value.dtype, _static_shape(kind))
            for value, kind in zip(node.outputs, types, strict=True)
        ]
        bound = BoundNode(
            node,
            spec,
            spec.with_defaults(node.attributes),
            self._operands(spec, shadow, slots),
            outputs,
            self.weights,
            self.cache,
            self.run,
        )
        if not self._folded(bound, shadow):
            if any(not is_mixed(slot.dtype) and slot.shape is None for slot in outputs):
                self.frontier.append(Frontier(bound, shadow))
                self.waiting.update(node.outputs)
                return
            self._schedule(bound)
        for value, slot, kind in zip(node.outputs, outputs, types, strict=True):
            self._define(value, slot, slot.shape if slot.constant else kind.shape)

    def _shadow(self, node: Node) -> Node:
        inputs = [None if value is None else self.shadows[value] for value in node.inputs]
        return replace(node, inputs=inputs)

    def _operands(
        self, spec: OpSpec, shadow: Node, slots: Sequence[Slot | None]
    ) -> list[Slot | None]:
        """Return the input slots; constants that come decoded get arrays of the right dtype."""
        meeting = [v.dtype for v in shadow.inputs if v is not None and not adapts(v)]
        floats = [d for d in meeting if d in WIDE_FLOATS]
        result: list[Slot | None] = []
        for index, slot in enumerate(slots):
            value = shadow.inputs[index]
            rank = 0 if slot is None else len(slot.shape or ())
            kept = index in spec.encoded and rank == spec.encoded_rank
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
        first = bound.inputs[0] if bound.inputs else None
        if bound.node.op == "Shape" and first is not None and first.shape is not None:
            dims = np.asarray(first.shape, dtype=np.int64)
            results = [dims[bound.attributes["start"] : bound.attributes["end"]]]
        elif self._may_fold(bound, shadow):
            operands = [None if slot is None else _constant_array(slot) for slot in bound.inputs]
            with np.errstate(all="ignore"):
                results = evaluated(bound, operands)
        else:
            return False
        for slot, result in zip(bound.outputs, results, strict=False):
            slot.array = np.asarray(result, order="C")
            slot.dtype, slot.shape, slot.constant = dtype_of(result), result.shape, True
        return True

    def _may_fold(self, bound: BoundNode, shadow: Node) -> bool:
        node = bound.node
        if has_effect(node) or is_random(node) or has_graphs(node):
            return False
        if any(is_mixed(slot.dtype) or slot.dtype == "string" for slot in bound.outputs):
            return False
        if not all(v is None or _known(v) for v in shadow.inputs):
            return False
        if node.op in BOUNDED:
            return True
        return all(
            slot.shape is not None and math.prod(slot.shape) <= FOLDED_ELEMENTS
            for slot in bound.outputs
        )

    def _schedule(self, bound: BoundNode) -> None:
        source = bound.inputs[0] if bound.inputs else None
        output = bound.outputs[0]
        if bound.spec.view and source is not None and source.tensor is None and bound.static:
            self.roots[output] = self.roots.get(source, source)
            self.views.append(output)
            return
        self.pending.append(bound)

    def _allocate(self, outputs: Iterable[Slot]) -> int:
        """Give every static slot its array; return the arena's bytes."""
        spans = self._lifetimes(outputs)
        for slot in spans:
            check_bytes(slot.name, _nbytes(slot))
        lifetimes = [Lifetime(_nbytes(slot), *span) for slot, span in spans.items()]
        offsets, size = place(lifetimes)
        check_bytes(self.graph.name, size)
        try:
            arena = self.backend.empty(size)
        except MemoryError as error:
            raise HalfbyteError(f"session: {error}; free some memory") from None
        for slot, offset in zip(spans, offsets, strict=True):
            raw = arena[offset : offset + _nbytes(slot)]
            slot.array = raw.view(numpy_dtype(slot.dtype or "")).reshape(slot.shape or ())
        for slot in self.views:
            slot.array = self.roots[slot].value().reshape(slot.shape or ())
        return size

    def _lifetimes(self, outputs: Iterable[Slot]) -> dict[Slot, tuple[int, int]]:
        spans: dict[Slot, tuple[int, int]] = {}
        for place_, bound in enumerate(self.pending):
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
        plan.steps.append(observed_step(bound, step, self.observer))
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


def _whole(shape: Sequence[Dim]) -> tuple[int, ...]:
    return tuple(int(dim) for dim in shape)


def _static_shape(kind: ValueType) -> tuple[int, ...] | None:
    if kind.shape is None or kind.dtype is None or is_mixed(kind.dtype):
        return None
    dims = tuple(dim for dim in kind.shape if isinstance(dim, int))
    return dims if len(dims) == len(kind.shape) else None


def _known(value: Value) -> bool:
    return value.constant is not None and value.constant.size <= KNOWN_ELEMENTS


def _constant_array(slot: Slot) -> Array:
    return slot.value() if slot.tensor is None else slot.tensor.numpy()


def _nbytes(slot: Slot) -> int:
    return math.prod(slot.shape or ()) * numpy_dtype(slot.dtype or "float32").itemsize


def compile_plan(
    graph: Graph,
    backend: Backend,
    types: Mapping[str, ValueType | tuple[int, ...]],
    weights: WeightStore | None = None,
    cache: KvCache | None = None,
    run: RunGraph | None = None,
    observer: Observer | None = None,
) -> Plan:
    """Return the plan that runs `graph` on inputs of these types; a bare shape has no dtype.

    run: what runs the graphs inside nodes, to be shared by the plans of a session; observer: sees
    what meets the weights of linear layers.

    Raises:
        GraphError: shapes contradict the graph.
        HalfbyteError: the values do not fit into memory.
        UnsupportedError: an operator is unknown.
    """
    store = weights or WeightStore(backend)
    runner = run or SubgraphRunner(backend, store, compile_plan)
    builder = PlanBuilder(graph, backend, store, cache, runner, observer)
    kinds = {
        name: kind if isinstance(kind, ValueType) else ValueType(None, kind)
        for name, kind in types.items()
    }
    return builder.build(kinds)
