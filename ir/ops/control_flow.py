"""If, Loop and Scan: operators that run graphs.

The last `captures` inputs of a node are the values of the graph around it that its graphs read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import element_dtype, numpy_dtype
from halfbyte.ir.graph import Dim, Graph, Node, Value
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    input_at,
    ints,
    known_array,
    normal,
    required_input,
)
from halfbyte.ir.ops.subgraph import body_types, joined
from halfbyte.ir.tensor import Tensor

VERSIONS = (11, 13, 16, 19, 21, 23, 24, 25)
ROUNDS = 4


def kind_of(value: Value | None) -> ValueType:
    """Return the type of a value."""
    return ValueType(None, None) if value is None else ValueType(value.dtype, value.shape)


def constants_of(values: Sequence[Value | None]) -> list[Tensor | None]:
    """Return the constants among values."""
    return [None if value is None else value.constant for value in values]


def run_of(context: Context) -> Callable[[Graph, Sequence[Any]], list[Any]]:
    """Return what runs subgraphs."""
    assert context.run is not None, "a graph inside a node needs something that runs it"
    return context.run


def truth(operand: Any) -> bool:
    """Return a condition of one element."""
    return bool(np.asarray(operand).reshape(-1)[0])


def infer_if(node: Node) -> list[ValueType]:
    """Infer: what the chosen branch yields, or what both have in common."""
    captured = node.inputs[1:]
    condition = known_array(required_input(node, 0))
    names = ["then_branch", "else_branch"]
    if condition is not None and condition.size == 1:
        names = names[:1] if truth(condition) else names[1:]
    kinds, constants = [kind_of(v) for v in captured], constants_of(captured)
    found = [_branch(node, name, kinds, constants, len(names) == 1) for name in names]
    if any(len(types) != len(node.outputs) for types in found):
        raise GraphError(node.label, f"a branch does not yield {len(node.outputs)} values")
    if len(found) == 1:
        return found[0]
    return [_branched(a, b) for a, b in zip(*found, strict=True)]


def _branch(
    node: Node,
    name: str,
    kinds: Sequence[ValueType],
    constants: Sequence[Tensor | None],
    chosen: bool,
) -> list[ValueType]:
    """Return what a branch yields; one that cannot run must not be chosen, which is no error."""
    try:
        return body_types(node.attributes[name], kinds, constants)
    except GraphError:
        if chosen:
            raise
        return [ValueType(value.dtype, None) for value in node.attributes[name].outputs]


def _branched(first: ValueType, second: ValueType) -> ValueType:
    both = joined(first, second)
    # One branch may make an optional of what the other yields plain.
    mixed = [t.dtype for t in (first, second) if t.dtype is not None and "optional" in t.dtype]
    return ValueType(mixed[0] if mixed else both.dtype, both.shape)


def evaluate_if(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Run one branch."""
    branch = attributes["then_branch" if truth(inputs[0]) else "else_branch"]
    return run_of(context)(branch, inputs[1:])


def state_count(node_inputs: Sequence[Any], captures: int, before: int) -> int:
    """Return how many inputs are the first values of states."""
    return max(0, len(node_inputs) - before - captures)


def settled(
    body: Graph, kinds: Sequence[ValueType], before: int, states: int, constants: list[Any]
) -> tuple[list[ValueType], list[ValueType]]:
    """Return the types of states and all outputs that hold in every round of a loop.

    kinds: of the body's inputs; states stand behind `before` others. constants: known inputs.
    """
    held = list(kinds)
    found: list[ValueType] = []
    offset = 1 if before == 2 else 0
    for _ in range(ROUNDS):
        found = body_types(body, held, constants)
        now = held[before : before + states]
        after = [joined(a, b) for a, b in zip(now, found[offset : offset + states], strict=True)]
        kept = [
            ValueType(a.dtype if b.dtype is None else b.dtype, b.shape)
            for a, b in zip(now, after, strict=True)
        ]
        if kept == now:
            return now, found
        held[before : before + states] = kept
    held[before : before + states] = [ValueType(k.dtype, None) for k in held[before:][:states]]
    return held[before : before + states], body_types(body, held, constants)


def keeps_going(body: Graph) -> bool:
    """Whether a loop body's condition is always the one it was given, or true."""
    value = body.outputs[0]
    while value.producer is not None and value.producer.op in ("Identity", "Cast"):
        value = required_input(value.producer, 0)
    if value.producer is not None and value.producer.op == "Constant":
        held = value.producer.attributes.get("value")
        return held is not None and truth(held)
    return value is body.inputs[1] or (value.constant is not None and truth(value.constant.numpy()))


def trip_count(node: Node) -> Dim:
    """Return how often a Loop runs, where that is known."""
    count, condition = known_array(input_at(node, 0)), input_at(node, 1)
    given = known_array(condition)
    if given is not None and not truth(given):
        return 0
    if count is None or (condition is not None and given is None):
        return UNKNOWN
    return max(0, int(count.reshape(-1)[0])) if keeps_going(node.attributes["body"]) else UNKNOWN


def infer_loop(node: Node) -> list[ValueType]:
    """Infer: states as they stay, scan outputs with one more axis."""
    captures, body = node.attributes.get("captures", 0), node.attributes["body"]
    states = state_count(node.inputs, captures, 2)
    inner = [ValueType("int64", ()), ValueType("bool", ())]
    inner += [kind_of(v) for v in node.inputs[2:]]
    constants: list[Any] = [None] * (2 + states)
    constants += constants_of(node.inputs[len(node.inputs) - captures :] if captures else [])
    if len(inner) != len(body.inputs) or len(body.outputs) < 1 + states:
        raise GraphError(node.label, f"the body takes {len(body.inputs)} values, not {len(inner)}")
    kept, found = settled(body, inner, 2, states, constants)
    count = trip_count(node)
    scans = [
        ValueType(kind.dtype, None if kind.shape is None else (count, *kind.shape))
        for kind in found[1 + states :]
    ]
    return [*kept, *scans]


def empty_scan(value: Value, axis: int = 0) -> Array:
    """Return what a scan output is when nothing ran: unknown lengths are 0."""
    dims = [dim if isinstance(dim, int) else 0 for dim in value.shape or ()]
    dims.insert(axis % (len(dims) + 1), 0)
    return np.empty(dims, numpy_dtype(element_dtype(value.dtype or "float32")))


def evaluate_loop(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Run the body while the condition holds, at most as often as the count says."""
    run, body = run_of(context), attributes["body"]
    given = [*inputs, None, None][: max(2, len(inputs))]
    count = state_count(given, attributes["captures"], 2)
    states, captured = list(given[2 : 2 + count]), given[2 + count :]
    limit = None if given[0] is None else int(np.asarray(given[0]).reshape(-1)[0])
    going, place = given[1] is None or truth(given[1]), 0
    scans: list[list[Any]] = [[] for _ in body.outputs[1 + count :]]
    while going and (limit is None or place < limit):
        head = [np.asarray(place, np.int64), np.asarray(going)]
        found = run(body, [*head, *states, *captured])
        going, states, place = truth(found[0]), found[1 : 1 + count], place + 1
        for held, value in zip(scans, found[1 + count :], strict=True):
            held.append(value)
    stacked = [
        np.stack(held) if held else empty_scan(value)
        for held, value in zip(scans, body.outputs[1 + count :], strict=True)
    ]
    return [*states, *stacked]


SCAN_LISTS = (
    *("scan_input_axes", "scan_input_directions"),
    *("scan_output_axes", "scan_output_directions"),
)


def listed(attributes: Mapping[str, Any], name: str, count: int) -> list[int]:
    """Return a list attribute of Scan, zeros where it is missing."""
    return list(attributes.get(name) or [0] * count)


def infer_scan(node: Node) -> list[ValueType]:
    """Infer: states as they stay, scan outputs with the axis that was scanned."""
    captures, body = node.attributes.get("captures", 0), node.attributes["body"]
    scanned = node.attributes["num_scan_inputs"]
    states = state_count(node.inputs, captures, scanned)
    axes = listed(node.attributes, "scan_input_axes", scanned)
    kinds = [kind_of(v) for v in node.inputs]
    length: Dim = UNKNOWN
    for place, axis in enumerate(axes):
        dtype, shape = kinds[states + place]
        if shape is not None:
            at = axis % len(shape)
            length = shape[at] if isinstance(shape[at], int) else length
            shape = (*shape[:at], *shape[at + 1 :])
        kinds[states + place] = ValueType(dtype, shape)
    if len(kinds) != len(body.inputs):
        raise GraphError(node.label, f"the body takes {len(body.inputs)} values, not {len(kinds)}")
    constants: list[Any] = [None] * (states + scanned) + constants_of(
        node.inputs[states + scanned :]
    )
    kept, found = settled(body, kinds, 0, states, constants)
    outputs = listed(node.attributes, "scan_output_axes", len(found) - states)
    scans = []
    for kind, axis in zip(found[states:], outputs, strict=True):
        shape = kind.shape
        if shape is not None:
            at = axis % (len(shape) + 1)
            shape = (*shape[:at], length, *shape[at:])
        scans.append(ValueType(kind.dtype, shape))
    return [*kept, *scans]


def evaluate_scan(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Run the body over the slices of the scanned inputs."""
    run, body, scanned = run_of(context), attributes["body"], attributes["num_scan_inputs"]
    count = state_count(inputs, attributes["captures"], scanned)
    states, captured = list(inputs[:count]), inputs[count + scanned :]
    rows: list[Any] = []
    axes, backward = (listed(attributes, name, scanned) for name in SCAN_LISTS[:2])
    for data, axis, turned in zip(inputs[count : count + scanned], axes, backward, strict=True):
        front = np.moveaxis(np.asarray(data), axis, 0)
        rows.append(front[::-1] if turned else front)
    results = body.outputs[count:]
    scans: list[list[Any]] = [[] for _ in results]
    for place in range(len(rows[0])):
        found = run(body, [*states, *(front[place] for front in rows), *captured])
        states = found[:count]
        for held, value in zip(scans, found[count:], strict=True):
            held.append(value)
    axes, backward = (listed(attributes, name, len(results)) for name in SCAN_LISTS[2:])
    stacked = [
        np.stack(held[::-1] if turned else held, axis) if held else empty_scan(value, axis)
        for held, value, axis, turned in zip(scans, results, axes, backward, strict=True)
    ]
    return [*states, *stacked]


def infer_scan_8(node: Node) -> list[ValueType]:
    """Infer: what the body yields for one row, with the batch before it."""
    states = len(node.inputs) - 1 - node.attributes["num_scan_inputs"]
    states -= node.attributes.get("captures", 0)
    kinds = [kind_of(v) for v in node.inputs[1:]]
    batch: Dim = UNKNOWN
    length: Dim = UNKNOWN
    inner = []
    for place, (dtype, shape) in enumerate(kinds):
        cut = 1 if place < states else 2
        if place >= states + node.attributes["num_scan_inputs"]:
            cut = 0
        if shape is not None and cut:
            batch = shape[0]
            length = shape[1] if cut == 2 else length
        inner.append(ValueType(dtype, None if shape is None else shape[cut:]))
    found = body_types(node.attributes["body"], inner)
    return [
        ValueType(
            kind.dtype,
            None
            if kind.shape is None
            else (batch, *([] if place < states else [length]), *kind.shape),
        )
        for place, kind in enumerate(found)
    ]


def evaluate_scan_8(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Any]:
    """Run the later form for each row of the batch; short rows are filled with zeros."""
    lengths, operands, scanned = inputs[0], list(inputs[1:]), attributes["num_scan_inputs"]
    count = state_count(operands, attributes["captures"], scanned)
    captured, longest = operands[count + scanned :], operands[count].shape[1]
    rules = {
        "body": attributes["body"],
        "num_scan_inputs": scanned,
        "captures": attributes["captures"],
        "scan_input_directions": attributes.get("directions"),
    }
    rows: list[list[Any]] = []
    for row in range(operands[count].shape[0]):
        length = longest if lengths is None else int(lengths[row])
        states = [state[row] for state in operands[:count]]
        slices = [data[row][:length] for data in operands[count : count + scanned]]
        found = evaluate_scan([*states, *slices, *captured], rules, context)
        rows.append(found[:count] + [_filled(v, longest) for v in found[count:]])
    return [np.stack(column) for column in zip(*rows, strict=True)]


def _filled(values: Array, length: int) -> Array:
    out = np.zeros((length, *values.shape[1:]), values.dtype)
    out[: len(values)] = values
    return out


def loop_cases() -> list[Case]:
    """Return a loop that adds its counter to a state and yields each sum."""
    body = Graph("body")
    place, going = body.add_input("i", "int64", ()), body.add_input("going", "bool", ())
    state, step = body.add_input("sum", "int64", (2,)), body.add_input("step", "int64", (2,))
    moved = body.add("Add", [state, body.add("Mul", [place, step], since_version=14)])
    moved.producer.since_version = 14  # type: ignore[union-attr]
    body.outputs = [body.add("Identity", [going], since_version=25), moved, moved]
    given = [np.asarray(4), np.asarray(True), ints(1, 2), ints(10, 20)]
    return [Case("sums", given, {"body": body, "captures": 1}, outputs=2)]


def scan_cases() -> list[Case]:
    """Return a running sum, forward and backward."""
    body = Graph("body")
    state, row = body.add_input("sum", "float32", (3,)), body.add_input("row", "float32", (3,))
    total = body.add("Add", [state, row], since_version=14)
    body.outputs = [total, body.add("Identity", [total], since_version=25)]
    rules = {"body": body, "num_scan_inputs": 1}
    given = [np.zeros(3, np.float32), normal(66, 4, 3)]
    backward = rules | {"scan_input_directions": [1], "scan_output_axes": [1]}
    return [Case("forward", given, rules, outputs=2), Case("backward", given, backward, outputs=2)]


def if_cases() -> list[Case]:
    """Return a choice between two sums of one captured value."""
    branches = []
    for name in ("Add", "Mul"):
        graph = Graph(name)
        x = graph.add_input("x", "float32", (2,))
        graph.outputs.append(graph.add(name, [x, x], since_version=14))
        branches.append(graph)
    rules = {"then_branch": branches[0], "else_branch": branches[1], "captures": 1}
    return [Case(str(c), [np.asarray(c), normal(67, 2)], rules) for c in (True, False)]


GRAPH = Attribute("graph", required=True)
CAPTURES = {"captures": Attribute("int", 0)}
SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "If",
        (1, *VERSIONS),
        ("cond", "captures*"),
        ("outputs*",),
        infer=infer_if,
        evaluate=evaluate_if,
        attributes={"then_branch": GRAPH, "else_branch": GRAPH} | CAPTURES,
        cases=if_cases,
    ),
    OpSpec(
        "Loop",
        (1, *VERSIONS),
        ("M?", "cond?", "v_initial*"),
        ("v_final_and_scan_outputs*",),
        infer=infer_loop,
        evaluate=evaluate_loop,
        attributes={"body": GRAPH} | CAPTURES,
        cases=loop_cases,
    ),
    OpSpec(
        "Scan",
        (9, *VERSIONS[:1], *VERSIONS[2:]),
        ("initial_state_and_scan_inputs*",),
        ("final_state_and_scan_outputs*",),
        infer=infer_scan,
        evaluate=evaluate_scan,
        attributes={"body": GRAPH, "num_scan_inputs": Attribute("int", required=True)}
        | CAPTURES
        | {name: Attribute("ints") for name in SCAN_LISTS},
        cases=scan_cases,
    ),
    OpSpec(
        "Scan",
        (8,),
        ("sequence_lens?", "initial_state_and_scan_inputs*"),
        ("final_state_and_scan_outputs*",),
        infer=infer_scan_8,
        evaluate=evaluate_scan_8,
        attributes={
            "body": GRAPH,
            "num_scan_inputs": Attribute("int", required=True),
            "directions": Attribute("ints"),
        }
        | CAPTURES,
    ),
)
