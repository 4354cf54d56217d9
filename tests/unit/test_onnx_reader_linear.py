"""Products with stored matrices become Linear, their weights turned lazily."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from halfbyte.converters.onnx.reader import read_model
from halfbyte.ir.graph import Graph
from halfbyte.ir.legality import check
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import ArrayPart, FilePart
from halfbyte.ir.transposed import NARROW, TransposedPart, transposed
from halfbyte.runtime.session import Session

make = helper.make_node
FLOAT = TensorProto.FLOAT
RNG = np.random.default_rng(3)
WEIGHT = RNG.standard_normal((6, 5)).astype(np.float32)
BIAS = RNG.standard_normal(5).astype(np.float32)
DATA = RNG.standard_normal((3, 6)).astype(np.float32)


def read(
    tmp_path: Path,
    nodes: list[Any],
    stored: dict[str, np.ndarray[Any, Any]],
    dtype: int = FLOAT,
    opset: int = 21,
    outputs: tuple[str, ...] = ("y",),
    rank: int = 2,
) -> Model:
    x = helper.make_tensor_value_info("x", dtype, [*(["b"] * (rank - 1)), 6])
    outs = [helper.make_tensor_value_info(name, dtype, None) for name in outputs]
    protos = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    made = helper.make_graph(nodes, "g", [x], outs, protos)
    path = tmp_path / "m.onnx"
    imports = [helper.make_opsetid("", opset)]
    onnx.save_model(helper.make_model(made, opset_imports=imports, ir_version=10), str(path))
    return read_model(path)


def ops(graph: Graph) -> list[str]:
    check(graph)
    return [f"{node.domain}.{node.op}" for node in graph.nodes]


LINEAR = ["halfbyte.Linear"]
CASES: dict[str, tuple[list[Any], dict[str, np.ndarray[Any, Any]]]] = {
    "matmul": ([make("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT}),
    "matmul and bias": (
        [make("MatMul", ["x", "w"], ["s"]), make("Add", ["b", "s"], ["y"])],
        {"w": WEIGHT, "b": BIAS},
    ),
    "matmul of a transpose": (
        [make("Transpose", ["w"], ["t"], perm=[1, 0]), make("MatMul", ["x", "t"], ["y"])],
        {"w": WEIGHT.T.copy()},
    ),
    "gemm": ([make("Gemm", ["x", "w", "b"], ["y"])], {"w": WEIGHT, "b": BIAS}),
    "gemm without bias": ([make("Gemm", ["x", "w"], ["y"])], {"w": WEIGHT}),
    "gemm, bias of two dimensions": (
        [make("Gemm", ["x", "w", "b"], ["y"])],
        {"w": WEIGHT, "b": BIAS[None]},
    ),
    "gemm transB": (
        [make("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        {"w": WEIGHT.T.copy(), "b": BIAS},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_products_become_linear(tmp_path: Path, case: str) -> None:
    nodes, stored = CASES[case]
    model = read(tmp_path, nodes, stored)
    assert ops(model.graph) == LINEAR
    linear = model.graph.nodes[0]
    assert linear.inputs[1] is not None
    weight = model.weights["w"]
    assert (weight.name, weight.shape) == ("w", (5, 6))
    np.testing.assert_array_equal(weight.numpy(), WEIGHT.T)
    assert sorted(model.weights) == sorted(stored)
    assert [value.name for value in model.graph.outputs] == ["y"]
    expected = DATA @ WEIGHT + (BIAS if "b" in stored else 0)
    np.testing.assert_allclose(Session(model).run({"x": DATA})["y"], expected, rtol=1e-5, atol=1e-6)


KEPT: dict[str, tuple[list[Any], dict[str, np.ndarray[Any, Any]]]] = {
    "transA": ([make("Gemm", ["x", "w"], ["y"], transA=1)], {"w": WEIGHT[:3]}),
    "alpha": ([make("Gemm", ["x", "w"], ["y"], alpha=0.5)], {"w": WEIGHT}),
    "beta": ([make("Gemm", ["x", "w", "b"], ["y"], beta=0.5)], {"w": WEIGHT, "b": BIAS}),
    "bias per row": (
        [make("Gemm", ["x", "w", "b"], ["y"])],
        {"w": WEIGHT, "b": np.ones((3, 1), np.float32)},
    ),
    "three dimensions": ([make("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT[None]}),
    "read by another": (
        [make("MatMul", ["x", "w"], ["a"]), make("Abs", ["w"], ["y"])],
        {"w": WEIGHT},
    ),
    "both ways": (
        [make("Gemm", ["x", "w"], ["a"]), make("Gemm", ["a", "w"], ["y"], transB=1)],
        {"w": WEIGHT},
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_other_products_stay(tmp_path: Path, case: str) -> None:
    nodes, stored = KEPT[case]
    model = read(tmp_path, nodes, stored)
    assert "halfbyte.Linear" not in ops(model.graph)
    np.testing.assert_array_equal(model.weights["w"].numpy(), stored["w"])


def test_float64_stays_as_linear_would_round_it(tmp_path: Path) -> None:
    nodes = [make("MatMul", ["x", "w"], ["y"])]
    model = read(tmp_path, nodes, {"w": WEIGHT.astype(np.float64)}, TensorProto.DOUBLE)
    assert ops(model.graph) == [".MatMul"]


def test_float16_weight_keeps_its_type(tmp_path: Path) -> None:
    nodes = [make("MatMul", ["x", "w"], ["y"])]
    model = read(tmp_path, nodes, {"w": WEIGHT.astype(np.float16)}, TensorProto.FLOAT16)
    assert ops(model.graph) == LINEAR
    assert model.graph.outputs[0].dtype == "float16"
    found = Session(model).run({"x": DATA.astype(np.float16)})["y"]
    assert found.dtype == np.float16


def test_a_tied_weight_is_one_tensor(tmp_path: Path) -> None:
    square = RNG.standard_normal((6, 6)).astype(np.float32)
    nodes = [make("MatMul", ["x", "w"], ["a"]), make("MatMul", ["a", "w"], ["y"])]
    model = read(tmp_path, nodes, {"w": square})
    assert ops(model.graph) == LINEAR * 2
    assert len(model.graph.constants) == 1
    np.testing.assert_allclose(
        Session(model).run({"x": DATA})["y"], DATA @ square @ square, rtol=1e-4
    )


def test_an_embedding_used_as_head_is_shared(tmp_path: Path) -> None:
    nodes = [
        make("Transpose", ["w"], ["t"], perm=[1, 0]),
        make("MatMul", ["x", "t"], ["y"]),
        make("Gather", ["w", "ids"], ["z"]),
    ]
    table = RNG.standard_normal((9, 6)).astype(np.float32)
    stored = {"w": table, "ids": np.array([1, 2])}
    model = read(tmp_path, nodes, stored, outputs=("y", "z"))
    assert sorted(ops(model.graph)) == [".Gather", "halfbyte.Linear"]
    assert isinstance(model.weights["w"].parts["data"], FilePart)


def test_a_sum_that_others_read_keeps_its_add(tmp_path: Path) -> None:
    nodes = [make("MatMul", ["x", "w"], ["s"]), make("Add", ["s", "b"], ["y"])]
    model = read(tmp_path, nodes, {"w": WEIGHT, "b": BIAS}, outputs=("y", "s"))
    assert ops(model.graph) == ["halfbyte.Linear", ".Add"]


def test_weights_in_branches_are_turned_with_the_others(tmp_path: Path) -> None:
    square = RNG.standard_normal((6, 6)).astype(np.float32)
    out = helper.make_tensor_value_info("o", FLOAT, None)
    then = helper.make_graph([make("MatMul", ["x", "w"], ["o"])], "t", [], [out])
    other = helper.make_graph([make("Abs", ["x"], ["o"])], "e", [], [out])
    nodes = [
        make("MatMul", ["x", "w"], ["a"]),
        make("If", ["flag"], ["i"], then_branch=then, else_branch=other),
        make("Add", ["a", "i"], ["y"]),
    ]
    model = read(tmp_path, nodes, {"w": square, "flag": np.array(True)})
    branch = next(node for node in model.graph.nodes if node.op == "If").attributes["then_branch"]
    assert ops(branch) == LINEAR
    assert branch.constants["w"] is model.graph.constants["w"]
    found = Session(model).run({"x": DATA})["y"]
    np.testing.assert_allclose(found, 2 * DATA @ square, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (70, 300), (300, 70), (257, 513)], ids=str)
def test_transposed_rows(shape: tuple[int, int]) -> None:
    array = RNG.standard_normal(shape).astype(np.float32)
    part = TransposedPart(ArrayPart(array))
    rows = shape[1]
    assert part.shape == array.T.shape
    for start in {0, 1, rows // 2, NARROW - 1, NARROW, rows - 1}:
        for stop in (start, start + 1, start + 3, start + NARROW, start + NARROW + 1, rows, None):
            if start <= rows:
                np.testing.assert_array_equal(part.read(start, stop), array.T[start:stop])


def test_turning_twice_gives_the_stored_matrix(tmp_path: Path) -> None:
    model = read(tmp_path, [make("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT})
    back = transposed(model.weights["w"])
    assert isinstance(back.parts["data"], FilePart)
    np.testing.assert_array_equal(back.numpy(), WEIGHT)
