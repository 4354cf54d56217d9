"""Any graph as an ONNX file: names, constants, subgraphs, types, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.checker
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

import halfbyte
from halfbyte.converters.onnx import writer
from halfbyte.converters.onnx.initializers import pack_elements
from halfbyte.converters.onnx.writer import write_graph
from halfbyte.errors import GraphError, HalfbyteError, UnsupportedError
from halfbyte.ir.dtypes import numpy_dtype
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.graph import Graph, Node, Origin, Value
from halfbyte.ir.part_views import ReshapedPart
from halfbyte.ir.tensor import ComputedPart, Tensor, tensor_from_array
from halfbyte.ir.transposed import TransposedPart

RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def constant(graph: Graph, name: str, array: np.ndarray) -> Value:
    return graph.add_constant(tensor_from_array(name, array), fixed=True)


def matmul_graph(weight: np.ndarray) -> Graph:
    graph = Graph("products")
    x = graph.add_input("x", "float32", ("batch", weight.shape[0]))
    y = graph.add("MatMul", [x, constant(graph, "w", weight)], name="y", since_version=13)
    y.dtype, y.shape = "float32", ("batch", weight.shape[1])
    graph.outputs = [y]
    return graph


def run(path: Path, **feeds: np.ndarray) -> list[np.ndarray]:
    return list(ReferenceEvaluator(str(path)).run(None, feeds))


@pytest.mark.parametrize("external", [False, True])
def test_constants_inside_and_beside_the_file(tmp_path: Path, external: bool) -> None:
    weight, path = normal(64, 48), tmp_path / "m.onnx"
    written = write_graph(
        matmul_graph(weight), path, external=external, metadata={"key": "text"}, doc="words"
    )
    assert [(w.name, w.nbytes) for w in written] == [("w", weight.nbytes)]
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    assert model.producer_name == "halfbyte" and model.producer_version == halfbyte.__version__
    assert {p.key: p.value for p in model.metadata_props} == {"key": "text"}
    assert model.doc_string == "words"
    assert [i.name for i in model.graph.input] == ["x"]
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), weight)
    names = ["m.onnx", "m.onnx.data"] if external else ["m.onnx"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    x = normal(3, 64)
    np.testing.assert_allclose(run(path, x=x)[0], x @ weight, rtol=1e-5, atol=1e-5)


def test_external_data_is_aligned_and_shared(tmp_path: Path) -> None:
    graph, path = Graph("tied"), tmp_path / "m.onnx"
    raw = RNG.integers(0, 256, (6, 512)).astype(np.uint8)
    part = ComputedPart(raw.dtype, raw.shape, lambda start, stop: raw[start:stop])
    tensors = [
        Tensor("flat", (6, 512), Dense("uint8"), {"data": part}),
        Tensor("other", (2000,), Dense("float32"), {"data": _row(normal(2000))}),
        Tensor("blocks", (6, 16, 32), Dense("uint8"), {"data": ReshapedPart(part, (96, 32))}),
    ]
    for tensor in tensors:
        value = graph.add_constant(tensor, fixed=True)
        graph.outputs.append(graph.add("Identity", [value], since_version=1))
    write_graph(graph, path, external=True)
    places = {}
    for entry in onnx.load(path, load_external_data=False).graph.initializer:
        places[entry.name] = {e.key: e.value for e in entry.external_data}
    assert places["flat"]["offset"] == places["blocks"]["offset"] == "0"
    assert places["other"]["offset"] == "4096"
    assert {p["location"] for p in places.values()} == {"m.onnx.data"}
    assert (tmp_path / "m.onnx.data").stat().st_size == 4096 + 8000
    model = onnx.load(path)
    held = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    assert np.array_equal(held["flat"], raw)
    assert np.array_equal(held["blocks"], raw.reshape(6, 16, 32))


def _row(values: np.ndarray) -> ComputedPart:
    row = values.reshape(1, -1)
    return ComputedPart(row.dtype, row.shape, lambda start, stop: row[start:stop])


DTYPES = (
    *("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int64", "bool"),
    *("uint4", "int4", "uint2", "int2", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "complex64"),
)


@pytest.mark.parametrize("columns", [7, 700])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_type(tmp_path: Path, dtype: str, columns: int) -> None:
    codes = RNG.integers(1 if "e8m0" in dtype else 0, 2, (5, columns))
    array = codes.astype(np.float32).astype(numpy_dtype(dtype))
    graph, path = Graph("types"), tmp_path / "m.onnx"
    graph.outputs = [constant(graph, "c", array)]
    write_graph(graph, path)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    back = numpy_helper.to_array(model.graph.initializer[0])
    assert back.shape == array.shape and back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


def test_strings(tmp_path: Path) -> None:
    words = np.array([["a", "grün"], ["", "\udcff"]], object)
    graph, path = Graph("words"), tmp_path / "m.onnx"
    y = graph.add("Identity", [constant(graph, "c", words)], name="y", dtype="string", shape=(2, 2))
    graph.outputs = [y]
    write_graph(graph, path)
    held = onnx.load(path).graph.initializer[0].string_data
    assert list(held) == [b"a", "grün".encode(), b"", b"\xff"]


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_packing_against_bits(bits: int) -> None:
    codes = RNG.integers(0, 1 << bits, 37).astype(np.uint8)
    stream = "".join(f"{code:0{bits}b}"[::-1] for code in codes)
    stream += "0" * (-len(stream) % 8)
    wanted = [int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)]
    assert pack_elements(codes, bits).tolist() == wanted


@pytest.mark.parametrize("dtype", ["float32", "int4", "uint8"])
@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (33, 50)])
def test_transposed_by_blocks(
    tmp_path: Path, dtype: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halfbyte.converters.onnx.initializers.BLOCK_BYTES", 2000)
    source = RNG.integers(0, 7, shape).astype(np.int8).astype(numpy_dtype(dtype))
    reads = []

    def read(start: int, stop: int) -> np.ndarray:
        reads.append((start, stop))
        return source[start:stop]

    part = TransposedPart(ComputedPart(source.dtype, source.shape, read))
    graph, path = Graph("turned"), tmp_path / "m.onnx"
    tensor = Tensor("c", shape[::-1], Dense(dtype), {"data": part})
    y = graph.add("Identity", [graph.add_constant(tensor, fixed=True)], name="y")
    y.dtype, y.shape = dtype, tensor.shape
    graph.outputs = [y]
    write_graph(graph, path, threads=2)
    back = numpy_helper.to_array(onnx.load(path).graph.initializer[0])
    assert np.array_equal(back.astype(np.int8), source.T.astype(np.int8))
    if shape[0] % 2 == 0:
        assert len(reads) > 1 and sum(stop - start for start, stop in reads) == shape[0]


def loop_graph() -> Graph:
    """Sum x three times inside a loop whose body captures x and reuses outer names."""
    body = Graph("body")
    for name, dtype in (("i", "int64"), ("go", "bool")):
        body.add_input(name, dtype, ())
    total = body.add_input("y", "float32", (4,))
    captured = body.add_input("x.inside", "float32", (4,))
    scale = constant(body, "w", np.float32([2, 2, 2, 2]))
    big = constant(body, "big", np.ones((400,), np.float32))
    part = body.add("Mul", [captured, scale], name="part", since_version=14)
    some = body.add("ReduceMean", [big], since_version=13, axes=[0], keepdims=1)
    part = body.add("Mul", [part, some], since_version=14)
    added = body.add("Add", [total, part], name="x", since_version=14)
    body.outputs = [body.inputs[1], added, captured]
    graph = Graph("loops")
    x = graph.add_input("x", "float32", (4,))
    start = constant(graph, "w", np.zeros(4, np.float32))
    count = constant(graph, "count", np.asarray(3))
    keep = constant(graph, "keep", np.asarray(True))
    outputs = [Value("y", "float32", (4,)), Value("seen", "float32", (3, 4))]
    inputs = [count, keep, start, x]
    node = Node("Loop", list(inputs), outputs, {"body": body, "captures": 1}, since_version=13)
    graph.insert(node)
    graph.outputs = [*outputs, outputs[0]]
    return graph


def test_subgraphs(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_graph(loop_graph(), path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    body = model.graph.node[0].attribute[0].g
    outer = {"x", "y", "seen", "w", "count", "keep", "big"}
    made = {name for node in body.node for name in node.output} | {i.name for i in body.input}
    assert not outer & made
    assert [i.name for i in body.initializer] == ["w.1"]
    assert "big" in {i.name for i in model.graph.initializer}
    assert [o.name for o in model.graph.output] == ["y", "seen", "y.output"]
    x = normal(4)
    total, seen, again = run(path, x=x)
    np.testing.assert_allclose(total, 6 * x, rtol=1e-6)
    np.testing.assert_array_equal(seen, np.stack([x] * 3))
    np.testing.assert_array_equal(again, total)


def test_names_attributes_and_omitted_inputs(tmp_path: Path) -> None:
    graph, path = Graph("clips"), tmp_path / "m.onnx"
    x = graph.add_input("x", "float32", ("?", "n"))
    high = constant(graph, "high", np.float32(1).reshape(()))
    origin = Origin("old.onnx", "/clip")
    y = graph.add("Clip", [x, None, high], name="y", since_version=13, origin=origin)
    y = graph.add("Clip", [y, high, None], name="y2", since_version=13)
    z = graph.add("Cast", [y], name="z", since_version=13, origin=origin, to="float16")
    graph.outputs = [z]
    write_graph(graph, path, opset=17)
    model = onnx.load(path)
    assert [list(n.input) for n in model.graph.node] == [["x", "", "high"], ["y", "high"], ["y2"]]
    assert [n.name for n in model.graph.node] == ["/clip", "y2", "/clip.1"]
    assert model.graph.node[2].attribute[0].i == onnx.TensorProto.FLOAT16
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert not dims[0].WhichOneof("value") and dims[1].dim_param == "n"
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


def test_foreign_operators_are_written_as_they_are(tmp_path: Path) -> None:
    graph, path = Graph("foreign"), tmp_path / "m.onnx"
    x = graph.add_input("x", "float32", ("b", 32))
    codes = constant(graph, "codes", np.zeros((8, 1, 16), np.uint8))
    scales = constant(graph, "scales", np.ones((8, 1), np.float32))
    y = graph.add(
        "MatMulNBits", [x, codes, scales], name="y", dtype="float32", shape=("b", 8),
        domain="com.microsoft", K=32, N=8, bits=4, block_size=32, ratio=0.5, label="a", list=[1, 2],
    )  # fmt: skip
    graph.outputs = [y]
    write_graph(graph, path)
    model = onnx.load(path)
    assert {o.domain: o.version for o in model.opset_import} == {"": 11, "com.microsoft": 1}
    node = model.graph.node[0]
    assert node.domain == "com.microsoft"
    held = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert held == {
        **{"K": 32, "N": 8, "bits": 4, "block_size": 32},
        **{"ratio": 0.5, "label": b"a", "list": [1, 2]},
    }


def test_sequences_and_optionals(tmp_path: Path) -> None:
    graph, path = Graph("lists"), tmp_path / "m.onnx"
    x = graph.add_input("x", "float32", ("n",))
    held = graph.add("SequenceConstruct", [x, x], name="s", dtype="sequence.float32")
    maybe = graph.add("Optional", [held], name="o", dtype="optional.sequence.float32")
    for value, version in ((held, 11), (maybe, 15)):
        assert value.producer is not None
        value.producer.since_version = version
    graph.outputs = [held, maybe]
    write_graph(graph, path)
    model = onnx.load(path)
    kinds = [o.type.WhichOneof("value") for o in model.graph.output]
    assert kinds == ["sequence_type", "optional_type"]
    assert (model.opset_import[0].version, model.ir_version) == (15, 8)


def test_companions_and_progress(tmp_path: Path) -> None:
    path, steps = tmp_path / "m.onnx", []
    write_graph(
        matmul_graph(normal(256, 256)), path, external=True,
        companions={"config.json": b"{}"}, progress=steps.append,
    )  # fmt: skip
    assert (tmp_path / "config.json").read_bytes() == b"{}"
    assert sum(steps) == 256 * 256 * 4


@pytest.mark.parametrize("external", [False, True])
def test_an_error_leaves_nothing_behind(tmp_path: Path, external: bool) -> None:
    def broken(start: int, stop: int) -> np.ndarray:
        raise GraphError("w", "cannot be read")

    graph = matmul_graph(normal(64, 48))
    part = ComputedPart(np.dtype(np.float32), (64, 48), broken)
    graph.set_constant("w", Tensor("w", (64, 48), Dense("float32"), {"data": part}))
    old = tmp_path / "m.onnx"
    old.write_bytes(b"old")
    with pytest.raises(HalfbyteError, match="cannot be read"):
        write_graph(graph, old, external=external, companions={"a.json": b"{}"})
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert old.read_bytes() == b"old"


def test_too_much_for_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PROTOBUF_BYTES", 1000)
    with pytest.raises(UnsupportedError, match="2 GiB"):
        write_graph(matmul_graph(normal(64, 48)), tmp_path / "m.onnx", external=False)
    monkeypatch.setattr(writer, "INLINE_BYTES", 1000)
    write_graph(matmul_graph(normal(64, 48)), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").is_file()


def test_the_checker_has_the_last_word(tmp_path: Path) -> None:
    graph = matmul_graph(normal(8, 4))
    graph.outputs[0].producer.op = "Mutmal"  # type: ignore[union-attr]
    with pytest.raises(HalfbyteError, match="Mutmal"):
        write_graph(graph, tmp_path / "m.onnx")
    graph = Graph("mixed")
    x = graph.add_input("x", "float32", (2,))
    y = graph.add("NoSuch", [x], name="y", dtype="float32", shape=(2,), domain="com.microsoft")
    graph.outputs = [graph.add("Relu", [y], name="z", since_version=14)]
    graph.nodes.reverse()
    with pytest.raises(GraphError, match=r"refused by onnx\.checker"):
        write_graph(graph, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_our_own_operators_have_no_place(tmp_path: Path) -> None:
    graph = Graph("ours")
    x = graph.add_input("x", "float32", ("n", 4))
    weight = constant(graph, "w", normal(3, 4))
    graph.outputs = [graph.add("Linear", [x, weight], name="y", domain="halfbyte")]
    with pytest.raises(UnsupportedError, match=r"halfbyte\.Linear"):
        write_graph(graph, tmp_path / "m.onnx")


def test_bfloat16_keeps_its_bytes(tmp_path: Path) -> None:
    array, path = normal(40, 30).astype(ml_dtypes.bfloat16), tmp_path / "m.onnx"
    graph = Graph("short")
    graph.outputs = [graph.add("Identity", [constant(graph, "c", array)], name="y")]
    graph.outputs[0].dtype = "bfloat16"
    write_graph(graph, path)
    assert onnx.load(path).graph.initializer[0].raw_data == array.tobytes()


def test_a_constant_gets_another_name_only_if_it_is_free() -> None:
    graph = matmul_graph(normal(4, 4))
    graph.rename_constant("w", "weight")
    assert list(graph.constants) == ["weight"]
    with pytest.raises(ValueError, match="'y' is taken"):
        graph.rename_constant("weight", "y")
