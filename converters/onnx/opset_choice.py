"""Which opset a graph can be written at, and which IR version that takes.

A node keeps its form: an opset fits if the operator's version in force there is one of those that
share the node's form, and takes the node's types, arity and attributes. Older forms are rewritten
by `OpSpec.upgrade` where that is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from halfbyte.errors import UnsupportedError
from halfbyte.ir.dtypes import MIXED, ONNX_NUMBERS, element_dtype
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops import op_key, op_spec, spec_of
from halfbyte.ir.ops.spec import OpSpec

DEFAULT_DOMAINS = ("", "ai.onnx")
# Negative axes and indices exist from opset 11 on, so nothing is written lower unless it must be.
LOWEST = 11
RUNTIME_HIGHEST = 26  # what released onnxruntimes load
LOWEST_IR = 4
# IR version that an opset, or a type, came with.
OPSET_IR = {10: 5, 11: 6, 12: 7, 15: 8, 19: 9, 21: 10, 23: 11, 24: 12, 25: 13, 28: 14}
DTYPE_IR = {
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"), 9),
    **dict.fromkeys(("int4", "uint4"), 10),
    "float4_e2m1fn": 11,
    "float8_e8m0fnu": 12,
    **dict.fromkeys(("int2", "uint2"), 13),
    **dict.fromkeys(("float6_e2m3fn", "float6_e3m2fn"), 14),
}
# Opsets that values of an attribute came with, where its operator kept its form.
VALUE_OPSETS: dict[tuple[str, str, str], int] = {
    ("Pad", "mode", "wrap"): 19,
    ("ScatterElements", "reduction", "max"): 18,
    ("ScatterElements", "reduction", "min"): 18,
    ("ScatterND", "reduction", "max"): 18,
    ("ScatterND", "reduction", "min"): 18,
    ("Resize", "coordinate_transformation_mode", "half_pixel_symmetric"): 19,
}
TYPE_WORDS = {
    "float32": "float",
    "float64": "double",
    "float8_e4m3fn": "float8e4m3fn",
    "float8_e4m3fnuz": "float8e4m3fnuz",
    "float8_e5m2": "float8e5m2",
    "float8_e5m2fnuz": "float8e5m2fnuz",
    "float8_e8m0fnu": "float8e8m0",
    "float4_e2m1fn": "float4e2m1",
    "float6_e2m3fn": "float6e2m3",
    "float6_e3m2fn": "float6e3m2",
}


@cache
def highest_opset() -> int:
    """Return the newest opset that the onnx package knows."""
    import onnx.defs

    return int(onnx.defs.onnx_opset_version())


@cache
def schema_at(op: str, opset: int) -> Any:
    """Return the schema of a standard operator in force at an opset; None where there is none."""
    import onnx.defs

    try:
        found = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None
    return None if found.deprecated else found


@cache
def _allowed(op: str, opset: int) -> tuple[tuple[frozenset[str], ...], tuple[frozenset[str], ...]]:
    schema = schema_at(op, opset)
    inputs = tuple(frozenset(formal.types) for formal in schema.inputs)
    return inputs, tuple(frozenset(formal.types) for formal in schema.outputs)


def type_word(dtype: str) -> str:
    """Return how a schema spells a dtype: `tensor(float)`, `seq(tensor(int64))`."""
    kind, _, inner = dtype.partition(".")
    if kind in MIXED:
        return f"{'seq' if kind == 'sequence' else 'optional'}({type_word(inner)})"
    return f"tensor({TYPE_WORDS.get(dtype, dtype)})"


def obstacle(node: Node, opset: int, own_form: bool = False) -> str:
    """Return what keeps a node of the standard domain out of an opset, or an empty text.

    own_form: do not look whether an older form of the operator says the same.
    """
    schema = schema_at(node.op, opset)
    if schema is None:
        return "the operator does not exist there"
    spec = spec_of(node)
    fits = schema.since_version in spec.versions
    if not fits and (own_form or not _means_the_same(node, spec, schema)):
        versions = spec.versions
        newer = schema.since_version > versions[-1]
        return f"its form is that of version {versions[-1] if newer else versions[0]}"
    inputs, outputs = len(written_inputs(node)), len(node.outputs)
    if not schema.min_input <= inputs <= schema.max_input:
        return f"it takes at most {schema.max_input} inputs there"
    for formal, value in zip(schema.inputs, written_inputs(node), strict=False):
        if value is None and formal.option != type(formal.option).Optional:
            return f"input {formal.name!r} is required there"
    if not schema.min_output <= outputs <= schema.max_output:
        return f"it has at most {schema.max_output} outputs there"
    for name, value in node.attributes.items():
        if value is None or name in schema.attributes or name == "captures":
            continue
        if not _same(value, spec.attributes[name].default):
            return f"attribute {name!r} does not exist there"
    for (op, name, value), first in VALUE_OPSETS.items():
        if node.op == op and opset < first and node.attributes.get(name) == value:
            return f"{name} {value!r} does not exist there"
    for name, rule in schema.attributes.items():
        if rule.required and node.attributes.get(name) is None:
            return f"attribute {name!r} is required there"
    return _type_obstacle(node, opset)


def form_at(node: Node, opset: int) -> OpSpec | None:
    """Return the form of a node's operator at an opset, None where there is none."""
    schema = schema_at(node.op, opset)
    if schema is None:
        return None
    found = op_spec(op_key(node.op, node.domain), schema.since_version)
    return found if schema.since_version in found.versions else None


def _means_the_same(node: Node, spec: OpSpec, schema: Any) -> bool:
    """Whether an older form of the operator, upgraded, gives exactly this node."""
    older = op_spec(spec.key, schema.since_version)
    if schema.since_version not in older.versions or schema.since_version > spec.versions[0]:
        return False
    given = {n: v for n, v in node.attributes.items() if v is not None}
    kept = {n: v for n, v in given.items() if n in older.attributes}
    graph = Graph()
    inputs = [None if v is None else replace(v, producer=None, _uses={}) for v in node.inputs]
    outputs = [Value(v.name, v.dtype, v.shape) for v in node.outputs]
    twin = Node(node.op, list(inputs), outputs, kept, node.domain, schema.since_version)
    graph.insert(twin)
    while twin.since_version not in spec.versions:
        step = spec_of(twin).upgrade
        if step is None or not step(graph, twin) or len(graph.nodes) > 1:
            return False
    same_place = twin.op == node.op and twin.inputs == inputs and twin.outputs == outputs
    whole, wanted = spec.with_defaults(twin.attributes), spec.with_defaults(given)
    return same_place and all(_equal(whole.get(n), v) for n, v in wanted.items())


def _equal(left: Any, right: Any) -> bool:
    if left is None or right is None or isinstance(left, Graph):
        return left is right
    return bool(np.array_equal(left, right))


def _same(value: Any, default: Any) -> bool:
    return default is not None and bool(np.array_equal(value, default))


def _type_obstacle(node: Node, opset: int) -> str:
    allowed_inputs, allowed_outputs = _allowed(node.op, opset)
    for values, allowed in (
        (written_inputs(node), allowed_inputs),
        (node.outputs, allowed_outputs),
    ):
        for index, value in enumerate(values):
            if value is None or value.dtype is None or not allowed:
                continue
            if type_word(value.dtype) not in allowed[min(index, len(allowed) - 1)]:
                return f"it does not take {value.dtype} there"
    return ""


def written_inputs(node: Node) -> list[Any]:
    """Return the inputs as a file has them: without captures and trailing omissions."""
    captures = node.attributes.get("captures") or 0
    found = node.inputs[: len(node.inputs) - captures]
    while found and found[-1] is None:
        found = found[:-1]
    return found


def every_graph(graph: Graph) -> Iterator[Graph]:
    """Yield a graph and all graphs inside it."""
    yield graph
    for inner in graph.subgraphs():
        yield from every_graph(inner)


def standard_nodes(graph: Graph) -> Iterator[tuple[Graph, Node]]:
    """Yield the nodes of ai.onnx in a graph and all graphs inside it, with their graphs."""
    for part in every_graph(graph):
        for node in part.nodes:
            if node.domain in DEFAULT_DOMAINS:
                yield part, node


def upgrade_nodes(graph: Graph, highest: int) -> None:
    """Rewrite, in place, older forms of operators while a newer one exists up to `highest`."""
    pending = True
    while pending:
        pending = False
        for part, node in list(standard_nodes(graph)):
            spec = spec_of(node)
            schema = schema_at(node.op, highest)
            outdated = schema is not None and schema.since_version > spec.versions[-1]
            if node.outputs and outdated and spec.upgrade is not None and spec.upgrade(part, node):
                pending = True


def fitting_opset(graph: Graph, asked: int | None = None) -> int:
    """Return the opset to write at: `asked`, or the lowest from 11 on that every node allows.

    Raises:
        UnsupportedError: no opset fits; the node that stops it is named.
    """
    newest = highest_opset()
    if asked is not None and not 1 <= asked <= newest:
        raise UnsupportedError(f"opset {asked}", "--opset", [f"1 to {newest}"])
    nodes = [node for _, node in standard_nodes(graph)]
    if asked is not None:
        _require_fit(nodes, asked)
        return asked
    candidates = [*range(LOWEST, newest + 1), *range(LOWEST - 1, 0, -1)]
    left = list({_signature(node): node for node in nodes}.values())
    found = _first(left, candidates, own_form=True)
    if found is None or found > RUNTIME_HIGHEST:
        found = _first(left, candidates, own_form=False) or found
    if found is not None:
        return found
    raise _conflict(nodes, newest)


def _first(nodes: list[Node], candidates: list[int], own_form: bool) -> int | None:
    for opset in candidates:
        if not any(obstacle(node, opset, own_form) for node in nodes):
            return opset
    return None


def _signature(node: Node) -> object:
    """Return what decides where a node fits, so that equal nodes are judged once."""
    if any(isinstance(value, (Graph, np.ndarray, list)) for value in node.attributes.values()):
        return id(node)
    kinds = tuple(None if v is None else v.dtype for v in (*node.inputs, *node.outputs))
    held = tuple(sorted((name, str(value)) for name, value in node.attributes.items()))
    return node.op, node.since_version, len(node.inputs), kinds, held


def _require_fit(nodes: Iterable[Node], opset: int) -> None:
    for node in nodes:
        reason = obstacle(node, opset)
        if reason:
            fitting = [str(n) for n in range(1, highest_opset() + 1) if not obstacle(node, n)]
            raise UnsupportedError(
                f"opset {opset}", f"node {node.label}", fitting, f"{reason}; ask for another opset"
            )


def _conflict(nodes: list[Node], newest: int) -> UnsupportedError:
    """Return the error that names two nodes without a common opset, or one without any."""
    ranges = [(node, {n for n in range(1, newest + 1) if not obstacle(node, n)}) for node in nodes]
    lowest = max(ranges, key=lambda entry: min(entry[1], default=newest + 1))
    if not lowest[1]:
        return UnsupportedError(
            f"{lowest[0].op} in any opset",
            f"node {lowest[0].label}",
            advice=obstacle(lowest[0], newest),
        )
    other = min(ranges, key=lambda entry: max(entry[1]))
    return UnsupportedError(
        f"opset {min(lowest[1])}, which node {lowest[0].label} needs,",
        f"node {other[0].label}",
        [f"opset {n}" for n in sorted(other[1], reverse=True)],
    )


def fitting_ir_version(graph: Graph, opset: int) -> int:
    """Return the lowest IR version for an opset and the types of a graph."""
    found = max([LOWEST_IR, *(ir for first, ir in OPSET_IR.items() if opset >= first)])
    for part in every_graph(graph):
        for value in part.values():
            if value.dtype is None:
                continue
            found = max(found, DTYPE_IR.get(element_dtype(value.dtype), LOWEST_IR))
            assert element_dtype(value.dtype) in ONNX_NUMBERS, value.name
            if value.dtype.startswith("optional"):
                found = max(found, 8)
    return found
