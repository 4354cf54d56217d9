"""Stored tensors of one name stay apart, through writing and with other weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from halfbyte.converters import get_format
from halfbyte.converters.format import WriteOptions
from halfbyte.converters.onnx.reader import read_model
from halfbyte.converters.onnx.scope import FreshNames
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.runtime.session import Session

make = helper.make_node
FIRST = np.arange(12, dtype=np.float32).reshape(3, 4)
SECOND = -FIRST - 1
X = np.ones((2, 3), np.float32)


def info(name: str, shape: Any = None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def branch(name: str, op: str, stored: dict[str, np.ndarray[Any, Any]]) -> Any:
    held = [numpy_helper.from_array(array, key) for key, array in stored.items()]
    nodes = [make(op, ["x", "w"], ["p"]), make("Add", ["p", "b"], ["out"])]
    return helper.make_graph(nodes, name, [], [info("out")], held)


def save(path: Path, nodes: list[Any], inputs: list[Any], opset: int = 21, **stored: Any) -> Path:
    held = [numpy_helper.from_array(array, key) for key, array in stored.items()]
    graph = helper.make_graph(nodes, "g", inputs, [info("y")], held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save_model(made, str(path))
    return path


@pytest.fixture
def siblings(tmp_path: Path) -> Path:
    """Return a file whose branches have initializers of the same names, one of another use."""
    bias = np.float32([1, 2, 3, 4])
    first = branch("first", "MatMul", {"w": FIRST, "b": bias})
    second = branch("second", "MatMul", {"w": SECOND, "b": -bias})
    nodes = [
        make("If", ["flag"], ["z"], else_branch=second, then_branch=first),
        make("Neg", ["z"], ["y"]),
    ]
    nodes[0].attribute.sort(key=lambda held: held.name, reverse=True)
    inputs = [info("flag", [], TensorProto.BOOL), info("x", ["n", 3])]
    return save(tmp_path / "m.onnx", nodes, inputs)


def run(model: Model, flag: bool) -> np.ndarray[Any, Any]:
    found = Session(model).run({"flag": np.array(flag), "x": X})
    return np.asarray(found["y"])


def expected(flag: bool) -> np.ndarray[Any, Any]:
    bias = np.float32([1, 2, 3, 4])
    return -(X @ FIRST + bias) if flag else -(X @ SECOND - bias)


def test_initializers_of_sibling_branches(siblings: Path) -> None:
    model = read_model(siblings)
    assert list(model.weights) == ["w", "b", "w.1", "b.1"]
    assert np.array_equal(model.weights["w"].numpy().T, FIRST)
    assert np.array_equal(model.weights["w.1"].numpy().T, SECOND)
    for flag in (True, False):
        assert np.array_equal(run(model, flag), expected(flag))


def test_each_of_them_can_be_exchanged(siblings: Path) -> None:
    model = read_model(siblings)
    other = tensor_from_array("w.1", np.zeros((4, 3), np.float32))
    changed = model.with_weights({**model.weights, "w.1": other})
    assert np.array_equal(run(changed, True), expected(True))
    assert np.array_equal(run(changed, False), np.float32([[1, 2, 3, 4]] * 2))


def test_written_and_read_again(siblings: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    get_format("onnx").write(read_model(siblings), again, WriteOptions())
    onnx.checker.check_model(str(again), full_check=True)
    held = {a.name: a.g for a in onnx.load(str(again)).graph.node[0].attribute}
    for name, array in (("then_branch", FIRST), ("else_branch", SECOND)):
        arrays = [numpy_helper.to_array(tensor) for tensor in held[name].initializer]
        assert [np.array_equal(array, kept) for kept in arrays if kept.ndim == 2] == [True]
    back = read_model(again)
    for flag in (True, False):
        assert np.array_equal(run(back, flag), expected(flag))


def test_big_ones_move_to_the_outer_graph(tmp_path: Path) -> None:
    """The writer keeps big constants of branches outside, where names must differ."""
    wide = {key: np.repeat(array, 200, 1) for key, array in (("then", FIRST), ("else", SECOND))}
    held = {key: {"w": w, "b": w[0]} for key, w in wide.items()}
    branches = {f"{key}_branch": branch(key, "MatMul", held[key]) for key in held}
    nodes = [make("If", ["flag"], ["y"], **branches)]
    inputs = [info("flag", [], TensorProto.BOOL), info("x", ["n", 3])]
    model = read_model(save(tmp_path / "m.onnx", nodes, inputs))
    written = get_format("onnx").write(model, tmp_path / "again.onnx", WriteOptions())
    assert {entry.source_name: entry.nbytes for entry in written} == {
        "w": 9600, "b": 3200, "w.1": 9600, "b.1": 3200,
    }  # fmt: skip
    back = read_model(tmp_path / "again.onnx")
    assert len(back.weights) == 4
    for flag in (True, False):
        w = wide["then" if flag else "else"]
        assert np.array_equal(run(back, flag), X @ w + w[0])


@pytest.mark.parametrize("is_inner", [False, True])
def test_constants_made_by_upgrades_take_no_weight_s_place(tmp_path: Path, is_inner: bool) -> None:
    """Squeeze of opset 11 becomes one with an input, whose constant is called axes too."""
    axes = np.float32([[5.0, 7.0]])
    squeeze = make("Squeeze", ["x"], ["s"], axes=[0])
    nodes = [squeeze, make("Mul", ["s", "axes"], ["y"])]
    inputs = [info("x", [1, 2])]
    if is_inner:
        held = [numpy_helper.from_array(axes, "axes")]
        inner = helper.make_graph(nodes, "inner", [], [info("y")], held)
        other = helper.make_graph([make("Neg", ["x"], ["n"])], "other", [], [info("n")])
        nodes = [
            squeeze,
            make("Add", ["s", "s"], ["t"]),
            make("If", ["flag"], ["y"], then_branch=inner, else_branch=other),
        ]
        nodes[0].output[0], nodes[1].input[0], nodes[1].input[1] = "q", "q", "q"
        inner.node[0].output[0], inner.node[1].input[0] = "s", "s"
        inputs.append(info("flag", [], TensorProto.BOOL))
    path = save(tmp_path / "m.onnx", nodes, inputs, 11, **({} if is_inner else {"axes": axes}))
    model = read_model(path)
    assert list(model.weights) == ["axes"]
    assert np.array_equal(model.weights["axes"].numpy(), axes)
    feed = {"x": np.float32([[1, 2]])} | ({"flag": np.array(True)} if is_inner else {})
    assert np.array_equal(Session(model).run(feed)["y"], [[5, 14]])


def test_a_bias_stored_as_row_and_used_elsewhere_as_matrix(tmp_path: Path) -> None:
    """The row becomes a vector for one Linear; both forms have a name."""
    row = np.float32([[1, 2, 3, 4]])
    inner = helper.make_graph([make("Gemm", ["x", "w", "row"], ["o"])], "a", [], [info("o")], [])
    other = helper.make_graph([make("Add", ["x4", "row"], ["p"])], "b", [], [info("p")], [])
    nodes = [
        make("MatMul", ["x", "w"], ["x4"]),
        make("If", ["flag"], ["y"], then_branch=inner, else_branch=other),
    ]
    inputs = [info("x", ["n", 3]), info("flag", [], TensorProto.BOOL)]
    model = read_model(save(tmp_path / "m.onnx", nodes, inputs, w=FIRST, row=row))
    assert {name: held.shape for name, held in model.weights.items() if "row" in name} in (
        {"row": (1, 4)},
        {"row": (4,), "row.1": (1, 4)},
        {"row": (1, 4), "row.1": (4,)},
    )
    for flag in (True, False):
        assert np.array_equal(run(model, flag), X @ FIRST + row)


def test_fresh_names() -> None:
    fresh = FreshNames(["a", "a.2"])
    assert [fresh(stem) for stem in ("a", "a", "b", "b", "a.2", "b.1")] == [
        "a.1", "a.3", "b", "b.1", "a.2.1", "b.1.1",
    ]  # fmt: skip
