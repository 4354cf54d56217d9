"""Where graphs compute in integers, by operator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.model import Model
from halfbyte.quant.activations import prepared_graph
from halfbyte.quant.qdq_placement import Placement, place
from support.integer_models import Net, residual_net, token_net


def placed(model: Model, *keep: str) -> tuple[Graph, Placement]:
    graph = prepared_graph(model)
    return graph, place(graph, keep)


def names(values: list[Value] | set[Value]) -> list[str]:
    return [value.name for value in values]


def image_net(build: Callable[[Net, Value], Value], channels: int = 4) -> Model:
    """Return Conv, what `build` makes of it, Conv."""
    net = Net(image=(1, channels, 8, 8))
    first = net.conv(net.inputs["image"], channels, name="first")
    return net.done(net.conv(build(net, first), 2, name="second"))


def test_a_convolution_reads_and_makes_quantized_values() -> None:
    net = Net(image=(1, 3, 8, 8))
    _, found = placed(net.done(net.conv(net.inputs["image"], 4, name="only")))
    assert names(found.values) == ["image", "only"]
    assert names(found.made) == ["only"]


def test_a_linear_reads_quantized_values_and_makes_floats() -> None:
    net = Net(x=(3, 8))
    _, found = placed(net.done(net.linear(net.inputs["x"], 4)))
    assert names(found.values) == ["x"]
    assert not found.made


@pytest.mark.parametrize("op", ["Relu", "Clip"])
def test_the_range_is_taken_after_an_activation(op: str) -> None:
    def build(net: Net, x: Value) -> Value:
        ends = [net.constant("low", 0.0), net.constant("high", 6.0)] if op == "Clip" else []
        return net.op(op, x, *ends, name="active")

    _, found = placed(image_net(build))
    assert names(found.values) == ["image", "active", "second"]
    assert {value.name: node.op for value, node in found.ends.items()} == {"active": op}


@pytest.mark.parametrize("op", ["HardSwish", "Sigmoid", "Elu"])
def test_other_activations_stay_float_between_pairs(op: str) -> None:
    _, found = placed(image_net(lambda net, x: net.op(op, x, name="active")))
    assert names(found.values) == ["image", "first", "active", "second"]
    assert names(found.made) in (["first", "second"], ["second", "first"])


MOVES: dict[str, Callable[[Net, Value], Value]] = {
    "MaxPool": lambda net, x: net.op("MaxPool", x, kernel_shape=[2, 2], name="moved"),
    "Reshape": lambda net, x: net.op(
        "Reshape", x, net.constant("shape", [1, 4, 4, 16], np.int64), name="moved"
    ),
    "Transpose": lambda net, x: net.op("Transpose", x, perm=[0, 1, 3, 2], name="moved"),
}


@pytest.mark.parametrize("op", MOVES)
def test_values_that_only_move_share_their_range(op: str) -> None:
    _, found = placed(image_net(MOVES[op]))
    by_name = {value.name: value for value in found.values}
    assert found.leader(by_name["moved"]) is by_name["first"]
    assert [node.op for node in found.passing] == [op]


def test_pools_have_a_range_of_their_own() -> None:
    def build(net: Net, x: Value) -> Value:
        return net.op("AveragePool", x, kernel_shape=[2, 2], name="pooled")

    _, found = placed(image_net(build))
    assert len(found.groups()) == len(found.values) == 4


def test_sums_of_integers_pass_them_on_and_sums_with_floats_do_not() -> None:
    def of_integers(net: Net, x: Value) -> Value:
        return net.op("Relu", net.op("Add", x, net.conv(x, 4, name="other")), name="sum")

    def with_floats(net: Net, x: Value) -> Value:
        return net.op("Add", x, net.op("Tanh", x), name="sum")

    _, found = placed(image_net(of_integers))
    assert [node.op for node in found.passing] == ["Add"]
    assert "sum" in names(found.made)
    _, found = placed(image_net(with_floats))
    assert not found.passing
    assert "sum" in names(found.values)
    assert "sum" not in names(found.made)


def test_a_gate_multiplies_in_integers() -> None:
    def build(net: Net, x: Value) -> Value:
        pooled = net.op("GlobalAveragePool", x)
        gate = net.op("Sigmoid", net.conv(pooled, 4, 1, name="squeeze"), name="gate")
        return net.op("Mul", x, gate, name="gated")

    _, found = placed(image_net(build))
    assert {"gate", "gated"} <= set(names(found.values))
    assert "Mul" in [node.op for node in found.passing]


def test_joined_parts_share_one_range() -> None:
    graph, found = placed(residual_net())
    groups = [sorted(names(members)) for members in found.groups().values() if len(members) > 1]
    # The head reads the flattened mean; the pool after the stem is read by two more.
    assert ["joined", "left", "right"] in groups
    assert ["flat", "mean"] in groups
    assert len(groups) == 3
    assert len(found.nodes) == 7
    assert {node.op for node in found.passing} >= {"MaxPool", "Add", "Concat", "Flatten"}
    assert all(value in list(graph.values()) for value in found.values)


def test_an_encoder_quantizes_what_products_read() -> None:
    _, found = placed(token_net())
    assert len(found.nodes) == 6
    assert not found.made
    assert not found.passing
    assert len(found.values) == 4
    assert [node.op for node in found.ends.values()] == ["Relu"]


def test_nodes_stay_float_by_name_operator_and_place() -> None:
    model = residual_net()
    for pattern, left in (
        ("Conv", 1), ("l*", 5), ("depthwise.weight", 6), ("first", 6), ("last", 6), ("MatMul", 6)
    ):  # fmt: skip
        _, found = placed(model, pattern)
        assert len(found.nodes) == left, pattern
        assert found.kept == 7 - len(found.nodes)
    _, found = placed(model, "first", "last")
    assert found.nodes[0].outputs[0].name == "depthwise"
    assert "head" not in [node.outputs[0].name for node in found.nodes]
    with pytest.raises(UnsupportedError, match="'nonsense\\*'.*supported: "):
        placed(model, "nonsense*")
