"""What each pass does, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.legality import check
from halfbyte.ir.passes import RUNTIME, get_pass, run_passes
from halfbyte.ir.passes import constant_folding as folding
from halfbyte.ir.tensor import tensor_from_array
from support.tiny_graphs import linear, tiny_decoder, weight


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def applied(name: str, graph: Graph) -> bool:
    changed = get_pass(name)(graph)
    check(graph)
    return changed


def rows(graph: Graph, name: str, width: int = 4) -> Value:
    return graph.add_input(name, "float32", ("n", width))


def node(graph: Graph, op: str, *inputs: Value | None, version: int = 14, **attributes) -> Value:
    shape = attributes.pop("shape", inputs[0].shape if inputs and inputs[0] else None)
    return graph.add(
        op, list(inputs), dtype="float32", shape=shape, since_version=version, **attributes
    )


def vector(graph: Graph, name: str, width: int = 4) -> Value:
    return graph.add_constant(tensor_from_array(name, np.ones(width, np.float32)))


def test_decoder_is_fused() -> None:
    graph = tiny_decoder(layers=1)
    names = [value.name for value in graph.outputs]
    changed = run_passes(graph)
    check(graph)
    assert changed == ["fuse_swiglu", "fuse_linear_swiglu", "fuse_add_norm", "fuse_linears"]
    assert [value.name for value in graph.outputs] == names
    assert ops(graph) == [
        *("Gather", "RMSNormalization", "LinearGroup", "CachedAttention", "Linear"),
        *("AddRMSNormalization", "LinearSwiGLU", "Linear", "Add", "Gather", "Linear"),
    ]
    assert run_passes(graph) == []


def test_dead_nodes_and_constants_go_but_state_writers_stay() -> None:
    graph = tiny_decoder(layers=1)
    attention = next(n for n in graph.nodes if n.op == "CachedAttention")
    graph.outputs = [graph.nodes[1].outputs[0]]
    assert applied("dead_code", graph)
    assert attention in graph.nodes
    assert "Swish" not in ops(graph)
    assert len(graph.constants) == 5
    assert not applied("dead_code", graph)


def test_constants_fold() -> None:
    graph = Graph()
    x, c = rows(graph, "x"), vector(graph, "c")
    half = graph.add_constant(tensor_from_array("h", np.full(4, 0.5, np.float16)))
    total = graph.add("Add", [c, half], name="total", since_version=14)
    twice = graph.add("Mul", [total, total], name="twice", since_version=14)
    graph.outputs.append(node(graph, "Add", x, twice))
    assert applied("constant_folding", graph)
    assert ops(graph) == ["Add"]
    folded = graph.nodes[0].inputs[1]
    assert folded.constant.numpy().tolist() == [2.25] * 4
    assert not applied("constant_folding", graph)


def test_folding_leaves_outputs_encoded_weights_and_large_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = Graph()
    c, w = vector(graph, "c"), graph.add_constant(weight(1, 4, 32, "Q4_0"))
    x = graph.add_constant(tensor_from_array("x", np.ones((2, 32), np.float32)))
    graph.outputs.append(node(graph, "Neg", c, version=13))
    product = graph.add("Linear", [x, w], domain="halfbyte")
    large = node(graph, "Neg", c, version=13)
    graph.outputs += [
        node(graph, "Neg", product, version=13, shape=(2, 4)),
        node(graph, "Abs", large, version=13),
    ]
    monkeypatch.setattr(folding, "MAX_RESULT_BYTES", 8)
    assert not applied("constant_folding", graph)
    monkeypatch.setattr(folding, "MAX_RESULT_BYTES", 16)
    monkeypatch.setattr(folding, "MAX_NODES", 0)
    assert not applied("constant_folding", graph)
    monkeypatch.setattr(folding, "MAX_NODES", 1)
    assert applied("constant_folding", graph)
    assert ops(graph) == ["Neg", "Linear", "Neg", "Abs"]


def test_folding_needs_known_sizes() -> None:
    graph = Graph()
    limit = graph.add_input("limit", "int64", ())
    zero, one = (
        graph.add_constant(tensor_from_array(f"c{i}", np.asarray(i, np.int64))) for i in (0, 1)
    )
    graph.outputs.append(graph.add("Range", [zero, limit, one], since_version=11))
    assert not applied("constant_folding", graph)


def test_common_subexpressions_share_a_node() -> None:
    graph = Graph()
    x, c = rows(graph, "x"), vector(graph, "c")
    first, second = node(graph, "Add", x, c), node(graph, "Add", x, c)
    other = node(graph, "Add", c, x, shape=x.shape)
    left = node(graph, "Softmax", first, version=13, axis=-1)
    right = node(graph, "Softmax", second, version=13, axis=-1)
    different = node(graph, "Softmax", second, version=13, axis=0)
    total = node(graph, "Add", left, right)
    graph.outputs.append(node(graph, "Add", node(graph, "Add", total, different), other))
    assert applied("common_subexpressions", graph)
    assert ops(graph).count("Softmax") == 2
    assert len(graph.nodes) == 7
    assert not applied("common_subexpressions", graph)


def test_common_subexpressions_keep_outputs_and_states() -> None:
    graph = Graph()
    x = rows(graph, "x")
    graph.outputs += [node(graph, "Neg", x, version=13), node(graph, "Neg", x, version=13)]
    assert not applied("common_subexpressions", graph)
    decoder = tiny_decoder(layers=1)
    before = ops(decoder).count("CachedAttention")
    applied("common_subexpressions", decoder)
    assert ops(decoder).count("CachedAttention") == before


def test_array_attributes_are_compared_by_value() -> None:
    graph = Graph()
    for _ in range(2):
        graph.add("Constant", [], since_version=24, value=np.ones(2, np.float32))
    graph.add("Constant", [], since_version=24, value_floats=[1.0, 1.0])
    a, b, c = (n.outputs[0] for n in list(graph.nodes))
    total = graph.add("Add", [a, b], since_version=14)
    graph.outputs.append(graph.add("Add", [total, c], since_version=14))
    assert applied("common_subexpressions", graph)
    assert ops(graph) == ["Constant", "Constant", "Add", "Add"]


@pytest.mark.parametrize("swapped", [False, True])
def test_swiglu_either_way_round(swapped: bool) -> None:
    graph = Graph()
    gate, up = rows(graph, "gate"), rows(graph, "up")
    opened = node(graph, "Swish", gate, version=24)
    graph.outputs.append(node(graph, "Mul", *((up, opened) if swapped else (opened, up))))
    assert applied("fuse_swiglu", graph)
    assert ops(graph) == ["SwiGLU"]
    assert graph.nodes[0].inputs == [gate, up]


def test_swiglu_needs_alpha_one_a_sole_reader_and_one_shape() -> None:
    graph = Graph()
    gate, up, row = rows(graph, "gate"), rows(graph, "up"), vector(graph, "row")
    shared = node(graph, "Swish", gate, version=24)
    graph.outputs += [
        node(graph, "Mul", node(graph, "Swish", gate, version=24, alpha=1.7), up),
        node(graph, "Mul", node(graph, "Swish", gate, version=24), row),
        node(graph, "Mul", shared, up),
        shared,
    ]
    assert not applied("fuse_swiglu", graph)


def two_linears(first: str, second: str, biased: bool = False) -> Graph:
    """Return swish(a) * b over Linear nodes that read inputs `first` and `second`."""
    graph = Graph()
    inputs = {name: rows(graph, name, 32) for name in sorted({first, second})}
    gate = linear(graph, inputs[first], weight(1, 8, 32), "gate")
    up = linear(graph, inputs[second], weight(2, 8, 32), "up")
    if biased:
        for n in graph.nodes:
            n.inputs.append(None)
            graph.set_input(n, 2, vector(graph, f"bias.{n.outputs[0].name}", 8))
    graph.outputs.append(graph.add("SwiGLU", [gate, up], name="y", domain="halfbyte"))
    return graph


@pytest.mark.parametrize("biased", [False, True])
def test_gated_linears_fuse(biased: bool) -> None:
    graph = two_linears("x", "x", biased)
    assert applied("fuse_linear_swiglu", graph)
    assert ops(graph) == ["LinearSwiGLU"]
    assert len(graph.nodes[0].inputs) == (5 if biased else 3)
    assert [v.name for v in graph.outputs] == ["y"]


def test_gated_linears_of_two_inputs_or_with_other_readers_stay() -> None:
    assert not applied("fuse_linear_swiglu", two_linears("x", "z"))
    graph = two_linears("x", "x")
    graph.outputs.append(graph.nodes[0].outputs[0])
    assert not applied("fuse_linear_swiglu", graph)
    graph = two_linears("x", "x")
    graph.set_constant("w2", weight(2, 8, 32))
    node_ = graph.nodes[1]
    node_.inputs.append(None)
    graph.set_input(node_, 2, vector(graph, "bias", 8))
    assert not applied("fuse_linear_swiglu", graph)


@pytest.mark.parametrize("norm", ["RMSNormalization", "LayerNormalization"])
def test_add_and_norm_fuse_and_the_sum_stays_readable(norm: str) -> None:
    graph = Graph()
    a, b = rows(graph, "a"), rows(graph, "b")
    total = node(graph, "Add", a, b)
    version = 23 if norm == "RMSNormalization" else 17
    normal = node(graph, norm, total, vector(graph, "scale"), version=version, epsilon=1e-6)
    graph.outputs.append(node(graph, "Add", total, normal))
    assert applied("fuse_add_norm", graph)
    assert ops(graph) == [f"Add{norm}", "Add"]
    fused = graph.nodes[0]
    assert fused.attributes == {"epsilon": 1e-6}
    assert [v.name for v in fused.outputs] == [normal.name, total.name]


def test_add_and_norm_stay_apart_where_shapes_differ_or_scales_are_computed() -> None:
    graph = Graph()
    a, b, row = rows(graph, "a"), rows(graph, "b"), vector(graph, "row")
    scale = node(graph, "Neg", row, version=13)
    graph.outputs += [
        node(graph, "RMSNormalization", node(graph, "Add", a, row), row, version=23),
        node(graph, "RMSNormalization", node(graph, "Add", a, b), scale, version=23),
        node(graph, "Neg", node(graph, "Add", b, a), version=13),
    ]
    assert not applied("fuse_add_norm", graph)


def test_linears_group_by_layer_and_bias() -> None:
    graph = Graph()
    x = rows(graph, "x", 32)
    for index, layer in enumerate((0, 0, 1, 0)):
        graph.outputs.append(linear(graph, x, weight(index, 8, 32), f"y{index}", layer))
    last = graph.nodes[3]
    last.inputs.append(None)
    graph.set_input(last, 2, vector(graph, "bias", 8))
    names = [v.name for v in graph.outputs]
    assert applied("fuse_linears", graph)
    assert ops(graph) == ["LinearGroup", "Linear", "Linear"]
    assert [v.name for v in graph.outputs] == names


def test_at_most_four_linears_group_and_computed_weights_stay() -> None:
    graph = Graph()
    x, w = rows(graph, "x", 32), graph.add_input("w", "float32", (8, 32))
    computed = graph.add("Linear", [x, w], name="computed", domain="halfbyte")
    graph.outputs.append(computed)
    for index in range(5):
        graph.outputs.append(linear(graph, x, weight(index, 8, 32), f"y{index}"))
    assert applied("fuse_linears", graph)
    assert ops(graph) == ["Linear", "LinearGroup", "Linear"]
    assert graph.nodes[1].attributes == {"count": 4}


def test_every_pass_has_a_name() -> None:
    assert RUNTIME[-1] == "dead_code"
    assert all(callable(get_pass(name)) for name in RUNTIME)
