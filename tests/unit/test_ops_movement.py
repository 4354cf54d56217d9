"""Operators that move data: every old form, its upgrade, and the corners of the new ones."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops import FAMILIES, infer, op_spec, op_specs
from halfbyte.ir.ops.spec import UNKNOWN, Context, ValueType, normal
from halfbyte.ir.ops.subgraph import interpret
from halfbyte.ir.tensor import tensor_from_array
from support.op_evaluation import evaluate_graph, node_graph, upgrade_fully

A = normal(1, 2, 3, 4)
UNRANKED = Value("x", "float32")
SEVEN = np.float32(7).reshape(())
MINE = (
    *("constants", "gather", "ordering", "padding", "rearrangement", "scatter"),
    *("selection", "shape"),
    *("sequence", "optional", "control_flow"),
)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def table(columns: int) -> np.ndarray:
    return np.asarray([[k % columns, 0] for k in range(2)])


OLD: list[tuple[str, int, list[Any], dict[str, Any], Any]] = [
    ("Reshape", 1, [A], {"shape": [0, -1], "consumed_inputs": [0]}, A.reshape(2, 12)),
    ("Reshape", 5, [A, ints(4, -1)], {}, A.reshape(4, 6)),
    ("Reshape", 13, [A, ints(0, 0, 2, 2)], {}, A.reshape(2, 3, 2, 2)),
    ("Squeeze", 1, [A[:1]], {"axes": [0]}, A[0]),
    ("Squeeze", 11, [A[:1]], {}, A[0]),
    ("Unsqueeze", 1, [A], {"axes": [0, 4]}, A[None, ..., None]),
    ("Unsqueeze", 11, [A], {"axes": [-1]}, A[..., None]),
    ("Range", 11, [np.asarray(1), np.asarray(7), np.asarray(2)], {}, ints(1, 3, 5)),
    ("Concat", 1, [A, A], {}, np.concatenate([A, A], 1)),
    ("Slice", 1, [A], {"starts": [1, -2], "ends": [9, -1], "axes": [1, 2]}, A[:, 1:, -2:-1]),
    ("Slice", 1, [A], {"starts": [0], "ends": [1]}, A[:1]),
    ("GatherND", 11, [A, np.asarray([[1, 2], [0, -1]])], {}, A[[1, 0], [2, -1]]),
    ("ScatterElements", 11, [A[0], table(3), A[1, :2, :2]], {"axis": 1}, None),
    ("ScatterElements", 13, [A[0], table(3), A[1, :2, :2]], {}, None),
    ("ScatterND", 11, [A, np.asarray([[1], [0]]), A], {}, A[[1, 0]]),
    ("ScatterND", 13, [A, np.asarray([[0]]), A[1:]], {}, A[[1, 1]]),
    ("Scatter", 9, [A[0], table(3), A[1, :2, :2]], {"axis": 0}, None),
    ("Scatter", 11, [A[0], table(3), A[1, :2, :2]], {}, None),
    ("Pad", 1, [A[0]], {"paddings": [1, 0, 0, 2], "value": 7.0}, None),
    ("Pad", 2, [A[0]], {"pads": [-1, 0, 0, 2], "mode": "constant"}, None),
    ("Pad", 2, [A[0]], {"pads": [1, 0, 0, 2], "mode": "reflect"}, None),
    ("Pad", 11, [A[0], ints(1, 0, 0, 2), SEVEN], {}, None),
    ("Pad", 18, [A[0], ints(1, 2), None, ints(1)], {"mode": "edge"}, None),
    ("TopK", 1, [A], {"k": 2}, np.sort(A, -1)[..., :1:-1]),
    ("TopK", 10, [A, ints(2)], {"axis": 0}, np.sort(A, 0)[::-1]),
    ("Split", 1, [A], {"split": [1, 2], "axis": 1}, A[:, :1]),
    ("Split", 1, [A, ints(1, 1)], {}, A[:1]),
    ("Split", 2, [A], {"axis": -1}, A[..., :2]),
    ("Split", 11, [A], {"axis": 1, "split": [2, 1]}, A[:, :2]),
    ("Split", 13, [A], {}, A[:1]),
    ("Split", 13, [A, ints(2, 1)], {"axis": 1}, A[:, :2]),
]


@pytest.mark.parametrize(
    ("key", "version", "inputs", "attributes", "expected"),
    OLD,
    ids=[f"{case[0]}-{case[1]}-{i}" for i, case in enumerate(OLD)],
)
def test_old_form_means_what_it_meant_and_its_upgrade_too(
    key: str, version: int, inputs: list[Any], attributes: dict[str, Any], expected: Any
) -> None:
    outputs = 2 if key in ("Split", "TopK") else 1
    graph, _ = node_graph(key, version, inputs, attributes, outputs)
    before = evaluate_graph(graph, inputs)
    if expected is not None:
        np.testing.assert_array_equal(before[0], expected)
    graph, node = node_graph(key, version, inputs, attributes, outputs)
    assert upgrade_fully(graph)
    assert node.since_version in op_specs(node.op)[-1].versions
    after = evaluate_graph(graph, inputs)
    for first, second in zip(before, after, strict=True):
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)


def test_every_old_form_is_tried() -> None:
    tried = {(key, version) for key, version, *_ in OLD}
    alone = {("Tile", 1), ("Scan", 8), ("Shape", 1)}
    for family in MINE:
        for key in FAMILIES[family]:
            for form in op_specs(key):
                if form.upgrade is not None or form is not op_specs(key)[-1]:
                    assert any((key, v) in tried | alone for v in form.versions), (key, form)


def evaluate(key: str, *inputs: Any, version: int | None = None, outputs: int = 1, **rules: Any):
    spec = op_spec(key, version)
    context = Context(outputs=outputs, run=interpret)
    found = spec.evaluate(list(inputs), spec.with_defaults(rules), context)
    return found[0] if outputs == 1 else found[:outputs]


def value(item: Any) -> Value | None:
    if item is None or isinstance(item, Value):
        return item
    if isinstance(item, np.ndarray):
        tensor = tensor_from_array("k", item)
        return Value("k", str(item.dtype), item.shape, constant=tensor, fixed=True)
    return Value("x", "float32", item)


def types(key: str, *inputs: Any, outputs: int = 1, version: int | None = None, **rules: Any):
    """Infer; a tuple is a shape of float32, an array a constant."""
    spec = op_spec(key, version)
    outs = [Value(f"y{i}") for i in range(outputs)]
    node = Node(spec.op, [value(v) for v in inputs], outs, rules, "", spec.versions[-1])
    return infer(node)


def test_first_form_of_tile_repeats_one_axis() -> None:
    for counts, place in (([2], [1]), ([3], [0])):
        inputs = [A, np.float32(counts), np.float32(place)]
        graph, _ = node_graph("Tile", 1, inputs, {})
        (found,) = evaluate_graph(graph, inputs)
        repeats = [1, 1, 1]
        repeats[place[0]] = counts[0]
        np.testing.assert_array_equal(found, np.tile(A, repeats))
        graph, node = node_graph("Tile", 1, inputs, {})
        assert not upgrade_fully(graph)
        for index in (1, 2):
            tensor = tensor_from_array(f"t{index}", inputs[index])
            graph.set_input(node, index, graph.add_constant(tensor, fixed=True))
        graph.inputs = graph.inputs[:1]
        assert upgrade_fully(graph)
        np.testing.assert_array_equal(evaluate_graph(graph, [A])[0], found)


SYMBOLIC = [
    (types("Reshape", ("n", 4), ints(0, 2, -1)), ("n", 2, 2)),
    (types("Reshape", UNRANKED, ints(3, 0, -1)), (3, UNKNOWN, UNKNOWN)),
    (types("Reshape", ("n",), value(Value("s", "int64", (3,)))), (UNKNOWN,) * 3),
    (types("Flatten", ("n", 3, 4)), ("n", 12)),
    (types("Flatten", (2, 3, "n"), axis=2), (6, "n")),
    (types("Flatten", ("n", "m", 4), axis=2), (UNKNOWN, 4)),
    (types("Transpose", UNRANKED, perm=[1, 0]), (UNKNOWN, UNKNOWN)),
    (types("Expand", (3, 1), ints(2, 1, 4)), (2, 3, 4)),
    (types("Expand", (3, 1), Value("s", "int64", (3,))), (UNKNOWN, 3, UNKNOWN)),
    (types("Tile", ("n", 3), ints(1, 2)), ("n", 6)),
    (types("Tile", ("n", 3), ints(2, 2)), (UNKNOWN, 6)),
    (types("Concat", ("n", 3), (2, 3), axis=1), (2, 6)),
    (types("Concat", ("n", 3), UNRANKED, axis=0), (UNKNOWN, 3)),
    (types("Pad", ("n", 3), ints(0, 1, 0, 1)), ("n", 5)),
    (types("Pad", ("n", 3), ints(2, -1), None, ints(-1)), ("n", 4)),
    (types("Gather", (5, "n"), Value("i", "int64", ("m",)), axis=1), (5, "m")),
    (types("GatherND", (2, 3, 4), Value("i", "int64", (5, 2))), (5, 4)),
    (types("OneHot", ("n",), np.asarray(3), np.zeros(2, np.float32), axis=0), (3, "n")),
    (types("Compress", ("n", 3), np.asarray([True, False, True]), axis=0), (2, 3)),
    (types("CenterCropPad", ("n", 3), ints(8), axes=[0]), (8, 3)),
    (types("TopK", ("n", 3), ints(2), outputs=2), ("n", 2)),
    (types("NonZero", ("n", 3)), (2, UNKNOWN)),
    (types("Unique", (4, 3), axis=1), (4, UNKNOWN)),
    (types("ConstantOfShape", Value("s", "int64", (2,))), (UNKNOWN, UNKNOWN)),
    (types("Split", ("n", 6), axis=1, num_outputs=4, outputs=4), ("n", 2)),
]


@pytest.mark.parametrize("index", range(len(SYMBOLIC)))
def test_shapes_follow_where_they_can(index: int) -> None:
    found, wanted = SYMBOLIC[index]
    assert found[0].shape == wanted


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: types("Reshape", (2, 3), ints(4)), r"\[2, 3\] cannot become \[4\]"),
        (lambda: types("Reshape", (2, 3), ints(0, 3, 0)), "copies an axis that"),
        (lambda: types("Flatten", (2, 3), axis=3), "axis 3 is outside -2..2"),
        (lambda: types("Squeeze", (2, 3), ints(0)), "are not all of length 1"),
        (lambda: types("Unsqueeze", (2,), ints(0, 0)), "repeat one"),
        (lambda: types("Transpose", (2, 3), perm=[0, 0]), "is no order of 2 axes"),
        (lambda: types("Tile", (2, 3), ints(2)), r"repeats \[2\] do not fit 2 axes"),
        (lambda: types("Concat", (2, 3), (2,), axis=0), "differ in rank"),
        (lambda: types("Split", (2, 6), ints(1, 4), axis=1, outputs=2), "Split into"),
        (lambda: types("Slice", (2, 6), ints(0), ints(1), ints(0), ints(0)), "step 0 along axis 0"),
        (lambda: types("Slice", (2, 6), ints(0), ints(1), ints(2)), "along axis 2 of 2"),
        (lambda: types("Pad", (2, 6), ints(0, 1)), "2 pads for 2 axes"),
        (lambda: types("Pad", (2, 6), ints(0, 1, 0, 1), mode="other"), "mode 'other'"),
        (lambda: types("TopK", (2, 3), ints(4), outputs=2), "K is 4, 0 to 3 was required"),
        (lambda: types("GatherND", (2,), Value("i", "int64", (5, 2))), "name 2 axes of 1"),
        (lambda: types("ScatterND", (2,), ints(0), (1,), reduction="sub"), "reduction 'sub'"),
        (lambda: types("ConstantOfShape", ints(-1)), "is negative"),
        (lambda: types("Range", *[np.asarray(0)] * 3), "step of a range must not be zero"),
        (lambda: types("ReverseSequence", (2, 3), ints(1), time_axis=1), "are one axis"),
        (lambda: types("SequenceLength", (2,)), "a sequence was required"),
        (lambda: types("Optional"), "neither an input nor a type"),
    ],
)
def test_broken_rules_name_the_node(make: Any, rule: str) -> None:
    with pytest.raises(GraphError, match=rule):
        make()


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pads_of_any_dtype(mode: str) -> None:
    grow = ints(1, 2, 0, 3)
    wanted = np.pad(np.arange(12).reshape(3, 4), ((1, 0), (2, 3)), mode=mode)
    for dtype in (np.int8, np.float16, ml_dtypes.bfloat16, ml_dtypes.int4, np.complex64):
        found = evaluate("Pad", np.arange(12).reshape(3, 4).astype(dtype), grow, mode=mode)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.real.astype(int), wanted.astype(dtype).real.astype(int))
    words = np.asarray([["a", "b"]], object)
    assert evaluate("Pad", words, ints(0, 1, 0, 0)).tolist() == [["", "a", "b"]]


@pytest.mark.parametrize("largest", [0, 1])
def test_equal_values_keep_their_order(largest: int) -> None:
    x = np.asarray([3, 1, 3, 1, 2, 2], np.uint8)
    values, places = evaluate("TopK", x, ints(6), outputs=2, largest=largest)
    assert values.tolist() == sorted(x.tolist(), reverse=bool(largest))
    assert places.tolist() == ([0, 2, 4, 5, 1, 3] if largest else [1, 3, 4, 5, 0, 2])
    half = evaluate("TopK", x.astype(ml_dtypes.bfloat16), ints(2), outputs=2, largest=largest)
    assert half[0].dtype == ml_dtypes.bfloat16
    assert half[1].tolist() == places[:2].tolist()


def test_unique_words_and_rows() -> None:
    words = np.asarray([["b", "a"], ["b", "a"], ["a", "c"]], object)
    values, first, inverse, counts = evaluate("Unique", words, outputs=4, sorted=0)
    assert values.tolist() == ["b", "a", "c"]
    assert (first.tolist(), counts.tolist()) == ([0, 1, 5], [2, 3, 1])
    assert values[inverse].tolist() == words.reshape(-1).tolist()
    rows, first, inverse, counts = evaluate("Unique", words, outputs=4, axis=0)
    assert rows.tolist() == [["a", "c"], ["b", "a"]]
    assert (inverse.tolist(), counts.tolist()) == ([1, 1, 0], [1, 2])


def test_reductions_of_half_precision_round_once() -> None:
    ones = np.ones(4096, np.float16)
    found = evaluate("ScatterElements", ones[:1], np.zeros(4096, int), ones, reduction="add")
    assert found.tolist() == [4096]
    data = np.asarray([2, 3], ml_dtypes.bfloat16)
    index = np.asarray([[0], [0], [1]])
    halves = np.asarray([0.5, 0.5, 4], ml_dtypes.bfloat16)
    assert evaluate("ScatterND", data, index, halves, reduction="mul").tolist() == [0.5, 12]
    assert evaluate("ScatterND", data, index, halves, reduction="max").tolist() == [2, 4]
    assert evaluate("ScatterND", data, index, halves, reduction="min").tolist() == [0.5, 3]


def test_backward_cut_from_before_the_start_takes_the_first() -> None:
    x = np.arange(3)
    for start, end, wanted in ((-9, -9, [0]), (-3, -9, [0]), (9, -9, [2, 1, 0]), (0, 0, [])):
        bounds = ints(start), ints(end), ints(0), ints(-1)
        assert evaluate("Slice", x, *bounds).tolist() == wanted
        assert types("Slice", (3,), *bounds)[0].shape == (len(wanted),)


def test_one_element_by_its_indices_is_a_scalar() -> None:
    assert evaluate("GatherND", A, ints(1, 2, -1)).shape == ()


def test_indices_outside_are_refused() -> None:
    for key, more in (("GatherElements", []), ("ScatterElements", [A[0, :1, :1]])):
        for bad in (3, -4):
            with pytest.raises(IndexError, match=r"outside -3..2"):
                evaluate(key, A[0], np.asarray([[bad]]), *more)
    for bad in (2, -3):
        with pytest.raises(IndexError, match="outside a sequence of 2"):
            evaluate("SequenceAt", [A, A], np.asarray(bad))
    with pytest.raises(ValueError, match="the optional is empty"):
        evaluate("OptionalGetElement", None)


def test_ranges_count_exactly() -> None:
    half = ml_dtypes.bfloat16
    found = evaluate("Range", *(np.asarray(v, half) for v in (0, 300, 1)))
    assert found.dtype == half
    assert len(found) == 300
    assert found.tolist() == np.arange(300).astype(half).astype(float).tolist()
    steps = evaluate("Range", *(np.asarray(v) for v in (1.0, 0.0, -0.25)))
    assert steps.tolist() == [1, 0.75, 0.5, 0.25]
    assert evaluate("Range", *(np.asarray(v) for v in (3, 3, 1))).shape == (0,)


def test_first_form_of_shape_takes_all_axes() -> None:
    graph, node = node_graph("Shape", 1, [A], {})
    assert evaluate_graph(graph, [A])[0].tolist() == [2, 3, 4]
    assert op_spec("Shape", 1).upgrade(graph, node)
    assert node.since_version == 15


def test_one_hot_marks_nothing_outside() -> None:
    found = evaluate("OneHot", np.float32([0, -1, 3, -4, 2.0]), np.asarray(3), ints(5, 9))
    assert found.tolist() == [[9, 5, 5], [5, 5, 9], [5] * 3, [5] * 3, [5, 5, 9]]


def test_old_scan_runs_row_by_row_and_fills_short_rows() -> None:
    body = Graph("body")
    state, row = (Value(n, "float32", (2,)) for n in ("s", "r"))
    body.inputs = [state, row]
    total = body.add("Add", [state, row], since_version=14)
    body.outputs = [total, total]
    data, start = normal(3, 2, 3, 2), np.zeros((2, 2), np.float32)
    rules = {"body": body, "num_scan_inputs": 1}
    last, sums = evaluate("Scan", ints(2, 3), start, data, version=8, outputs=2, **rules)
    np.testing.assert_allclose(last, [data[0, :2].sum(0), data[1].sum(0)], rtol=1e-6)
    np.testing.assert_allclose(sums[1], data[1].cumsum(0), rtol=1e-6)
    assert not sums[0, 2].any()
    kinds = types("Scan", None, (2, 2), ("b", 3, 2), version=8, outputs=2, **rules)
    assert [kind.shape for kind in kinds] == [("b", 2), ("b", 3, 2)]


def test_types_of_control_flow() -> None:
    body = Graph("body")
    names = (("i", "int64", ()), ("go", "bool", ()), ("s", "float32", None))
    body.inputs = [Value(*spec) for spec in names]
    grown = body.add("Concat", [body.inputs[2], body.inputs[2]], since_version=13, axis=0)
    kept = body.add("Identity", [body.inputs[1]], since_version=25)
    body.outputs = [kept, grown, grown]
    state, scan = types("Loop", np.asarray(3), None, (2, 5), outputs=2, body=body)
    assert state == ValueType("float32", (UNKNOWN, 5))
    assert scan == ValueType("float32", (3, UNKNOWN, 5))
    flag = Value("c", "bool", ())
    assert types("Loop", np.asarray(3), flag, (2, 5), outputs=2, body=body)[1].shape[0] == UNKNOWN
    with pytest.raises(GraphError, match="the body takes 3 values, not 4"):
        types("Loop", np.asarray(3), None, (2, 5), (2,), outputs=2, body=body)


def test_optional_types_are_composed_once() -> None:
    (kind,) = types("Optional", type="sequence.int8")
    assert kind.dtype == "optional.sequence.int8"
    (kind,) = types("Optional", Value("x", "optional.float32"))
    assert kind.dtype == "optional.float32"
    (kind,) = types("OptionalGetElement", Value("x", "optional.sequence.int8"))
    assert kind.dtype == "sequence.int8"
    assert types("SequenceAt", Value("x", "sequence.int8"), ints(0))[0].dtype == "int8"
