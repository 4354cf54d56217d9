"""Operators of onnxruntime's domain: forms that its CPU kernels lack, refusals, laziness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes  # noqa: F401 - registers uint4
import numpy as np
import pytest

from halfbyte.converters.onnx.contrib import CONTRIB, is_contrib, lower_all
from halfbyte.errors import GraphError, UnsupportedError
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.legality import check
from halfbyte.ir.tensor import ComputedPart, Tensor, tensor_from_array
from support.contrib_models import graph_of, ours

Array = np.ndarray
BATCH, LENGTH, HEADS, SIZE = 2, 5, 4, 8


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def codes(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def run(op: str, inputs: list[Array | None], held: Mapping[str, Any], **more: Any) -> list[Array]:
    outputs = more.pop("outputs", 1)
    return ours(graph_of(op, inputs, held, outputs, **more), inputs)


def close(found: Array, truth: Array) -> None:
    assert found.shape == truth.shape
    assert np.allclose(found, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_packed_query_key_and_value_are_the_separate_ones(bias: bool) -> None:
    packed, added = random(1, BATCH, LENGTH, HEADS, 3, SIZE), random(2, 3 * HEADS * SIZE)
    separate = [
        np.ascontiguousarray(packed[..., i, :]).reshape(BATCH, LENGTH, -1) for i in range(3)
    ]
    held, rest = {"num_heads": HEADS}, [added] if bias else []
    one = run("MultiHeadAttention", [packed, None, None, *rest], held)[0]
    close(one, run("MultiHeadAttention", [*separate, *rest], held)[0])


def test_packed_key_and_value_are_the_separate_ones() -> None:
    query, packed = random(3, BATCH, LENGTH, HEADS * SIZE), random(4, BATCH, 7, HEADS, 2, SIZE)
    separate = [np.ascontiguousarray(packed[..., i, :]).reshape(BATCH, 7, -1) for i in range(2)]
    held = {"num_heads": HEADS}
    one = run("MultiHeadAttention", [query, packed], held)[0]
    close(one, run("MultiHeadAttention", [query, *separate], held)[0])


def test_experts_whose_gate_stands_in_a_half_of_its_own() -> None:
    tokens, router = random(5, 6, 32), random(6, 6, 3)
    mixed, last = random(7, 3, 64, 32) * np.float32(0.1), random(8, 3, 32, 32) * np.float32(0.1)
    halves = np.concatenate([mixed[:, ::2], mixed[:, 1::2]], axis=1)
    held = {"k": 2, "activation_type": "swiglu", "activation_alpha": 1.702, "swiglu_limit": 0.7}
    stored = {2, 3, 4}
    one = run(
        "MoE", [tokens, router, mixed, None, last], held | {"swiglu_fusion": 1}, constants=stored
    )
    two = run(
        "MoE", [tokens, router, halves, None, last], held | {"swiglu_fusion": 2}, constants=stored
    )
    close(one[0], two[0])


def test_a_token_that_no_expert_but_one_sees() -> None:
    tokens = random(9, 2, 32)
    router = np.asarray([[9, -9, -9], [9, -9, -9]], np.float32)
    first, last = random(10, 3, 16, 32), random(11, 3, 32, 16)
    held = {"k": 1, "normalize_routing_weights": 1}
    found = run("MoE", [tokens, router, first, None, last], held, constants={2, 4})[0]
    close(found, np.maximum(tokens @ first[0].T, 0) @ last[0].T)


def nbits(graph: Graph, codes_of: Tensor, scales: Tensor, **held: Any) -> Node:
    values: list[Value | None] = [graph.add_input("x", "float32", ("batch", 64))]
    values += [graph.add_constant(t, fixed=True) for t in (codes_of, scales)]
    held = {"K": 64, "N": 24, "bits": 4, "block_size": 32} | held
    node = Node("MatMulNBits", values, [Value("y")], held, "com.microsoft")
    graph.insert(node)
    graph.outputs = [node.outputs[0]]
    return node


def test_codes_are_read_by_ranges_and_only_when_asked() -> None:
    data, reads = codes(12, 24 * 2, 16), []

    def read(start: int, stop: int) -> Array:
        reads.append((start, stop))
        return data[start:stop]

    part = ComputedPart(np.dtype(np.uint8), (48, 16), read)
    lazy = tensor_from_array("w", data.reshape(24, 2, 16))
    lazy = Tensor("w", (24, 2, 16), lazy.encoding, {"data": part})
    graph = Graph()
    nbits(graph, lazy, tensor_from_array("s", np.ones((24, 2), np.float32)))
    lower_all(graph)
    check(graph)
    assert reads == []
    weight = graph.nodes[0].inputs[1]
    assert weight is not None and weight.constant is not None
    assert weight.constant.encoding == Affine(4, 32, "none", "float32")
    rows = weight.constant.decode(3, 5)
    assert reads == [(6, 10)]
    plain = np.stack([data & 15, data >> 4], axis=-1).reshape(24, 64).astype(np.float32) - 8
    assert np.array_equal(rows, plain[3:5])


def test_two_products_with_the_same_codes_share_a_weight() -> None:
    graph = Graph()
    node = nbits(
        graph,
        tensor_from_array("w", codes(13, 24, 2, 16)),
        tensor_from_array("s", np.ones((24, 2), np.float32)),
    )
    other = Node("MatMulNBits", list(node.inputs), [Value("z")], node.attributes, "com.microsoft")
    graph.insert(other)
    graph.outputs.append(other.outputs[0])
    lower_all(graph)
    check(graph)
    assert [n.op for n in graph.nodes] == ["Linear", "Linear"]
    assert len(graph.constants) == 1
    assert [value.name for value in graph.outputs] == ["y", "z"]


@pytest.mark.parametrize(
    ("held", "wording"),
    [
        ({"weight_prepacked": 1}, "weight_prepacked 1"),
        ({"bits": 3}, "bits 3"),
        ({"K": 65}, "B of"),
        ({"N": 25}, "B of"),
        ({"block_size": 0}, "block_size 0"),
    ],
)
def test_weights_that_are_refused(held: dict[str, int], wording: str) -> None:
    graph = Graph()
    scales = tensor_from_array("s", np.ones((24, 2), np.float32))
    nbits(graph, tensor_from_array("w", codes(14, 24, 2, 16)), scales, **held)
    with pytest.raises(UnsupportedError, match=wording):
        lower_all(graph)


@pytest.mark.parametrize("groups", [[0] * 63, [0] * 63 + [2], [-1] + [0] * 63])
def test_groups_outside_the_scales_are_refused(groups: list[int]) -> None:
    graph = Graph()
    scales = tensor_from_array("s", np.ones((24, 2), np.float32))
    node = nbits(graph, tensor_from_array("w", codes(14, 24, 2, 16)), scales)
    order = graph.add_constant(tensor_from_array("g", np.asarray(groups, np.int32)), fixed=True)
    inputs = [*node.inputs, None, order]
    again = Node("MatMulNBits", inputs, [Value("z")], node.attributes, "com.microsoft")
    graph.insert(again)
    with pytest.raises(UnsupportedError, match="g_idx"):
        lower_all(graph)


@pytest.mark.parametrize("place", [0, 2, 3])
@pytest.mark.parametrize("kind", ["bytes", "narrow"])
def test_a_table_that_holds_too_little(place: int, kind: str) -> None:
    table = codes(40, 4, 32) if kind == "bytes" else (codes(40, 4, 64) & 15).astype("uint4")
    points = codes(41, 4, 1) if kind == "bytes" else (codes(41, 4, 2) & 15).astype("uint4")
    given: list[Array | None] = [table, np.asarray([1]), random(42, 4, 2), points]
    cut = given[place]
    assert cut is not None
    given[place] = np.ascontiguousarray(cut[:, :0] if place else cut[:3])
    if place == 0 and kind == "narrow":
        given[2] = random(42, 4, 2)[:, :1]
    held = {"bits": 4, "block_size": 32, "gather_axis": 0, "quantize_axis": 1}
    graph = graph_of("GatherBlockQuantized", given, held, 1, {0, 2, 3})
    with pytest.raises(GraphError, match="rows of at least"):
        lower_all(graph)


def test_missing_inputs_and_attributes_are_named() -> None:
    for node, wording in (
        (Node("FusedMatMul", [], [Value("y")], {}, "com.microsoft"), "input 0 is missing"),
        (Node("MatMulNBits", [], [Value("y")], {}, "com.microsoft"), "attribute 'N' is missing"),
    ):
        graph = Graph()
        graph.insert(node)
        with pytest.raises(GraphError, match=wording):
            lower_all(graph)


def test_an_operator_that_is_not_known_is_named() -> None:
    graph = Graph()
    x = graph.add_input("x", "float32", (1,))
    graph.insert(Node("Snpe", [x], [Value("y")], {}, "com.microsoft"))
    with pytest.raises(UnsupportedError, match=r"com\.microsoft\.Snpe"):
        lower_all(graph)


@pytest.mark.parametrize(
    ("op", "held", "wording"),
    [
        ("GroupQueryAttention", {"sliding_window_cache": 1}, "sliding_window_cache"),
        ("GroupQueryAttention", {"kv_cache_bit_width": 8}, "kv_cache_bit_width"),
        ("Attention", {"do_rotary": 1}, "do_rotary"),
        ("RotaryEmbedding", {"is_packed_batching": 1}, "is_packed_batching"),
        ("MoE", {"use_sparse_mixer": 1}, "use_sparse_mixer"),
        ("QMoE", {"quant_type": "fp4"}, "fp4"),
        ("FusedGemm", {"activation": "Sine"}, "Sine"),
        ("CDist", {"metric": "cosine"}, "cosine"),
        ("GridSample", {"mode": "cubic9"}, "cubic9"),
        ("DynamicQuantizeLSTM", {"clip": 3.0, "hidden_size": 4}, "clip"),
        ("MatMulBnb4", {"quant_type": 7, "N": 4, "K": 4, "block_size": 16}, "quant_type 7"),
    ],
)
def test_forms_that_are_refused(op: str, held: dict[str, Any], wording: str) -> None:
    given: list[Array | None] = [random(15, 2, 4, 4) if op != "CDist" else random(15, 4, 4)]
    given += [random(16, *given[0].shape) for _ in range(4)] if given[0] is not None else []
    heads = {"num_heads": 1, "kv_num_heads": 1} if "Attention" in op else {}
    graph = graph_of(op, given[:3] if op == "FusedGemm" else given, heads | held, 1, {1, 2})
    if op == "FusedGemm":
        for value in graph.inputs:
            value.shape = (4, 4)
        for name in graph.constants:
            graph.set_constant(name, tensor_from_array(name, random(17, 4, 4)))
            graph.constant_value(name).shape = (4, 4)
    with pytest.raises(UnsupportedError, match=wording):
        lower_all(graph)


def test_every_operator_of_the_table_has_a_module() -> None:
    from importlib import import_module

    assert all(callable(import_module(module).lower) for module in CONTRIB.values())


def test_which_nodes_are_of_that_domain() -> None:
    assert is_contrib(Node("Anything", [], [], {}, "com.microsoft"))
    assert is_contrib(Node("SimplifiedLayerNormalization", [], []))
    assert is_contrib(Node("LayerNormalization", [], [], since_version=1))
    assert not is_contrib(Node("LayerNormalization", [], [], since_version=17))
    assert not is_contrib(Node("Add", [], [], since_version=14))


def test_subgraphs_are_lowered_too() -> None:
    branches = []
    for name in ("yes", "no"):
        branch = Graph(name)
        x = branch.add_input("x", "float32", (3,))
        branch.outputs = [branch.add("QuickGelu", [x], name=f"{name}.y", domain="com.microsoft")]
        branches.append(branch)
    graph = Graph()
    chosen = graph.add_input("chosen", "bool", ())
    x = graph.add_input("x", "float32", (3,))
    held = {"then_branch": branches[0], "else_branch": branches[1], "captures": 1}
    graph.outputs = [graph.add("If", [chosen, x], since_version=25, **held)]
    assert lower_all(graph)
    check(graph)
    assert [node.op for inner in graph.subgraphs() for node in inner.nodes] == ["Swish", "Swish"]


def test_statistics_of_a_normalization() -> None:
    data, scale = random(18, 2, 3, 16), random(19, 16)
    held = {"epsilon": 1e-6}
    given = [data, data, scale]
    result, _, inverse, total = run_with(given, held)
    wide = (data + data).astype(np.float64)
    expected = 1 / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    close(inverse, expected.astype(np.float32))
    close(total, data + data)
    close(result, (wide * expected * scale).astype(np.float32))


def run_with(given: list[Array], held: dict[str, Any]) -> tuple[Array, None, Array, Array]:
    graph = graph_of("SkipSimplifiedLayerNormalization", given, held, 4)
    del graph.outputs[1]
    result, inverse, total = ours(graph, given)
    return result, None, inverse, total


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("skip", [False, True])
def test_group_norm(last: int, skip: bool) -> None:
    data = random(20, 2, 3, 4, 8) if last else random(20, 2, 8, 3, 4)
    scale, bias = random(21, 8), random(22, 8)
    held = {"groups": 2, "activation": 1, "channels_last": last, "epsilon": 1e-5}
    given: list[Array | None] = [data, scale, bias]
    if skip:
        given += [data, random(23, 2, 8)]
    found = run("SkipGroupNorm" if skip else "GroupNorm", given, held)[0]
    wide = data.astype(np.float64)
    if skip:
        row = random(23, 2, 8).astype(np.float64)
        wide = wide * 2 + (row[:, None, None] if last else row[:, :, None, None])
    first = wide.transpose(0, 3, 1, 2) if last else wide
    grouped = first.reshape(2, 2, -1)
    centered = grouped - grouped.mean(-1, keepdims=True)
    normal = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    shaped = normal.reshape(first.shape) * scale[:, None, None] + bias[:, None, None]
    result = shaped / (1 + np.exp(-shaped))
    close(found, (result.transpose(0, 2, 3, 1) if last else result).astype(np.float32))


def test_bias_and_split() -> None:
    data, bias = random(24, 2, 3, 16), random(25, 16)
    left, right = np.split((data + bias).astype(np.float64), 2, axis=-1)
    from math import erf

    gelu = 0.5 * right * (1 + np.vectorize(erf)(right / np.sqrt(2)))
    close(run("BiasSplitGelu", [data, bias], {})[0], (left * gelu).astype(np.float32))
    close(run("BiasAdd", [data, bias, data], {})[0], data + bias + data)


def test_integer_sums_and_sparse_products() -> None:
    data = codes(26, 3, 4).astype(np.int8)
    total = run("ReduceSumInteger", [data], {"axes": [1], "keepdims": 0})[0]
    assert total.dtype == np.int32 and np.array_equal(total, data.sum(1, dtype=np.int32))
    left, right = codes(27, 3, 4), codes(28, 3, 4)
    product = run("MulInteger", [left, np.uint8(3) * np.ones((), np.uint8), right], {})[0]
    assert np.array_equal(product, (left.astype(np.int32) - 3) * right)
    a, b = random(29, 4, 3), random(30, 4, 5)
    found = run("SparseToDenseMatMul", [a, b], {"transA": 1, "alpha": 0.5})[0]
    close(found, (a.T @ b) * np.float32(0.5))


def test_convolution_with_channels_last() -> None:
    data, weight, bias = random(31, 1, 6, 6, 4), random(32, 8, 3, 3, 4), random(33, 8)
    held = {"pads": [1, 1, 1, 1], "activation": "Relu"}
    plain = [data.transpose(0, 3, 1, 2), weight.transpose(0, 3, 1, 2)]
    first = run("FusedConv", [*(np.ascontiguousarray(v) for v in plain), bias], held)[0]
    found = run("NhwcFusedConv", [data, weight, bias], held)[0]
    close(found, np.ascontiguousarray(first.transpose(0, 2, 3, 1)))
