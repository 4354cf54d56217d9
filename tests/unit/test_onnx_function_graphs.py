"""Graphs as attributes of calls of a model's own functions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from halfbyte.converters.onnx import graph_reader
from halfbyte.converters.onnx.reader import read_model
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.legality import check
from halfbyte.pipeline import inspect
from halfbyte.runtime.session import Session

make = helper.make_node
X = np.float32([1, 2, 3])


def info(name: str, kind: int = TensorProto.FLOAT, shape: Any = None) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def inner(nodes: list[Any], output: str, **stored: Any) -> Any:
    held = [numpy_helper.from_array(np.float32(array), key) for key, array in stored.items()]
    return helper.make_graph(nodes, "inner", [], [info(output)], held)


def referring(node: Any, **targets: str) -> Any:
    """Return a node with graph attributes that refer to those of the call."""
    for name, target in targets.items():
        kind = onnx.AttributeProto.GRAPH
        node.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=target, type=kind))
    return node


def function(name: str, nodes: list[Any], *attributes: str) -> Any:
    """Return a function of (c, t) that makes r."""
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, ["c", "t"], ["r"], nodes, imports, attributes)


def save(path: Path, nodes: list[Any], functions: list[Any]) -> Path:
    inputs = [info("flag", TensorProto.BOOL, []), info("x", shape=[3])]
    graph = helper.make_graph(nodes, "g", inputs, [info("y")])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    made = helper.make_model(graph, opset_imports=imports, ir_version=9, functions=functions)
    onnx.save_model(made, str(path))
    return path


def run(path: Path, flag: bool) -> list[float]:
    model = read_model(path)
    check(model.graph)
    found = Session(model).run({"flag": np.array(flag), "x": X})["y"]
    return [float(value) for value in found]


PICK = function(
    "Pick",
    [
        make("Mul", ["t", "t"], ["u"]),
        referring(
            make("If", ["c"], ["r"], else_branch=inner([make("Neg", ["u"], ["v"])], "v")),
            then_branch="given",
        ),
    ],
    "given",
)


def test_a_given_graph_reads_the_names_around_the_call(tmp_path: Path) -> None:
    """`t` and `u` of the caller are not those of the function."""
    given = inner([make("Add", ["t", "u"], ["s"]), make("Mul", ["s", "w"], ["r"])], "r", w=[2])
    nodes = [
        make("Neg", ["x"], ["t"]),
        make("Exp", ["x"], ["u"]),
        make("Pick", ["flag", "x"], ["y"], domain="local", given=given),
    ]
    path = save(tmp_path / "m.onnx", nodes, [PICK])
    np.testing.assert_allclose(run(path, True), 2 * (np.exp(X) - X), rtol=1e-6)
    assert run(path, False) == [-1, -4, -9]
    assert inspect(path).problems == []


def test_handed_on_through_a_second_function_and_used_twice(tmp_path: Path) -> None:
    both = referring(make("If", ["c"], ["a"]), then_branch="g", else_branch="g")
    call = referring(make("Pick", ["c", "a"], ["r"], domain="local"), given="g")
    outer = function("Outer", [both, call], "g")
    given = inner([make("Add", ["x", "w"], ["o"])], "o", w=[10])
    nodes = [make("Outer", ["flag", "x"], ["y"], domain="local", g=given)]
    path = save(tmp_path / "m.onnx", nodes, [PICK, outer])
    assert run(path, True) == [11, 12, 13]
    assert run(path, False) == [-121, -144, -169]
    weights = read_model(path).weights
    assert len(weights) == 3
    assert [float(weight.numpy()[0]) for weight in weights.values()] == [10, 10, 10]


def test_a_call_inside_a_branch(tmp_path: Path) -> None:
    given = inner([make("Add", ["z", "x"], ["r"])], "r")
    then = [
        make("Neg", ["x"], ["z"]),
        make("Pick", ["flag", "x"], ["p"], domain="local", given=given),
    ]
    other = inner([make("Abs", ["x"], ["q"])], "q")
    node = make("If", ["flag"], ["y"], then_branch=inner(then, "p"), else_branch=other)
    path = save(tmp_path / "m.onnx", [node], [PICK])
    assert run(path, True) == [0, 0, 0]
    assert run(path, False) == [1, 2, 3]


def test_used_inside_a_graph_of_the_function(tmp_path: Path) -> None:
    deep = referring(make("If", ["c"], ["d"]), then_branch="given", else_branch="given")
    flat = inner([make("Neg", ["t"], ["e"])], "e")
    nested = make("If", ["c"], ["r"], then_branch=inner([deep], "d"), else_branch=flat)
    call = make(
        "F", ["flag", "x"], ["y"], domain="local", given=inner([make("Neg", ["x"], ["o"])], "o")
    )
    path = save(tmp_path / "m.onnx", [call], [function("F", [nested], "given")])
    message = "graph 'then_branch' given to a function and used in a graph inside it is not"
    with pytest.raises(UnsupportedError, match=message):
        _ = read_model(path).graph
    assert message in inspect(path).problems[0]


def test_a_default_graph_sees_nothing(tmp_path: Path) -> None:
    for source, works in (("c", False), ("x", False), ("k", True)):
        default = inner([make("Neg", [source], ["o"])], "o", k=[5])
        pick = referring(make("If", ["c"], ["r"]), then_branch="g", else_branch="g")
        imports = [helper.make_opsetid("", 18)]
        made = helper.make_function(
            "local", "F", ["c", "t"], ["r"], [pick], imports,
            attribute_protos=[helper.make_attribute("g", default)],
        )  # fmt: skip
        call = make("F", ["flag", "x"], ["y"], domain="local")
        path = save(tmp_path / "m.onnx", [call], [made])
        if works:
            assert run(path, True) == [-5]
        else:
            with pytest.raises(FormatError, match=f"reads '{source}', which nothing defines"):
                read_model(path)


def test_graphs_that_double_at_every_level(tmp_path: Path, monkeypatch: Any) -> None:
    twice = referring(make("If", ["c"], ["r"]), then_branch="g", else_branch="g")
    given = inner([make("Neg", ["x"], ["o"])], "o")
    for _ in range(24):
        call = make("F", ["flag", "x"], ["o"], domain="local", g=given)
        given = inner([call], "o")
    nodes = [make("F", ["flag", "x"], ["y"], domain="local", g=given)]
    path = save(tmp_path / "m.onnx", nodes, [function("F", [twice], "g")])
    monkeypatch.setattr(graph_reader, "MAX_NODES", 2000)
    start = time.perf_counter()
    with pytest.raises(FormatError, match="has more than 2,000 nodes once functions are inlined"):
        read_model(path)
    assert time.perf_counter() - start < 10
