"""What a legal graph is. `check` runs after every reader and, in tests, after every pass."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from halfbyte.errors import GraphError, UnsupportedError
from halfbyte.ir.dtypes import dtype_name, is_dtype
from halfbyte.ir.graph import Dim, Graph, Node, Value
from halfbyte.ir.ops import op_specs, spec_of
from halfbyte.ir.ops.spec import Attribute, OpSpec, ValueType
from halfbyte.ir.tensor import Tensor

STATE_ATTRIBUTES = ("key_state", "value_state")
KINDS: dict[str, tuple[type, ...]] = {
    "int": (int, np.integer),
    "float": (float, int, np.floating),
    "string": (str, bytes),
    "dtype": (str, int),
    "tensor": (Tensor, np.ndarray),
    "graph": (Graph,),
}


def check(graph: Graph) -> None:
    """Check that a graph keeps every rule of the IR; types that are not declared are not judged.

    Raises:
        GraphError: names the node or value and the rule.
    """
    defined = _sources(graph)
    listed = {(value, *use) for value in graph.values() for use in value.uses}
    for node in graph.nodes:
        _check_inputs(node, defined, listed)
        for value in node.outputs:
            if value.producer is not node:
                raise GraphError(node.label, f"output {value.name!r} links to another producer")
            _define(defined, value)
        check_node(graph, node)
    for value in graph.outputs:
        if defined.get(value.name) is not value:
            raise GraphError(value.name, "is a graph output that nothing defines")
    _check_uses(graph)
    for subgraph in graph.subgraphs():
        check(subgraph)


def check_node(graph: Graph, node: Node) -> None:
    """Check one node against its operator: version, arity, attributes, types, states.

    Raises:
        GraphError: names the node and the rule.
    """
    spec = check_form(node)
    for name in STATE_ATTRIBUTES:
        state = node.attributes.get(name)
        if state is not None and state not in graph.states:
            raise GraphError(node.label, f"state {state!r} does not exist; add it to the graph")
    kinds = spec.infer(node)
    for value, kind in zip(node.outputs, kinds, strict=False):
        _check_type(node, value, kind)


def check_form(node: Node) -> OpSpec:
    """Check what a node says apart from types: operator, version, arity, attributes.

    Raises:
        GraphError: names the node and the rule.
    """
    try:
        spec = spec_of(node)
    except UnsupportedError as error:
        raise GraphError(node.label, str(error)) from error
    if node.since_version not in spec.versions:
        known = ", ".join(str(v) for form in op_specs(spec.key) for v in form.versions)
        raise GraphError(
            node.label, f"since_version {node.since_version} is unknown; {spec.key} has {known}"
        )
    _check_arity(node, spec)
    _check_attributes(node, spec)
    return spec


def _sources(graph: Graph) -> dict[str, Value]:
    defined: dict[str, Value] = {}
    for value in graph.inputs:
        if value.producer is not None or value.constant is not None:
            raise GraphError(value.name, "is a graph input and also made elsewhere")
        _define(defined, value)
    for name, tensor in graph.constants.items():
        value = graph.constant_value(name)
        if value.name != name or value.producer is not None:
            raise GraphError(name, "is a constant under another name or with a producer")
        if value.shape is not None and value.shape != tuple(tensor.shape):
            raise GraphError(name, f"has shape {value.shape}, its tensor {tuple(tensor.shape)}")
        _define(defined, value)
    return defined


def _define(defined: dict[str, Value], value: Value) -> None:
    if value.name in defined:
        raise GraphError(value.name, "is assigned twice; every value needs a name of its own")
    if value.dtype is not None and not is_dtype(value.dtype):
        raise GraphError(value.name, f"has dtype {value.dtype!r}, a numpy name was required")
    defined[value.name] = value


def _check_inputs(
    node: Node, defined: dict[str, Value], listed: set[tuple[Value, Node, int]]
) -> None:
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if defined.get(value.name) is not value:
            raise GraphError(
                node.label, f"input {value.name!r} is read before it is defined; reorder the nodes"
            )
        if (value, node, index) not in listed:
            raise GraphError(node.label, f"input {value.name!r} does not list this use")


def _check_uses(graph: Graph) -> None:
    nodes = set(map(id, graph.nodes))
    for value in graph.values():
        for user, index in value.uses:
            held = index < len(user.inputs) and user.inputs[index] is value
            if id(user) not in nodes or not held:
                raise GraphError(value.name, f"lists a use by {user.label} that is not there")


@cache
def _bounds(names: tuple[str, ...]) -> tuple[int, float]:
    repeated = bool(names) and names[-1].endswith("*")
    required = sum(not name.endswith(("?", "*")) for name in names)
    return required + (1 if repeated and len(names) == 1 else 0), np.inf if repeated else len(names)


def _check_arity(node: Node, spec: OpSpec) -> None:
    for kind, names, values in (
        ("inputs", spec.inputs, node.inputs),
        ("outputs", spec.outputs, node.outputs),
    ):
        low, high = _bounds(names)
        if not low <= len(values) <= high:
            raise GraphError(
                node.label, f"has {len(values)} {kind}, {low} to {high:g} were required"
            )
    for name, value in zip(spec.inputs, node.inputs, strict=False):
        if value is None and not name.endswith("?"):
            raise GraphError(node.label, f"required input {name!r} is omitted")


def _check_attributes(node: Node, spec: OpSpec) -> None:
    for name, value in node.attributes.items():
        if name not in spec.attributes:
            known = ", ".join(spec.attributes) or "none"
            raise GraphError(node.label, f"attribute {name!r} is unknown; known: {known}")
        rule = spec.attributes[name]
        if value is not None and not _fits(value, rule):
            raise GraphError(node.label, f"attribute {name!r} is {value!r}, {rule.kind} required")
    for name, rule in spec.attributes.items():
        if rule.required and node.attributes.get(name) is None:
            raise GraphError(node.label, f"attribute {name!r} is missing; give it")


def _fits(value: Any, rule: Attribute) -> bool:
    if rule.kind in KINDS:
        plain = isinstance(value, KINDS[rule.kind])
        return plain and (rule.kind != "dtype" or is_dtype(dtype_name(value)))
    elements = KINDS[rule.kind[:-1]]
    return isinstance(value, (list, tuple)) and all(isinstance(v, elements) for v in value)


def _check_type(node: Node, value: Value, kind: ValueType) -> None:
    if value.dtype is not None and kind.dtype is not None and value.dtype != kind.dtype:
        raise GraphError(
            node.label, f"output {value.name!r} is declared {value.dtype}, it is {kind.dtype}"
        )
    if value.shape is None or kind.shape is None:
        return
    if len(value.shape) != len(kind.shape) or any(
        _differ(a, b) for a, b in zip(value.shape, kind.shape, strict=True)
    ):
        raise GraphError(
            node.label,
            f"output {value.name!r} is declared {list(value.shape)}, it is {list(kind.shape)}",
        )


def _differ(declared: Dim, inferred: Dim) -> bool:
    return isinstance(declared, int) and isinstance(inferred, int) and declared != inferred
