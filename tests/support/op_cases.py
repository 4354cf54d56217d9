"""Run one operator case on a device, as a graph of one node."""

from __future__ import annotations

from typing import Any

import numpy as np

from halfbyte.ir.dtypes import dtype_of
from halfbyte.ir.graph import Graph, Node, State, Value
from halfbyte.ir.legality import check
from halfbyte.ir.ops import OPS, op_spec
from halfbyte.ir.ops.inference import infer_types
from halfbyte.ir.ops.spec import Case, Context, OpSpec
from halfbyte.ir.ops.subgraph import interpret
from halfbyte.ir.tensor import Tensor, tensor_from_array
from halfbyte.runtime import get_backend
from halfbyte.runtime.backend import WeightStore
from halfbyte.runtime.compile import Plan, compile_plan
from halfbyte.runtime.kv_cache import KvCache
from halfbyte.runtime.stages import kind_of
from halfbyte.runtime.subgraphs import copied


def all_cases() -> list[tuple[str, Case]]:
    """Return every case of every operator."""
    return [(key, case) for key in OPS for case in op_spec(key).cases()]


def is_weight(spec: OpSpec, index: int, operand: Any) -> bool:
    """Whether an input stands for a stored weight: always where a tensor may come encoded."""
    if isinstance(operand, Tensor):
        return True
    small_integers = operand.dtype.kind in "iu" and index > 0 and operand.size < 16
    return (index in spec.encoded and operand.ndim == 2) or small_integers


def case_graph(spec: OpSpec, case: Case) -> tuple[Graph, dict[str, np.ndarray]]:
    """Return a graph of one node and the arrays for its inputs."""
    graph, feeds = Graph(spec.op), {}
    inputs: list[Value | None] = []
    for index, operand in enumerate(case.inputs):
        name = f"in{index}"
        if operand is None:
            inputs.append(None)
        elif isinstance(operand, list):
            value = Value(name, f"sequence.{dtype_of(operand[0])}")
            graph.inputs.append(value)
            inputs.append(value)
            feeds[name] = operand
        elif is_weight(spec, index, operand):
            tensor = operand if isinstance(operand, Tensor) else tensor_from_array(name, operand)
            inputs.append(graph.add_constant(tensor, name))
        else:
            inputs.append(graph.add_input(name, dtype_of(operand), operand.shape))
            feeds[name] = operand
    for name, state in case.states.items():
        shape = ("batch", state.shape[1], "capacity", state.shape[3])
        graph.add_state(State(name, "float32", shape, 2))
    outputs = [Value(f"out{i}") for i in range(case.outputs)]
    version = max(spec.versions)
    node = Node(spec.op, inputs, outputs, dict(case.attributes), spec.domain, version)
    graph.insert(node)
    graph.outputs = outputs
    infer_types(graph)
    check(graph)
    return graph, feeds


def filled_cache(graph: Graph, case: Case, new: int) -> KvCache:
    """Return a cache that holds the case's states."""
    cache = KvCache(graph.states)
    for state in case.states.values():
        cache.reserve(state.shape[0], max(1, state.shape[2] + new))
    for name, state in case.states.items():
        cache.extend(name, state)
    for state in list(case.states.values())[:1]:
        cache.advance(state.shape[2])
    return cache


def run_case(key: str, case: Case, device: str, **options: Any) -> tuple[list[np.ndarray], Plan]:
    """Return the outputs of a case on a device, and the plan that made them."""
    spec = op_spec(key)
    graph, feeds = case_graph(spec, case)
    new = case.inputs[0].shape[1] if case.states else 0
    cache = filled_cache(graph, case, new)
    backend = get_backend(device, **options)
    shapes = {name: kind_of(array) for name, array in feeds.items()}
    plan = compile_plan(graph, backend, shapes, WeightStore(backend), cache)
    for name, array in feeds.items():
        plan.inputs[name].fill(array)
    backend.begin()
    plan.run()
    return [copied(slot.value()) for slot in plan.outputs.values()], plan


def arrays_of(results: list[Any]) -> list[np.ndarray]:
    """Return the arrays of results: those of a sequence one by one, none of an empty optional."""
    found: list[np.ndarray] = []
    for result in results:
        found += result if isinstance(result, list) else [] if result is None else [result]
    return found


def evaluate_case(key: str, case: Case) -> list[np.ndarray]:
    """Return the outputs of a case by the operator's own evaluate."""
    spec = op_spec(key)
    graph, _ = case_graph(spec, case)
    new = case.inputs[0].shape[1] if case.states else 0
    cache = filled_cache(graph, case, new) if case.states else None
    context = Context(cache, case.outputs, interpret)
    results = spec.evaluate(case.inputs, spec.with_defaults(case.attributes), context)
    return list(results[: case.outputs])
