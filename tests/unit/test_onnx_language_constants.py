"""Values that follow from constants are taken for constants, within bounds."""

from __future__ import annotations

import numpy as np

from halfbyte.converters.onnx.contrib import constant_inputs
from halfbyte.converters.onnx.contrib.constant_inputs import make_constant
from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.tensor import tensor_from_array


def scaled(graph: Graph, factor: Value) -> Value:
    """Return a float16 constant in float32 times a factor, which a node reads."""
    half = graph.add_constant(tensor_from_array("d", np.asarray([[0.5, 2.0]], np.float16)))
    wide = graph.add(
        "Cast", [half], name="wide", dtype="float32", shape=(1, 2), since_version=13, to="float32"
    )
    product = graph.add(
        "Mul", [wide, factor], name="product", dtype="float32", shape=(1, 2), since_version=14
    )
    graph.outputs.append(graph.add("Relu", [product], dtype="float32", shape=(1, 2)))
    return product


def reader_input(graph: Graph) -> Value:
    return next(node for node in graph.nodes if node.op == "Relu").inputs[0]


def test_a_chain_of_constants_becomes_one():
    graph = Graph()
    sixteen = graph.add_constant(tensor_from_array("c", np.float32(16)))
    make_constant(graph, scaled(graph, sixteen))
    found = reader_input(graph)
    np.testing.assert_array_equal(found.constant.numpy(), [[8.0, 32.0]])
    assert [node.op for node in graph.nodes] == ["Relu"]


def test_a_value_that_depends_on_an_input_stays():
    graph = Graph()
    factor = graph.add_input("x", "float32", ())
    product = scaled(graph, factor)
    make_constant(graph, product)
    assert reader_input(graph) is product and len(graph.nodes) == 3


def test_results_beyond_the_bound_stay(monkeypatch):
    monkeypatch.setattr(constant_inputs, "MAX_ELEMENTS", 1)
    graph = Graph()
    sixteen = graph.add_constant(tensor_from_array("c", np.float32(16)))
    product = scaled(graph, sixteen)
    make_constant(graph, product)
    assert reader_input(graph) is product


def test_chains_beyond_the_bound_stay(monkeypatch):
    monkeypatch.setattr(constant_inputs, "MAX_CHAIN_NODES", 1)
    graph = Graph()
    sixteen = graph.add_constant(tensor_from_array("c", np.float32(16)))
    product = scaled(graph, sixteen)
    make_constant(graph, product)
    assert reader_input(graph) is product


def test_a_dimension_that_is_not_known_stays():
    graph = Graph()
    sixteen = graph.add_constant(tensor_from_array("c", np.float32(16)))
    product = scaled(graph, sixteen)
    product.shape = None
    make_constant(graph, product)
    assert reader_input(graph) is product
