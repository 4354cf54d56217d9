"""Shapes that values decide, graphs inside nodes, sequences, optionals, strings; limits."""

from __future__ import annotations

import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from halfbyte.errors import GraphError, HalfbyteError
from halfbyte.ir.dtypes import dtype_of
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops import op_spec
from halfbyte.ir.passes import constant_folding, run_passes
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.runtime import subgraphs
from halfbyte.runtime.memory_plan import Lifetime, memory_bytes, place
from halfbyte.runtime.session import Session
from halfbyte.runtime.stages import KEPT_STAGES

DEVICES = ("cpu", "reference")


def add(graph: Graph, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
    """Add a node of the newest version; arrays become constants."""
    values = [constant(graph, v) if isinstance(v, np.ndarray) else v for v in inputs]
    outs = [Value(graph.fresh_name(op.lower())) for _ in range(outputs)]
    graph.insert(Node(op, values, outs, attributes, "", op_spec(op).versions[-1]))
    return outs[0] if outputs == 1 else outs


def constant(graph: Graph, array: np.ndarray) -> Value:
    return graph.add_constant(tensor_from_array(graph.fresh_name("k"), array), fixed=True)


def take(graph: Graph, name: str, dtype: str, shape: Any = None) -> Value:
    value = Value(graph.fresh_name(name), dtype, None if shape is None else tuple(shape))
    graph.inputs.append(value)
    return value


def run(graph: Graph, feeds: dict[str, Any], device: str = "cpu") -> list[Any]:
    return list(Session(graph, device, threads=1).run(feeds).values())


def i64(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def positives() -> Graph:
    """Return x with its positive values picked, doubled, as a column, and how many there are."""
    graph = Graph("positives")
    x = take(graph, "x", "float32", ("n",))
    places = add(graph, "NonZero", add(graph, "Greater", x, np.float32([0])))
    picked = add(graph, "Gather", x, add(graph, "Squeeze", places, i64(0)))
    twice = add(graph, "Add", picked, picked)
    count = add(graph, "Shape", twice)
    shape = add(graph, "Concat", count, i64(1), axis=0)
    graph.outputs = [add(graph, "Reshape", twice, shape), count, add(graph, "Neg", x)]
    return graph


@pytest.mark.parametrize("device", DEVICES)
def test_shapes_that_values_decide(device: str) -> None:
    session = Session(positives(), device)
    for x in ([1, -1, 2], [-1, -2, -3], [5, 6, 7], [1, 2], []):
        given = np.float32(x)
        column, count, negative = session.run({"x": given}).values()
        wanted = 2 * given[given > 0]
        assert column.tolist() == wanted[:, None].tolist()
        assert count.tolist() == [len(wanted)]
        np.testing.assert_array_equal(negative, -given)


def test_later_stages_are_planned_once_for_each_shape() -> None:
    session = Session(positives())
    x = np.float32([1, -1, 2, 3, -4, 5])
    for length in range(1, 7):
        session.run({"x": np.where(np.arange(6) < length, x, -1).astype(np.float32)})
    (plan,) = session._plans.values()
    assert plan.stages is not None
    kept = dict(plan.stages._plans)
    assert 0 < len(kept) <= KEPT_STAGES
    session.run({"x": x})
    assert all(plan.stages._plans[key] is held for key, held in kept.items())


def test_stages_may_follow_one_another() -> None:
    graph = Graph()
    value = x = take(graph, "x", "float32", ("n",))
    for limit in (0, 2, 4):
        kept = add(graph, "Greater", value, np.float32([limit]))
        value = add(graph, "Compress", value, kept)
    graph.outputs = [value, add(graph, "ReduceSum", value, keepdims=0), x]
    for numbers in ([-1, 1, 3, 5, 7], [9.0], [-3.0, 1]):
        picked, total, whole = run(graph, {"x": np.float32(numbers)})
        wanted = [v for v in numbers if v > 4]
        assert picked.tolist() == wanted
        assert total == sum(wanted)
        assert whole.tolist() == numbers


def branch(op: str, axes: np.ndarray | None = None) -> Graph:
    graph = Graph(op)
    x = take(graph, "x", "float32")
    graph.outputs = [add(graph, op, x, x if axes is None else axes)]
    return graph


@pytest.mark.parametrize("device", DEVICES)
def test_if_runs_one_branch_even_where_the_other_could_not(device: str) -> None:
    graph = Graph()
    condition = take(graph, "c", "bool", ())
    x = take(graph, "x", "float32", ("n", 3))
    squeezed, summed = branch("Squeeze", axes=i64(0)), branch("Add")
    rules = {"then_branch": squeezed, "else_branch": summed, "captures": 1}
    chosen = add(graph, "If", condition, x, **rules)
    graph.outputs = [add(graph, "Neg", chosen)]
    session = Session(graph, device)
    row, rows = np.float32([[1, 2, 3]]), np.ones((2, 3), np.float32)
    assert session.run({"c": True, "x": row})["neg"].tolist() == [-1, -2, -3]
    assert session.run({"c": False, "x": row})["neg"].tolist() == [[-2, -4, -6]]
    assert session.run({"c": False, "x": rows})["neg"].tolist() == [[-2] * 3] * 2
    with pytest.raises(HalfbyteError, match=r"Squeeze -> 'squeeze'"):
        session.run({"c": True, "x": rows})


def counting_loop(body_of: Any, states: list[Value], graph: Graph, **more: Any) -> Any:
    """Add a Loop of `n` rounds; `body_of(body, i, states)` returns the new states and scans."""
    body = Graph("body")
    place, going = take(body, "i", "int64", ()), take(body, "go", "bool", ())
    inner = [take(body, f"s{k}", str(v.dtype)) for k, v in enumerate(states)]
    body.outputs = [add(body, "Identity", going), *body_of(body, place, inner)]
    count = take(graph, "n", "int64", ())
    outputs = len(body.outputs) - 1
    return add(graph, "Loop", count, None, *states, outputs=outputs, body=body, **more)


@pytest.mark.parametrize("device", DEVICES)
def test_loop_with_states_and_scan_outputs(device: str) -> None:
    graph = Graph()
    x = take(graph, "x", "float32", (2,))

    def body_of(body: Graph, place: Value, states: list[Value]) -> list[Value]:
        step = add(body, "Cast", place, to="float32")
        total = add(body, "Add", states[0], step)
        return [total, add(body, "Mul", total, total)]

    graph.outputs = list(counting_loop(body_of, [x], graph))
    session = Session(graph, device)
    last, scans = session.run({"x": np.float32([1, 2]), "n": 4}).values()
    assert last.tolist() == [7, 8]
    assert scans.tolist() == [[1, 4], [4, 9], [16, 25], [49, 64]]
    last, scans = session.run({"x": np.float32([1, 2]), "n": 0}).values()
    assert last.tolist() == [1, 2]
    assert scans.shape == (0, 0) or scans.shape[0] == 0


@pytest.mark.parametrize("rounds", [3, 3 * subgraphs.PATIENCE])
def test_loop_whose_state_grows(rounds: int) -> None:
    graph = Graph()
    x = take(graph, "x", "float32", (1,))

    def body_of(body: Graph, place: Value, states: list[Value]) -> list[Value]:
        step = add(body, "Cast", add(body, "Reshape", place, i64(1)), to="float32")
        return [add(body, "Concat", states[0], step, axis=0)]

    graph.outputs = [add(graph, "Neg", counting_loop(body_of, [x], graph))]
    (found,) = run(graph, {"x": np.float32([9]), "n": rounds})
    assert found.tolist() == [-9, *range(0, -rounds, -1)]


def test_loop_over_a_sequence_keeps_its_elements_apart() -> None:
    graph = Graph()
    held = add(graph, "SequenceEmpty", dtype="float32")
    held.dtype = "sequence.float32"
    x = take(graph, "x", "float32", (2,))

    def body_of(body: Graph, place: Value, states: list[Value]) -> list[Value]:
        moved = add(body, "Add", states[1], states[1])
        return [add(body, "SequenceInsert", states[0], moved), moved]

    outs = counting_loop(body_of, [held, x], graph)
    graph.outputs = [*outs, add(graph, "ConcatFromSequence", outs[0], axis=0, new_axis=1)]
    held_, last, joined = run(graph, {"x": np.float32([1, 3]), "n": 3})
    assert [v.tolist() for v in held_] == [[2, 6], [4, 12], [8, 24]] == joined.tolist()
    assert last.tolist() == [8, 24]


def test_nested_loops_share_captures() -> None:
    inner = Graph("inner")
    take(inner, "i", "int64", ())
    going, state, seen = (
        take(inner, *v) for v in (("go", "bool"), ("s", "float32"), ("x", "float32"))
    )
    inner.outputs = [add(inner, "Identity", going), add(inner, "Add", state, seen)]
    body = Graph("body")
    take(body, "i", "int64", ())
    going, state, seen = (
        take(body, *v) for v in (("go", "bool"), ("s", "float32"), ("x", "float32"))
    )
    again = add(body, "Loop", np.asarray(2), None, state, seen, body=inner, captures=1)
    body.outputs = [add(body, "Identity", going), again]
    graph = Graph()
    x = take(graph, "x", "float32", (2,))
    rules = {"body": body, "captures": 1}
    graph.outputs = [add(graph, "Loop", np.asarray(3), None, np.zeros(2, np.float32), x, **rules)]
    (found,) = run(graph, {"x": np.float32([1, 10])})
    assert found.tolist() == [6, 60]


def test_deeply_nested_loops_are_inferred_quickly() -> None:
    graph: Graph | None = None
    for _ in range(10):
        body = Graph("body")
        take(body, "i", "int64", ())
        going, state = take(body, "go", "bool"), take(body, "s", "float32")
        grown = add(body, "Concat", state, state, axis=0)
        if graph is not None:
            grown = add(body, "Loop", np.asarray(1), None, grown, body=graph)
        body.outputs = [add(body, "Identity", going), grown]
        graph = body
    outer = Graph()
    x = take(outer, "x", "float32", ("n",))
    outer.outputs = [add(outer, "Loop", np.asarray(1), None, x, body=graph)]
    start = time.perf_counter()
    (found,) = run(outer, {"x": np.ones(1, np.float32)})
    assert found.shape == (1 << 10,)
    assert time.perf_counter() - start < 5


def test_sequences_optionals_and_strings_go_in_and_out() -> None:
    graph = Graph()
    held = take(graph, "held", "sequence.float32")
    maybe = take(graph, "maybe", "optional.float32")
    words = take(graph, "words", "string", ("n",))
    graph.outputs = [
        add(graph, "SequenceInsert", held, np.float32([7])),
        add(graph, "OptionalHasElement", maybe),
        add(graph, "Identity", maybe),
        add(graph, "Concat", words, np.asarray(["end"], object), axis=0),
        add(graph, "SequenceLength", held),
        held,
    ]
    session = Session(graph)
    given = {"held": [np.float32([1, 2])], "maybe": None, "words": np.asarray(["a", "b"], object)}
    more, there, same, texts, length, back = session.run(given).values()
    assert [v.tolist() for v in more] == [[1, 2], [7]]
    assert (bool(there), same, length.tolist()) == (False, None, 1)
    assert texts.tolist() == ["a", "b", "end"]
    assert [v.tolist() for v in back] == [[1, 2]]
    there, same = list(session.run({**given, "maybe": np.float32(4)}).values())[1:3]
    assert (bool(there), same.tolist()) == (True, 4)
    with pytest.raises(HalfbyteError, match="'held' is ndarray, a list of arrays was required"):
        session.run({**given, "held": np.ones(3, np.float32)})
    with pytest.raises(HalfbyteError, match="'words' is int64, string was required"):
        session.run({**given, "words": [1]})


@pytest.mark.parametrize(
    "dtype",
    ["float16", "bfloat16", "float8_e4m3fn", "int4", "uint2", "float4_e2m1fn", "complex64", "bool"],
)
def test_inputs_of_any_dtype(dtype: str) -> None:
    graph = Graph()
    x = take(graph, "x", dtype, (2, 2))
    graph.outputs = [add(graph, "Transpose", x), add(graph, "Reshape", x, i64(-1)), x]
    given = np.asarray([[1, 0], [1, 1]]).astype(getattr(ml_dtypes, dtype, dtype))
    turned, flat, same = run(graph, {"x": given})
    assert dtype_of(turned) == dtype_of(flat) == dtype_of(same) == dtype
    wide = complex if dtype == "complex64" else float
    np.testing.assert_array_equal(turned.astype(wide), given.astype(wide).T)
    np.testing.assert_array_equal(flat.astype(wide), given.astype(wide).reshape(-1))


def test_scalars_and_empty_values() -> None:
    graph = Graph()
    x, none = take(graph, "x", "float32", ()), take(graph, "none", "float32", (0, 3))
    joined = add(graph, "Concat", none, none, axis=0)
    graph.outputs = [add(graph, "Add", x, x), joined, add(graph, "ReduceSum", none, i64(0))]
    twice, empty, zeros = run(graph, {"x": 2.5, "none": np.zeros((0, 3), np.float32)})
    assert twice.shape == ()
    assert twice == 5
    assert empty.shape == (0, 3)
    assert zeros.tolist() == [[0, 0, 0]]


def test_inputs_named_like_those_of_language_models_are_plain() -> None:
    graph = Graph()
    ids = take(graph, "input_ids", "int64", ("n",))
    places = take(graph, "places", "int64", ("m",))
    table = constant(graph, np.arange(5, dtype=np.float32))
    graph.outputs = [add(graph, "Neg", ids), add(graph, "Gather", table, places)]
    negative, picked = run(graph, {"input_ids": i64(3, 4), "places": i64(-1, 2)})
    assert negative.tolist() == [-3, -4]
    assert picked.tolist() == [4, 2]
    with pytest.raises(HalfbyteError, match="input 'places' is missing"):
        run(graph, {"input_ids": i64(3)})


def test_missing_inputs_are_made_in_their_own_dtype() -> None:
    graph = Graph()
    ids = take(graph, "input_ids", "int64", ("b", "n"))
    mask = take(graph, "attention_mask", "int32", ("b", "n"))
    graph.outputs = [add(graph, "Neg", mask), ids]
    negative, _ = run(graph, {"input_ids": i64(3, 4)[None]})
    assert negative.dtype == np.int32
    assert negative.tolist() == [[-1, -1]]


def test_what_does_not_fit_into_memory_is_named() -> None:
    graph = Graph()
    shape = take(graph, "shape", "int64", (2,))
    graph.outputs = [add(graph, "ConstantOfShape", shape)]
    session = Session(graph)
    assert session.run({"shape": i64(2, 3)})["constantofshape"].shape == (2, 3)
    huge = 1 << 30
    with pytest.raises(HalfbyteError, match=rf"ConstantOfShape.* needs {4 * huge * huge} bytes"):
        session.run({"shape": i64(huge, huge)})
    fixed = Graph()
    fixed.outputs = [add(fixed, "ConstantOfShape", i64(huge, huge))]
    with pytest.raises(HalfbyteError, match=f"needs {4 * huge * huge} bytes, this machine has"):
        Session(fixed).run({})
    assert (memory_bytes() or 0) > 1 << 28


def test_bombs_are_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constant_folding, "MAX_TOTAL_BYTES", 4 << 20)
    graph = Graph()
    wide = add(graph, "ConstantOfShape", i64(1 << 20, 1 << 10))
    more = [add(graph, "Expand", np.float32([k]), i64(1 << 16)) for k in range(40)]
    graph.outputs = [add(graph, "Neg", v) for v in (wide, *more)]
    run_passes(graph)
    held = sum(tensor.nbytes for tensor in graph.constants.values())
    assert 1 << 20 < held < 5 << 20
    assert any(node.op == "Expand" for node in graph.nodes)


def test_a_long_loop_over_constants_runs_only_when_asked() -> None:
    graph = Graph()
    body = Graph("body")
    place, going = take(body, "i", "int64", ()), take(body, "go", "bool", ())
    state = take(body, "s", "int64", ())
    body.outputs = [add(body, "Identity", going), add(body, "Add", state, place)]
    last = add(graph, "Loop", np.asarray(1 << 60), None, np.asarray(0), body=body)
    x = take(graph, "x", "float32", (1,))
    unread = add(graph, "Neg", last)
    graph.outputs = [add(graph, "Neg", x)]
    del unread
    assert run(graph, {"x": np.float32([1])})[0].tolist() == [-1]


def test_passes_work_inside_bodies() -> None:
    graph, inner = Graph(), Graph("inner")
    x = take(inner, "x", "float32", (2,))
    ones = add(inner, "ConstantOfShape", i64(2), value=np.float32([3]))
    twice = [add(inner, "Add", x, ones) for _ in range(2)]
    unread = add(inner, "Exp", x)
    del unread
    inner.outputs = [add(inner, "Mul", *twice)]
    condition, y = take(graph, "c", "bool", ()), take(graph, "y", "float32", (2,))
    other = Graph("other")
    other.outputs = [add(other, "Neg", take(other, "y", "float32", (2,)))]
    rules = {"then_branch": inner, "else_branch": other, "captures": 1}
    graph.outputs = [add(graph, "If", condition, y, **rules)]
    wanted = run(graph, {"c": True, "y": np.float32([1, 2])})[0].tolist()
    run_passes(graph)
    assert [node.op for node in inner.nodes] == ["Add", "Mul"]
    assert wanted == [16, 25]
    assert run(graph, {"c": True, "y": np.float32([1, 2])})[0].tolist() == wanted


def test_inputs_that_contradict_each_other_name_the_node() -> None:
    graph = Graph()
    x, shape = take(graph, "x", "float32", (6,)), take(graph, "shape", "int64", (2,))
    graph.outputs = [add(graph, "Reshape", x, shape)]
    session = Session(graph)
    assert session.run({"x": np.zeros(6, np.float32), "shape": [2, 3]})["reshape"].shape == (2, 3)
    with pytest.raises(GraphError, match=r"Reshape -> 'reshape': \[6\] cannot become \[4, 3\]"):
        session.run({"x": np.zeros(6, np.float32), "shape": [4, 3]})
    split = Graph()
    y, lengths = take(split, "y", "float32", ("n",)), take(split, "lengths", "int64", (2,))
    held = add(split, "SplitToSequence", y, lengths)
    split.outputs = [held]
    with pytest.raises(HalfbyteError, match=r"SplitToSequence .*shapes \[3\], \[2\].* add up to 3"):
        run(split, {"y": np.zeros(3, np.float32), "lengths": i64(1, 1)})


def test_results_of_stages_are_the_callers_own() -> None:
    session = Session(positives())
    first = session.run({"x": np.float32([1, 2])})
    kept = {name: value.copy() for name, value in first.items()}
    session.run({"x": np.float32([5, 6])})
    for name, value in first.items():
        np.testing.assert_array_equal(value, kept[name])


def test_long_graphs_are_planned_quickly() -> None:
    random = np.random.default_rng(0)
    spans = [
        Lifetime(int(n), int(a), int(a + d))
        for n, a, d in zip(
            random.integers(64, 1 << 16, 5000),
            np.arange(5000),
            random.integers(1, 40, 5000),
            strict=True,
        )
    ]
    start = time.perf_counter()
    place(spans)
    assert time.perf_counter() - start < 2
    graph = Graph()
    value = take(graph, "x", "float32", (8,))
    for _ in range(2000):
        value = add(graph, "Neg", value)
    graph.outputs = [value]
    session = Session(graph, fuse=False)
    start = time.perf_counter()
    session.run({"x": np.ones(8, np.float32)})
    assert time.perf_counter() - start < 5
