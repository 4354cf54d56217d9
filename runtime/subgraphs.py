"""Graphs inside nodes, compiled once for each set of input types."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from halfbyte.ir.graph import Graph
from halfbyte.ir.ops.subgraph import interpret
from halfbyte.runtime.backend import Backend, WeightStore
from halfbyte.runtime.stages import kind_of

if TYPE_CHECKING:
    from halfbyte.runtime.compile import Plan

KEPT_PLANS = 8
PATIENCE = 24


class SubgraphRunner:
    """Runs subgraphs for a plan, on its device and over its weights.

    A graph whose input types differ in nearly every call, as in a loop that grows a value, costs
    more to plan than to evaluate: after PATIENCE such calls it is evaluated in numpy.
    """

    def __init__(
        self, backend: Backend, weights: WeightStore, compile_plan: Callable[..., Plan]
    ) -> None:
        """Start without plans."""
        self._backend = backend
        self._weights = weights
        self._compile = compile_plan
        self._plans: dict[int, tuple[Graph, OrderedDict[Any, Plan]]] = {}
        self._misses: dict[int, int] = {}

    def __call__(self, graph: Graph, inputs: Sequence[Any]) -> list[Any]:
        """Return the outputs of a graph for its inputs in order; they are the caller's own."""
        plan = self._plan(graph, inputs)
        if plan is None:
            return interpret(graph, inputs)
        for value, given in zip(graph.inputs, inputs, strict=True):
            plan.inputs[value.name].fill(given)
        plan.run()
        return [copied(plan.outputs[value.name].value()) for value in graph.outputs]

    def _plan(self, graph: Graph, inputs: Sequence[Any]) -> Plan | None:
        _, plans = self._plans.setdefault(id(graph), (graph, OrderedDict()))
        key = tuple(_signature(given) for given in inputs)
        misses = self._misses.get(id(graph), 0)
        if key in plans:
            plans.move_to_end(key)
            self._misses[id(graph)] = max(0, misses - 1)
            return plans[key]
        if misses >= PATIENCE:
            return None
        self._misses[id(graph)] = misses + 1
        kinds = {
            value.name: kind_of(given, value.dtype)
            for value, given in zip(graph.inputs, inputs, strict=True)
        }
        plans[key] = self._compile(graph, self._backend, kinds, self._weights, run=self)
        if len(plans) > KEPT_PLANS:
            plans.popitem(last=False)
        return plans[key]


def _signature(value: Any) -> Any:
    """Return what a plan depends on, cheaply: dtype and shape of an array."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape
    return (kind_of(value), value is None)


def copied(value: Any) -> Any:
    """Return a value that shares no memory with a plan; the elements of a list never do."""
    if isinstance(value, list):
        return list(value)
    return None if value is None else np.array(value, order="C")
