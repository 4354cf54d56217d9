"""The opset of a written file: lowest that fits, older forms, newer operators taken apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from halfbyte.converters.onnx.lowering.table import LOWERINGS
from halfbyte.converters.onnx.opset_choice import (
    DTYPE_IR,
    LOWEST,
    OPSET_IR,
    RUNTIME_HIGHEST,
    fitting_ir_version,
    fitting_opset,
    highest_opset,
    type_word,
)
from halfbyte.converters.onnx.output import lowered_graph
from halfbyte.converters.onnx.writer import write_graph
from halfbyte.errors import UnsupportedError
from halfbyte.ir.dtypes import DTYPES
from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.ops import OPS, op_spec
from halfbyte.ir.tensor import tensor_from_array
from support.op_cases import case_graph, evaluate_case

SINGLE = np.float32


def graph_of(op: str, version: int, *inputs: Value, graph: Graph, **attributes: object) -> Value:
    return graph.add(op, list(inputs), name="y", since_version=version, **attributes)


def one_node(op: str, version: int, dtype: str = "float32", **attributes: object) -> Graph:
    graph = Graph("one")
    x = graph.add_input("x", dtype, (2, 3))
    graph.outputs = [graph_of(op, version, x, graph=graph, **attributes)]
    graph.outputs[0].dtype, graph.outputs[0].shape = dtype, (2, 3)
    return graph


@pytest.mark.parametrize(
    ("op", "version", "dtype", "opset"),
    [
        ("Relu", 14, "float32", LOWEST),
        ("Relu", 14, "bfloat16", 13),
        ("Relu", 14, "int32", 14),
        ("Gelu", 20, "float32", 20),
        ("Identity", 1, "int4", 21),
        ("Swish", 24, "float32", 24),
    ],
)
def test_the_lowest_that_the_types_allow(op: str, version: int, dtype: str, opset: int) -> None:
    graph = one_node(op, version, dtype)
    assert fitting_opset(graph) == opset
    assert fitting_opset(graph, opset) == opset
    if opset == LOWEST:
        return
    with pytest.raises(UnsupportedError, match=rf"node {op} -> 'y': opset {opset - 1} is not"):
        fitting_opset(graph, opset - 1)


def test_opsets_that_do_not_exist() -> None:
    for opset in (0, highest_opset() + 1):
        with pytest.raises(UnsupportedError, match=f"opset {opset} is not supported"):
            fitting_opset(one_node("Relu", 14), opset)


def test_two_nodes_without_a_common_opset() -> None:
    graph = one_node("Softmax", 11, axis=0)
    y = graph.outputs[0]
    graph.outputs = [graph.add("Gelu", [y], name="z", dtype="float32", since_version=20)]
    with pytest.raises(UnsupportedError) as caught:
        fitting_opset(graph)
    assert "Gelu -> 'z'" in str(caught.value) and "Softmax -> 'y'" in str(caught.value)


def test_ir_versions_are_those_of_onnx() -> None:
    table = {}
    for _, ir, opset, *_ in onnx.helper.VERSION_TABLE:
        table[opset] = min(ir, table.get(opset, ir))
    for opset in range(11, highest_opset() + 1):
        graph = Graph(opset=opset)
        wanted = max(table[n] for n in table if n <= opset)
        assert fitting_ir_version(graph, opset) == wanted, opset
    assert set(OPSET_IR) <= set(table)
    for dtype in DTYPES:
        graph = Graph()
        graph.add_input("x", dtype, ())
        assert fitting_ir_version(graph, 11) == max(6, DTYPE_IR.get(dtype, 0))
    maybe = Graph()
    maybe.inputs.append(Value("x", "optional.float32"))
    assert fitting_ir_version(maybe, 11) == 8


def test_type_words_are_those_of_the_schemas() -> None:
    known = set()
    for schema in onnx.defs.get_all_schemas_with_history():
        for rule in schema.type_constraints:
            known |= set(rule.allowed_type_strs)
    for dtype in DTYPES:
        assert type_word(dtype) in known, dtype
    assert type_word("sequence.float32") in known
    assert type_word("optional.sequence.int64") in known


def evaluated(graph: Graph, path: Path, feeds: dict[str, np.ndarray], **options: int) -> list:
    lowered, _ = lowered_graph(graph, **options)
    write_graph(lowered, path, **options)
    return list(ReferenceEvaluator(str(path)).run(None, feeds))


OLDER = [
    ("Squeeze", (13, 11), {}, [[1]]),
    ("Unsqueeze", (13, 11), {}, [[0, 2]]),
    ("ReduceMean", (18, 13), {"keepdims": 0}, [[1]]),
    ("ReduceMax", (18, 11), {}, [[0, -1]]),
    ("ReduceSum", (13, 11), {}, [[1]]),
    ("Split", (13, 11), {"axis": 0}, [[1, 1]]),
]


@pytest.mark.parametrize(("op", "versions", "attributes", "inputs"), OLDER)
def test_older_forms(
    tmp_path: Path, op: str, versions: tuple[int, int], attributes: dict, inputs: list
) -> None:
    x = np.arange(6, dtype=SINGLE).reshape(2, 1, 3)
    results = []
    for opset in versions:
        graph = Graph(op)
        values = [graph.add_input("x", "float32", x.shape)]
        for index, array in enumerate(inputs):
            tensor = tensor_from_array(f"c{index}", np.asarray(array, np.int64))
            values.append(graph.add_constant(tensor, fixed=True))
        y = graph.add(op, values, name="y", since_version=versions[0], **attributes)
        graph.outputs = [y]
        if op == "Split":
            second = Value("y2")
            assert y.producer is not None
            y.producer.outputs.append(second)
            second.producer = y.producer
            graph.outputs.append(second)
        results.append(evaluated(graph, tmp_path / f"{opset}.onnx", {"x": x}, opset=opset))
        model = onnx.load(tmp_path / f"{opset}.onnx")
        assert model.opset_import[0].version == opset
        assert len(model.graph.node) == 1
        assert len(model.graph.node[0].input) == (2 if opset == versions[0] else 1)
    for first, second in zip(*results, strict=True):
        assert np.array_equal(first, second)


def test_an_axis_that_is_no_constant_stays_an_input(tmp_path: Path) -> None:
    graph = Graph("axes")
    x, axes = graph.add_input("x", "float32", (2, 1)), graph.add_input("a", "int64", (1,))
    graph.outputs = [graph.add("Squeeze", [x, axes], name="y", since_version=13)]
    with pytest.raises(UnsupportedError, match="opset 11"):
        evaluated(graph, tmp_path / "m.onnx", {}, opset=11)
    assert not list(tmp_path.iterdir())


def test_older_nodes_become_newer_where_others_need_it(tmp_path: Path) -> None:
    graph = Graph("mixed")
    x = graph.add_input("x", "float32", (2, 1, 3))
    y = graph.add("Squeeze", [x], since_version=11, axes=[1])
    graph.outputs = [graph.add("Gelu", [y], name="z", since_version=20)]
    data = np.linspace(-2, 2, 6, dtype=SINGLE).reshape(2, 1, 3)
    (found,) = evaluated(graph, tmp_path / "m.onnx", {"x": data})
    model = onnx.load(tmp_path / "m.onnx")
    assert model.opset_import[0].version == 20
    assert found.shape == (2, 3)


APART = [
    ("Gelu", 13),
    ("Swish", 13),
    ("Swish", 20),
    ("LayerNormalization", 13),
    ("RMSNormalization", 13),
    ("RMSNormalization", 18),
    ("RotaryEmbedding", 13),
    ("Shape", 13),
    ("SwiGLU", 13),
    ("halfbyte.SwiGLU", 13),
    ("halfbyte.Linear", 9),
    ("halfbyte.Linear", 13),
    ("halfbyte.CachedAttention", 13),
    ("halfbyte.CachedAttention", 23),
]


@pytest.mark.parametrize(("key", "opset"), APART)
def test_operators_in_terms_of_older_ones(tmp_path: Path, key: str, opset: int) -> None:
    cases = [case for case in op_spec(key).cases() if not case.states]
    assert cases
    for case in cases:
        graph, feeds = case_graph(op_spec(key), case)
        path = tmp_path / f"{case.name}.onnx"
        found = evaluated(graph, path, feeds, opset=opset)
        assert onnx.load(path).opset_import[0].version == opset
        for result, wanted in zip(found, evaluate_case(key, case), strict=False):
            assert result.shape == wanted.shape, case.name
            np.testing.assert_allclose(
                result.astype(np.float64), wanted.astype(np.float64), rtol=2e-5, atol=2e-5
            )


def test_every_lowering_has_an_operator() -> None:
    assert set(LOWERINGS) <= set(OPS)
    assert {key for key, _ in APART} | {"Gather"} == set(LOWERINGS)


def test_what_no_runtime_loads_is_taken_apart(tmp_path: Path) -> None:
    case = op_spec("SwiGLU").cases()[0]
    graph, feeds = case_graph(op_spec("SwiGLU"), case)
    (found,) = evaluated(graph, tmp_path / "m.onnx", feeds)
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version <= RUNTIME_HIGHEST
    np.testing.assert_allclose(found, evaluate_case("SwiGLU", case)[0], rtol=1e-5)


def test_values_of_attributes_have_opsets_too() -> None:
    graph = Graph("pads")
    x = graph.add_input("x", "float32", (2,))
    pads = graph.add_constant(tensor_from_array("p", np.asarray([1, 1])), fixed=True)
    for mode, opset in (("wrap", 19), ("edge", 18)):
        y = graph.add("Pad", [x, pads], dtype="float32", since_version=19, mode=mode)
        graph.outputs = [y]
        assert fitting_opset(graph) >= 18
        assert fitting_opset(graph, opset) == opset
        if mode == "wrap":
            with pytest.raises(UnsupportedError, match="'wrap' does not exist there"):
                fitting_opset(graph, 18)
        assert y.producer is not None
        graph.outputs = []
        graph.remove(y.producer)
