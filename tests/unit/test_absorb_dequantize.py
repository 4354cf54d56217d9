"""DequantizeLinear of stored codes as an Affine weight: same values, bit for bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.legality import check
from halfbyte.ir.ops.quantization import evaluate_dequantize
from halfbyte.ir.ops.spec import Context
from halfbyte.ir.passes.absorb_dequantize import apply
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.runtime.session import Session

Array = np.ndarray
OUT, IN = 24, 40
TYPES = {
    "int8": np.int8,
    "uint8": np.uint8,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "int2": ml_dtypes.int2,
    "uint2": ml_dtypes.uint2,
}


def codes(name: str, *shape: int, seed: int = 1) -> Array:
    bits = int(name.partition("int")[2])
    low = 0 if name.startswith("u") else -(1 << (bits - 1))
    found = np.random.default_rng(seed).integers(low, low + (1 << bits), shape)
    return found.astype(np.int16).astype(TYPES[name])


def scales(*shape: int, dtype: Any = np.float32) -> Array:
    return (np.random.default_rng(2).random(shape) * 0.1 + 0.01).astype(dtype)


def dequantized(graph: Graph, data: Array, scale: Array, zero: Array | None, **held: Any) -> Value:
    values = [
        graph.add_constant(tensor_from_array(name, array), fixed=True)
        for name, array in (("w", data), ("s", scale), ("z", zero))
        if array is not None
    ]
    dtype = {2: "float16", 4: "float32"}[scale.dtype.itemsize]
    return graph.add(
        "DequantizeLinear",
        values,
        name="dq",
        dtype=dtype,
        shape=data.shape,
        since_version=25,
        **held,
    )


def truth(data: Array, scale: Array, zero: Array | None, **held: Any) -> Array:
    defaults = {"axis": 1, "block_size": 0, "output_dtype": 0}
    return evaluate_dequantize([data, scale, zero], defaults | held, Context())[0]


def product(turned: bool, dtype: str = "float32") -> tuple[Graph, Value]:
    graph = Graph()
    return graph, graph.add_input("x", dtype, ("batch", IN))


def finish(graph: Graph, op: str, inputs: list[Value | None], **held: Any) -> None:
    version = 1 if held.get("domain") else 13
    out = graph.add(op, inputs, name="y", since_version=version, **held)
    graph.outputs = [out]


def weight_of(graph: Graph) -> Any:
    assert apply(graph)
    check(graph)
    assert [node.op for node in graph.nodes] == ["Linear"]
    assert list(graph.constants) == ["w"] or list(graph.constants) == ["w.1"]
    weight = graph.nodes[0].inputs[1]
    assert weight is not None and weight.constant is not None
    assert isinstance(weight.constant.encoding, Affine)
    return weight.constant


FORMS = ["tensor", "axis", "blocks", "short_block"]


def stored(name: str, form: str, zeros: bool, turned: bool) -> tuple[Array, Array, Any, Any]:
    shape = (IN, OUT) if turned else (OUT, IN)
    into = 0 if turned else 1
    block = {"blocks": 8, "short_block": 16}.get(form, 0)
    counts = (-(-IN // block), OUT) if block else ()
    size: tuple[int, ...] = counts if turned else counts[::-1]
    held: dict[str, Any] = {"axis": into, "block_size": block} if block else {}
    if form == "axis":
        size, held = (OUT,), {"axis": 1 - into}
    return codes(name, *shape), scales(*size), codes(name, *size, seed=3) if zeros else None, held


@pytest.mark.parametrize("name", list(TYPES))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_values_are_the_same(name: str, form: str, zeros: bool, turned: bool) -> None:
    data, scale, zero, held = stored(name, form, zeros, turned)
    graph, x = product(turned)
    weight = dequantized(graph, data, scale, zero, **held)
    if turned:
        finish(graph, "MatMul", [x, weight])
    else:
        finish(graph, "Gemm", [x, weight], transB=1)
    found = weight_of(graph)
    expected = truth(data, scale, zero, **held)
    expected = expected.T if turned else expected
    assert np.array_equal(found.numpy(), expected)
    assert np.array_equal(found.decode(5, 9), expected[5:9])
    unpacked = found.encoding.unpack(found.read(), IN)
    lift = 0 if name.startswith("u") else 1 << (found.encoding.bits - 1)
    plain = data.T if turned else data
    assert np.array_equal(unpacked.codes - lift, plain.astype(np.int32))


def test_half_scales_behind_a_cast_stay_half() -> None:
    data, scale = codes("int4", OUT, IN), scales(OUT, IN // 8, dtype=np.float16)
    graph, x = product(False)
    narrow = graph.add_constant(tensor_from_array("s", scale), fixed=True)
    wide = graph.add("Cast", [narrow], name="c", dtype="float32", since_version=13, to="float32")
    stored_codes = graph.add_constant(tensor_from_array("w", data), fixed=True)
    held = {"axis": 1, "block_size": 8}
    weight = graph.add(
        "DequantizeLinear", [stored_codes, wide], dtype="float32", since_version=25, **held
    )
    turned = graph.add("Transpose", [weight], dtype="float32", since_version=13, perm=[1, 0])
    finish(graph, "MatMul", [x, turned])
    found = weight_of(graph)
    assert found.encoding.name == "int4-g8"
    assert np.array_equal(found.numpy(), truth(data, scale.astype(np.float32), None, **held))


def test_half_precision_rounds_to_the_same_values() -> None:
    data, scale = codes("int4", OUT, IN), scales(OUT, IN // 8, dtype=np.float16)
    held = {"axis": 1, "block_size": 8}
    graph, x = product(False, "float16")
    finish(graph, "Gemm", [x, dequantized(graph, data, scale, None, **held)], transB=1)
    found = weight_of(graph)
    assert np.array_equal(found.numpy().astype(np.float16), truth(data, scale, None, **held))


def test_a_table_is_looked_up() -> None:
    for dtype in (np.float32, np.float16):
        data, scale = codes("uint4", OUT, IN), scales(OUT, dtype=dtype)
        graph = Graph()
        ids = graph.add_input("ids", "int64", ("batch",))
        table = dequantized(graph, data, scale, None, axis=0)
        finish(graph, "Gather", [table, ids], axis=0)
        assert apply(graph)
        check(graph)
        wanted = np.asarray([3, 0, 23])
        found = Session(graph).run({"ids": wanted})["y"]
        assert found.dtype == dtype
        assert np.array_equal(found, truth(data, scale, None, axis=0)[wanted])


@pytest.mark.parametrize("name", ["int8", "uint8", "uint4"])
@pytest.mark.parametrize("zeros", [False, True])
def test_codes_that_are_looked_up_become_values_that_are(name: str, zeros: bool) -> None:
    data, step = codes(name, OUT, IN), np.asarray(0.03, np.float32)
    point = codes(name, 1, seed=4).reshape(()) if zeros else None
    graph = Graph()
    ids = graph.add_input("ids", "int64", ("batch", "length"))
    table = graph.add_constant(tensor_from_array("w", data), fixed=True)
    rows = graph.add("Gather", [table, ids], dtype=name, shape=("batch", "length", IN), axis=0)
    rest = [("s", step), *([("z", point)] if point is not None else [])]
    values = [graph.add_constant(tensor_from_array(n, a), fixed=True) for n, a in rest]
    out = graph.add("DequantizeLinear", [rows, *values], dtype="float32", since_version=25)
    graph.outputs = [out]
    for node in graph.nodes:
        node.since_version = 13 if node.op == "Gather" else 25
    assert apply(graph)
    check(graph)
    assert [node.op for node in graph.nodes] == ["Gather"]
    wanted = np.asarray([[3, 0, -1], [1, 1, 2]])
    found = Session(graph).run({"ids": wanted})[out.name]
    assert np.array_equal(found, truth(data, step, point)[wanted])


def test_a_tied_weight_stays_one() -> None:
    data, scale = codes("int8", OUT, IN), scales(OUT)
    graph = Graph()
    ids = graph.add_input("ids", "int64", ("batch",))
    weight = dequantized(graph, data, scale, None, axis=0)
    rows = graph.add("Gather", [weight, ids], name="rows", since_version=13, axis=0)
    turned = graph.add("Transpose", [weight], since_version=13, perm=[1, 0])
    finish(graph, "MatMul", [rows, turned])
    expected = Session(graph.copy(), "reference", fuse=False).run({"ids": np.asarray([1, 2])})["y"]
    assert apply(graph)
    check(graph)
    assert len(graph.constants) == 1
    found = Session(graph).run({"ids": np.asarray([1, 2])})["y"]
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_bias_that_is_computed_is_added_behind() -> None:
    data, scale = codes("int8", OUT, IN), scales(OUT)
    graph, x = product(False)
    weight = dequantized(graph, data, scale, None, axis=0)
    bias = graph.add_input("b", "float32", (OUT,))
    finish(graph, "Gemm", [x, weight, bias], transB=1)
    assert apply(graph)
    check(graph)
    assert [node.op for node in graph.nodes] == ["Linear", "Add"]
    given = {"x": np.ones((2, IN), np.float32), "b": np.arange(OUT, dtype=np.float32)}
    expected = given["x"] @ truth(data, scale, None, axis=0).T + given["b"]
    assert np.allclose(Session(graph).run(given)["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["rows", "across", "sixteen", "activation", "output", "computed"])
def test_other_forms_are_left_alone(case: str) -> None:
    graph, x = product(False)
    data, scale, held = codes("int8", IN, OUT), scales(OUT), {"axis": 1}
    if case == "rows":
        scale, held = scales(IN), {"axis": 0}
    if case == "across":
        scale, held = scales(IN, OUT // 8), {"axis": 1, "block_size": 8}
    if case == "sixteen":
        data = data.astype(np.int16)
    weight = dequantized(graph, data, scale, None, **held)
    if case == "activation":
        step = graph.add_constant(tensor_from_array("step", np.float32(0.1)), fixed=True)
        zero = graph.add_constant(tensor_from_array("zero", np.uint8(3)), fixed=True)
        coded = graph.add("QuantizeLinear", [x, step, zero], since_version=25)
        x = graph.add("DequantizeLinear", [coded, step, zero], since_version=25)
    if case == "computed":
        node = weight.producer
        assert isinstance(node, Node)
        graph.set_input(node, 1, graph.add_input("scale", "float32", (OUT,)))
    finish(graph, "MatMul", [x, weight])
    if case == "output":
        graph.outputs.append(weight)
    assert not apply(graph)
