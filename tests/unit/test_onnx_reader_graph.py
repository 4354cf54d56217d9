"""Graphs of ONNX files: names, order, functions, subgraphs, constants, versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from halfbyte.converters.onnx.graph_reader import layer_of
from halfbyte.converters.onnx.reader import read_model
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.legality import check
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.runtime.session import Session

FLOAT = TensorProto.FLOAT
X = helper.make_tensor_value_info("x", FLOAT, ["n", 4])
Y = helper.make_tensor_value_info("y", FLOAT, None)
make = helper.make_node


def save(
    path: Path,
    nodes: list[Any],
    inputs: list[Any] | None = None,
    outputs: list[Any] | None = None,
    *,
    initializers: Any = (),
    opset: int = 21,
    domains: Any = (),
    functions: Any = (),
    ir: int = 10,
    value_info: Any = (),
) -> Path:
    made = helper.make_graph(
        nodes, "g", inputs or [X], outputs or [Y], list(initializers), value_info=list(value_info)
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    proto = helper.make_model(made, opset_imports=imports, ir_version=ir, functions=list(functions))
    onnx.save_model(proto, str(path))
    return path


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def only(graph: Graph, op: str) -> Node:
    return next(node for node in graph.nodes if node.op == op)


def constant(name: str, array: Any, dtype: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.asarray(array, dtype), name)


def test_types_names_origins_and_layers(tmp_path: Path) -> None:
    nodes = [
        make("Add", ["x", "w"], ["s"], name="/model/layers.12/mlp/Add"),
        make("Relu", ["s"], ["y"], name="plain"),
    ]
    path = save(tmp_path / "m.onnx", nodes, initializers=[constant("w", [1, 2, 3, 4])], opset=13)
    model = read_model(path)
    graph = model.graph
    add, relu = graph.nodes
    assert (add.since_version, relu.since_version) == (13, 13)
    assert (add.layer, relu.layer) == (12, None)
    assert add.origin is not None
    assert (add.origin.file, add.origin.name) == (str(path), "/model/layers.12/mlp/Add")
    assert add.origin.offset is not None
    assert (relu.outputs[0].dtype, relu.outputs[0].shape) == ("float32", ("n", 4))
    assert [value.name for value in graph.outputs] == ["y"]
    assert graph.constant_value("w").fixed
    assert list(model.weights) == ["w"]
    assert model.metadata["onnx"]["opset_import"] == {"": 13}
    assert model.metadata["onnx"]["operators"] == {"Add": 1, "Relu": 1}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("/model/layers.3/attn/MatMul", 3),
        ("/encoder/layer.11/output/dense/Add", 11),
        ("transformer.h.7.mlp", 7),
        ("/blocks.2/Conv", 2),
        ("/blocks/5/Conv", 5),
        ("layers.0", 0),
        ("/model/layers.3x/MatMul", None),
        ("/hh.3/MatMul", None),
        ("Conv_12", None),
        ("", None),
    ],
)
def test_layers_from_names(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


def test_unsorted_nodes_are_sorted_and_keep_their_order_otherwise(tmp_path: Path) -> None:
    nodes = [
        make("Neg", ["b"], ["y"]),
        make("Abs", ["x"], ["a"]),
        make("Exp", ["x"], ["c"]),
        make("Sqrt", ["a"], ["b"]),
    ]
    graph = read_model(save(tmp_path / "m.onnx", nodes)).graph
    assert ops(graph) == ["Abs", "Exp", "Sqrt", "Neg"]


def test_old_initializers_that_are_inputs_too(tmp_path: Path) -> None:
    w = helper.make_tensor_value_info("w", FLOAT, [4])
    path = save(
        tmp_path / "m.onnx", [make("Mul", ["x", "w"], ["y"])], [X, w],
        initializers=[constant("w", [1, 2, 3, 4])], opset=7, ir=3,
    )  # fmt: skip
    graph = read_model(path).graph
    assert [value.name for value in graph.inputs] == ["x"]
    assert list(graph.constants) == ["w"]


def test_file_without_version_and_opset(tmp_path: Path) -> None:
    made = helper.make_graph([make("Abs", ["x"], ["y"])], "g", [X], [Y])
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.ModelProto(graph=made).SerializeToString())
    model = read_model(path)
    assert model.graph.nodes[0].since_version in (1, 6, 13)
    assert model.metadata["onnx"]["opset_import"] == {"": 1}


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value": constant("t", [[1, 2]])}, np.array([[1, 2]], np.float32)),
        ({"value_float": 1.5}, np.array(1.5, np.float32)),
        ({"value_floats": [1.5, 2]}, np.array([1.5, 2], np.float32)),
        ({"value_int": 3}, np.array(3, np.int64)),
        ({"value_ints": [3, -4]}, np.array([3, -4], np.int64)),
        ({"value_string": "ab"}, np.array("ab", object)),
        ({"value_strings": ["ab", "c"]}, np.array(["ab", "c"], object)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_constant_nodes(tmp_path: Path, attributes: dict[str, Any], expected: Any) -> None:
    nodes = [make("Constant", [], ["c"], **attributes), make("Identity", ["c"], ["y"])]
    graph = read_model(save(tmp_path / "m.onnx", nodes)).graph
    found = graph.constants["c"].numpy()
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tolist() == expected.tolist()


def test_omitted_inputs_and_outputs(tmp_path: Path) -> None:
    nodes = [
        make("Clip", ["x", "", "high"], ["c"]),
        make("LayerNormalization", ["c", "scale"], ["y", "", "inverse"]),
    ]
    high, scale = constant("high", 2.0), constant("scale", [1, 1, 1, 1])
    graph = read_model(save(tmp_path / "m.onnx", nodes, initializers=[high, scale])).graph
    clip, norm = graph.nodes
    assert [v is None for v in clip.inputs] == [False, True, False]
    assert len(norm.outputs) == 3
    assert not norm.outputs[1].uses
    dropped = [make("Dropout", ["x"], ["y", ""])]
    assert len(read_model(save(tmp_path / "d.onnx", dropped)).graph.nodes[0].outputs) == 1


def test_outputs_that_are_inputs_or_constants(tmp_path: Path) -> None:
    c = helper.make_tensor_value_info("c", FLOAT, None)
    nodes = [make("Abs", ["x"], ["unread"])]
    path = save(tmp_path / "m.onnx", nodes, [X], [X, c], initializers=[constant("c", [1, 2])])
    graph = read_model(path).graph
    assert [value.name for value in graph.outputs] == ["x", "c"]


def test_declared_shapes_fill_gaps_and_lose_against_inference(tmp_path: Path) -> None:
    stale = helper.make_tensor_value_info("s", FLOAT, [1, 9])
    nodes = [make("Abs", ["x"], ["s"]), make("Reshape", ["s", "shape"], ["y"])]
    shape = helper.make_tensor_value_info("shape", TensorProto.INT64, [2])
    y = helper.make_tensor_value_info("y", FLOAT, ["rows", 2])
    graph = read_model(save(tmp_path / "m.onnx", nodes, [X, shape], [y], value_info=[stale])).graph
    assert graph.nodes[0].outputs[0].shape == ("n", 4)
    assert graph.outputs[0].shape == ("rows", 2)


def branch(name: str, nodes: list[Any], output: str, initializers: Any = ()) -> Any:
    out = helper.make_tensor_value_info(output, FLOAT, None)
    return helper.make_graph(nodes, name, [], [out], list(initializers))


def conditional(tmp_path: Path) -> Path:
    inner = branch("inner", [make("Mul", ["t", "a"], ["i"])], "i")
    deep = make(
        "If",
        ["flag"],
        ["d"],
        then_branch=inner,
        else_branch=branch("e", [make("Neg", ["x"], ["i"])], "i"),
    )
    first = branch("first", [make("Add", ["x", "w"], ["t"]), deep], "d")
    second = branch("second", [make("Sub", ["x", "own"], ["t"])], "t", [constant("own", [5.0])])
    nodes = [
        make("Exp", ["x"], ["a"]),
        make("If", ["flag"], ["y"], then_branch=first, else_branch=second),
    ]
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    return save(tmp_path / "m.onnx", nodes, [X, flag], initializers=[constant("w", [1.0])])


def test_captures_of_nested_branches(tmp_path: Path) -> None:
    graph = read_model(conditional(tmp_path)).graph
    check(graph)
    node = only(graph, "If")
    assert node.attributes["captures"] == 3
    assert [v.name for v in node.inputs if v is not None] == ["flag", "x", "flag", "a"]
    first, second = node.attributes["then_branch"], node.attributes["else_branch"]
    for inner in (first, second):
        assert [v.dtype for v in inner.inputs] == ["float32", "bool", "float32"]
        assert inner.inputs[0].shape == ("n", 4)
    assert list(first.constants) == ["w"]
    assert list(second.constants) == ["own"]
    deep = only(first, "If")
    assert [v.name for v in deep.inputs if v is not None] == ["flag", "x", "t", "a"]


@pytest.mark.parametrize("flag", [True, False])
def test_conditional_runs(tmp_path: Path, flag: bool) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4) / 8
    found = Session(read_model(conditional(tmp_path))).run({"x": x, "flag": np.array(flag)})
    expected = (x + 1) * np.exp(x) if flag else x - 5
    np.testing.assert_allclose(found["y"], expected, rtol=1e-6)


def test_loop_with_omitted_inputs_keeps_captures_last(tmp_path: Path) -> None:
    i = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    c = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    keep = helper.make_tensor_value_info("keep", TensorProto.BOOL, [])
    v = helper.make_tensor_value_info("v", FLOAT, None)
    body = helper.make_graph(
        [make("Identity", ["c"], ["keep"]), make("Abs", ["x"], ["v"])], "b", [i, c], [keep, v]
    )
    path = save(tmp_path / "m.onnx", [make("Loop", ["trips"], ["y"], body=body)],
                initializers=[constant("trips", 3, np.int64)])  # fmt: skip
    graph = read_model(path).graph
    loop = graph.nodes[0]
    assert [None if v is None else v.name for v in loop.inputs] == ["trips", None, "x"]
    assert len(loop.attributes["body"].inputs) == 3


def local(name: str, inputs: list[str], outputs: list[str], nodes: list[Any], **more: Any) -> Any:
    return helper.make_function(
        "local",
        name,
        inputs,
        outputs,
        nodes,
        [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)],
        **more,
    )


def reference(node: Any, name: str, target: str, kind: int) -> Any:
    node.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=target, type=kind))
    return node


def test_functions_are_inlined_with_attributes_and_defaults(tmp_path: Path) -> None:
    soft = reference(make("LeakyRelu", ["a"], ["t"]), "alpha", "slope", onnx.AttributeProto.FLOAT)
    inner = local("Inner", ["a"], ["b"], [soft, make("Neg", ["t"], ["b"])],
                  attribute_protos=[helper.make_attribute("slope", 0.5)])  # fmt: skip
    call = reference(
        make("Inner", ["p"], ["q"], domain="local"), "slope", "s", onnx.AttributeProto.FLOAT
    )
    outer = local(
        "Outer",
        ["p", "extra"],
        ["q", "p2"],
        [call, make("Identity", ["p"], ["p2"])],
        attributes=["s"],
    )
    nodes = [
        make("Outer", ["x"], ["u", "same"], domain="local", name="/layers.4/outer", s=0.25),
        make("Inner", ["u"], ["y"], domain="local"),
    ]
    path = save(tmp_path / "m.onnx", nodes, domains=["local"], functions=[inner, outer])
    model = read_model(path)
    graph = model.graph
    assert sorted(ops(graph)) == ["Identity", "LeakyRelu", "LeakyRelu", "Neg", "Neg"]
    slopes = [node.attributes["alpha"] for node in graph.nodes if node.op == "LeakyRelu"]
    assert slopes == [0.25, 0.5]
    assert [node.layer for node in graph.nodes] == [4, 4, 4, None, None]
    assert [value.name for value in graph.outputs] == ["y"]
    assert {"u", "same"} <= {value.name for value in graph.values()}
    x = np.array([[-4, -1, 0, 2]], np.float32)
    u = -np.where(x < 0, 0.25 * x, x)
    found = Session(model).run({"x": x})["y"]
    np.testing.assert_allclose(found, -np.where(u < 0, 0.5 * u, u))
    assert model.metadata["onnx"]["operators"]["local.Inner"] == 2


def test_function_passing_values_through(tmp_path: Path) -> None:
    body = local("F", ["a", "b"], ["a", "c"], [make("Constant", [], ["c"], value_float=2.0)])
    nodes = [make("F", ["x", "x"], ["y", "z"], domain="local")]
    z = helper.make_tensor_value_info("z", FLOAT, [])
    path = save(tmp_path / "m.onnx", nodes, [X], [Y, z], domains=["local"], functions=[body])
    graph = read_model(path).graph
    assert [value.name for value in graph.outputs] == ["y", "z"]
    found = Session(graph).run({"x": np.ones((1, 4), np.float32)})
    assert found["y"].tolist() == [[1, 1, 1, 1]]
    assert found["z"] == 2


def test_missing_operators_are_listed_together(tmp_path: Path) -> None:
    nodes = [
        make("Foo", ["x"], ["a"], domain="custom"),
        make("Foo", ["a"], ["b"], domain="custom"),
        make("Swish", ["b"], ["c"]),
        make("Nonsense", ["c"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, domains=["custom"], initializers=[constant("w", [1])])
    model = read_model(path)
    assert list(model.weights) == ["w"]
    with pytest.raises(UnsupportedError) as caught:
        _ = model.graph
    text = str(caught.value)
    for name in ("Nonsense (opset 21) x1", "Swish (opset 21) x1", "custom.Foo (opset 1) x2"):
        assert name in text


def test_newer_opset_is_refused_when_the_graph_is_asked_for(tmp_path: Path) -> None:
    model = read_model(save(tmp_path / "m.onnx", [make("Abs", ["x"], ["y"])], opset=29))
    with pytest.raises(UnsupportedError, match="opset 29"):
        _ = model.graph


def test_other_weights_give_another_graph(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        [make("Add", ["x", "w"], ["y"])],
        initializers=[constant("w", [1, 1, 1, 1])],
    )
    model = read_model(path)
    changed = model.with_weights({"w": tensor_from_array("w", np.full(4, 3, np.float32))})
    x = np.zeros((1, 4), np.float32)
    assert Session(changed).run({"x": x})["y"].tolist() == [[3, 3, 3, 3]]
    assert Session(model).run({"x": x})["y"].tolist() == [[1, 1, 1, 1]]


def test_big_constants_are_weights(tmp_path: Path) -> None:
    nodes = [
        make("Constant", [], ["big"], value=constant("t", np.zeros((512, 4)))),
        make("Constant", [], ["small"], value=constant("t", [1])),
        make("Add", ["big", "small"], ["y"]),
    ]
    assert list(read_model(save(tmp_path / "m.onnx", nodes)).weights) == ["big"]


def test_second_names_of_stored_tensors(tmp_path: Path) -> None:
    nodes = [
        make("Identity", ["w"], ["w2"]),
        make("Add", ["x", "w"], ["a"]),
        make("Add", ["a", "w2"], ["y"]),
        make("Identity", ["w2"], ["z"]),
    ]
    z = helper.make_tensor_value_info("z", FLOAT, [4])
    stored = [constant("w", [1, 2, 3, 4])]
    graph = read_model(save(tmp_path / "m.onnx", nodes, [X], [Y, z], initializers=stored)).graph
    assert ops(graph) == ["Add", "Add", "Identity"]
    assert list(graph.constants) == ["w"]
    assert [value.name for value in graph.outputs] == ["y", "z"]


def test_old_forms_are_upgraded(tmp_path: Path) -> None:
    node = make("Squeeze", ["x"], ["y"], axes=[0])
    one = helper.make_tensor_value_info("x", FLOAT, [1, 4])
    graph = read_model(save(tmp_path / "m.onnx", [node], [one], opset=11)).graph
    assert graph.nodes[0].since_version >= 13
    assert [v.constant is not None for v in graph.nodes[0].inputs if v is not None] == [False, True]


def test_attribute_types_of_2017_are_guessed(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [make("LeakyRelu", ["x"], ["y"], alpha=0.5)])
    proto = onnx.load(path)
    proto.graph.node[0].attribute[0].ClearField("type")
    path.write_bytes(proto.SerializePartialToString())
    assert read_model(path).graph.nodes[0].attributes["alpha"] == 0.5


def test_dtype_attributes_become_names(tmp_path: Path) -> None:
    graph = read_model(save(tmp_path / "m.onnx", [make("Cast", ["x"], ["y"], to=10)])).graph
    assert graph.nodes[0].attributes["to"] == "float16"
    assert graph.outputs[0].dtype == "float16"


def test_output_made_by_nobody(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [make("Abs", ["x"], ["z"])])
    with pytest.raises(FormatError, match="output 'y' is made by no node"):
        read_model(path)
