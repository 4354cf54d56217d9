"""Encoded weights in ONNX graphs: a graph computes with the values that `decode` gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from halfbyte.converters.format import WriteOptions
from halfbyte.converters.onnx.lowering.dequantized import can_dequantize
from halfbyte.converters.onnx.output import lowered_graph, write_model
from halfbyte.converters.onnx.profile import profile, with_kinds
from halfbyte.converters.onnx.writer import write_graph
from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.encodings import encoding_from_name, list_encodings
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.graph import Graph
from halfbyte.ir.model import Model
from halfbyte.ir.profile import CONSTANT, MATRIX, stays_float
from halfbyte.ir.tensor import ArrayPart, Tensor, tensor_from_array
from halfbyte.quant.algorithms.rtn import requantize
from halfbyte.quant.plan import make_plan
from support.encoded import held

COLUMNS = 256
GRIDS = [e for e in list_encodings() if e.span is not None and can_dequantize(e, COLUMNS)]


def weight(encoding: Encoding, rows: int = 8, name: str = "w") -> Tensor:
    values = np.random.default_rng(7).standard_normal((rows, COLUMNS)).astype(np.float32)
    return held(requantize(tensor_from_array(name, values), encoding))


def linear_graph(tensor: Tensor, table: Tensor | None = None) -> Graph:
    """Return a lookup in `table`, if any, and a linear layer over its rows or over an input."""
    graph = Graph("linear")
    value = graph.add_constant(tensor, tensor.name)
    if table is None:
        x = graph.add_input("x", "float32", ("batch", 3, COLUMNS))
    else:
        ids = graph.add_input("ids", "int64", ("batch",))
        rows = value if table is tensor else graph.add_constant(table, table.name)
        x = graph.add("Gather", [rows, ids], name="rows", since_version=13)
        x.dtype = "float32"
    y = graph.add("Linear", [x, value], name="y", domain="halfbyte")
    graph.outputs = [y, x] if table is not None else [y]
    return graph


def run(graph: Graph, path: Path, flavour: str = "", **feeds: np.ndarray) -> list[np.ndarray]:
    # The reference implementation has no DequantizeLinear before 19.
    lowered, _ = lowered_graph(graph, flavour, opset=25)
    write_graph(lowered, path, opset=25)
    return list(ReferenceEvaluator(str(path)).run(None, feeds))


@pytest.mark.parametrize("encoding", GRIDS, ids=str)
@pytest.mark.parametrize("rows", [8, 7])
def test_a_linear_layer_reads_the_decoded_values(
    encoding: Encoding, rows: int, tmp_path: Path
) -> None:
    tensor = weight(encoding, rows)
    x = np.eye(COLUMNS, dtype=np.float32)[:9].reshape(3, 3, COLUMNS)
    (found,) = run(linear_graph(tensor), tmp_path / "m.onnx", x=x)
    wanted = tensor.float32()[:, :9].T.reshape(3, 3, rows)
    largest = np.abs(tensor.float32()).max()
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6 * largest)


@pytest.mark.parametrize("name", ["int8", "int4-g32", "int4-g32-asym", "int5-g32", "Q4_1", "Q6_K"])
def test_a_tied_table_is_stored_once(name: str, tmp_path: Path) -> None:
    tensor, path = weight(encoding_from_name(name)), tmp_path / "m.onnx"
    product, rows = run(linear_graph(tensor, tensor), path, ids=np.asarray([3, 1]))
    values = tensor.float32()
    np.testing.assert_allclose(rows, values[[3, 1]], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(product, values[[3, 1]] @ values.T, rtol=1e-4, atol=1e-4)
    model = onnx.load(path)
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph.node) == 1
    assert [i.name for i in model.graph.initializer][:2] == ["w.codes", "w.scales"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dense_weights_keep_their_bytes(dtype: str, tmp_path: Path) -> None:
    values = np.random.default_rng(8).standard_normal((8, COLUMNS)).astype(Dense(dtype).dtype)
    tensor, path = tensor_from_array("w", values), tmp_path / "m.onnx"
    product, rows = run(linear_graph(tensor, tensor), path, ids=np.asarray([0, 5]))
    wide = values.astype(np.float32)
    assert rows.dtype == np.float32 and np.array_equal(rows, wide[[0, 5]])
    np.testing.assert_allclose(product, wide[[0, 5]] @ wide.T, rtol=1e-4, atol=1e-4)
    (stored,) = [i for i in onnx.load(path).graph.initializer if i.name == "w"]
    assert stored.raw_data == values.tobytes()


def test_a_weight_is_stored_transposed_under_its_name(tmp_path: Path) -> None:
    tensor, path = tensor_from_array("w", np.arange(24, dtype=np.float32).reshape(4, 6)), tmp_path
    for shape, op in (((2, 3, 6), "MatMul"), ((2, 6), "Gemm")):
        graph = Graph("plain")
        x = graph.add_input("x", "float32", shape)
        bias = graph.add_constant(tensor_from_array("b", np.ones(4, np.float32)))
        inputs = [x, graph.add_constant(tensor, "w"), bias]
        graph.outputs = [graph.add("Linear", inputs, name="y", domain="halfbyte")]
        data = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        (found,) = run(graph, path / "m.onnx", x=data)
        np.testing.assert_allclose(found, data @ tensor.numpy().T + 1, rtol=1e-5)
        model = onnx.load(path / "m.onnx")
        assert model.graph.node[0].op_type == op
        (stored,) = [i for i in model.graph.initializer if i.name == "w"]
        assert list(stored.dims) == ([6, 4] if op == "MatMul" else [4, 6])


def test_nibbles_for_onnxruntime(tmp_path: Path) -> None:
    for name, count in (("int4-g32", 3), ("int4-g64-asym", 4), ("int3-g128", 3), ("int8-g32", 0)):
        lowered, _ = lowered_graph(linear_graph(weight(encoding_from_name(name))), "ort")
        path = tmp_path / f"{name}.onnx"
        write_graph(lowered, path)
        nodes = [n for n in onnx.load(path).graph.node if n.op_type == "MatMulNBits"]
        assert [len(node.input) for node in nodes] == [count] * (count > 0)
    stored = {i.name: i for i in onnx.load(tmp_path / "int4-g32.onnx").graph.initializer}
    codes = numpy_helper.to_array(stored["w.codes"])
    assert codes.shape == (8, 8, 16)
    parts = weight(encoding_from_name("int4-g32")).read()
    assert codes.tobytes() == parts["codes"].tobytes()
    assert numpy_helper.to_array(stored["w.scales"]).dtype == np.float32


def test_large_zero_points_take_a_wider_type(tmp_path: Path) -> None:
    tensor = weight(encoding_from_name("int4-g32-asym"))
    zeros = np.full(tensor.parts["zero_points"].shape, 16, np.uint8)
    tensor = replace(tensor, parts={**tensor.parts, "zero_points": ArrayPart(zeros)})
    run(linear_graph(tensor), tmp_path / "m.onnx", x=np.ones((1, 3, COLUMNS), np.float32))
    stored = {i.name: i.data_type for i in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert stored["w.codes"] == onnx.TensorProto.UINT8
    lowered, _ = lowered_graph(linear_graph(tensor), "ort")
    with pytest.raises(QuantizationError, match="zero points above 15"):
        write_graph(lowered, tmp_path / "n.onnx")


def test_codes_need_an_opset(tmp_path: Path) -> None:
    graph = linear_graph(weight(encoding_from_name("int4-g32")))
    with pytest.raises(UnsupportedError, match="int4-g32 at opset 13"):
        lowered_graph(graph, opset=13)
    lowered, _ = lowered_graph(linear_graph(weight(encoding_from_name("int4"))), opset=13)
    write_graph(lowered, tmp_path / "m.onnx", opset=13)
    types = {i.name: i.data_type for i in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert types["w.codes"] == onnx.TensorProto.INT8


def test_what_the_profile_holds() -> None:
    held_here = profile()
    matrix = replace(tensor_from_array("w", np.zeros((8, 64), np.float32)), kind=MATRIX)
    other = replace(matrix, kind=CONSTANT)
    for name in ("int4-g32", "Q4_0", "Q4_1", "float16", "i8"):
        assert held_here.accepts(matrix, encoding_from_name(name))
    assert not held_here.accepts(matrix, Affine(4, 32, act_order=True))
    assert not held_here.accepts(other, encoding_from_name("int8"))
    assert held_here.accepts(other, encoding_from_name("float32"))
    assert held_here.required(matrix) is None
    assert "int8" in {e.name for e in held_here.alternatives(matrix)}
    assert (profile().name, profile("ort").name) == ("onnx", "onnx:ort")
    with pytest.raises(UnsupportedError, match="flavour 'fast'"):
        profile("fast")


def test_kinds_follow_from_the_use() -> None:
    graph = linear_graph(tensor_from_array("w", np.zeros((8, COLUMNS), np.float32)))
    y = graph.outputs[0]
    scale = graph.add_constant(tensor_from_array("scale.weight", np.ones((3, 8), np.float32)))
    graph.outputs = [graph.add("Mul", [y, scale], since_version=14)]
    kinds = {n: t.kind for n, t in with_kinds(graph.constants, [graph]).items()}
    assert kinds == {"w": MATRIX, "scale.weight": CONSTANT}
    marked = with_kinds(graph.constants, [graph])
    assert not stays_float(marked["w"])
    assert stays_float(marked["scale.weight"]) == "no linear layer or lookup reads it"
    plan = make_plan(Model(marked), profile(), "float16")
    assert [str(d.target) for d in plan.decisions] == ["float16", "float32"]


def test_a_model_says_which_weight_is_where(tmp_path: Path) -> None:
    tensor, path = weight(encoding_from_name("int4-g32-asym")), tmp_path / "m.onnx"
    model = Model({"w": tensor}, build=lambda held: linear_graph(held.weights["w"]))
    (entry,) = write_model(model, path, WriteOptions())
    assert (entry.source_name, entry.encoding) == ("w", "int4-g32-asym")
    assert entry.nbytes == 8 * COLUMNS // 2 + 8 * 8 * 2 + 8 * 8 // 2
