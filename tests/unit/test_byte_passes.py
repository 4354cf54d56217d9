"""Moves run on bytes, elementwise chains become tables, and mean the same."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.converters.onnx.contrib import dynamic_quantize_lstm
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.inference import infer_types
from halfbyte.ir.passes import fuse_integer_lstm, look_up_bytes, move_bytes, run_passes
from halfbyte.runtime.session import Session
from support.quantized_graphs import RNG, Builder, run

MOVED = ("move_bytes", "look_up_bytes")
TABLES = ("look_up_bytes",)


def real(built: Builder, stored: Value) -> Value:
    """Return quantized values as numbers: bytes that leave the graph keep their node."""
    return built.node("DequantizeLinear", stored, *built.place(0.05, 120))


def test_moves_run_on_bytes() -> None:
    built = Builder(x=(2, 3, 4))
    x = built.rounded(built.inputs["x"], 0.05, 120)
    y = built.node("Reshape", x, built.constant([6, 4], np.int64))
    y = built.node("Transpose", y, perm=[1, 0])
    ops = run(built, real(built, built.quantized(y, 0.05, 120)), passes=MOVED)
    assert ops == ["QuantizeLinear", "Reshape", "Transpose", "DequantizeLinear"]


def test_another_scale_after_a_move_is_a_table() -> None:
    built = Builder(x=(2, 3, 4))
    x = built.rounded(built.inputs["x"], 0.05, -7, np.int8)
    y = built.node("Transpose", x, perm=[2, 1, 0])
    ops = run(built, built.quantized(y, 0.031, 90), y, passes=MOVED, one_step=1)
    assert ops == ["QuantizeLinear", "Transpose", "DequantizeLinear", "IntegerLookup"]


@pytest.mark.parametrize("equal", [True, False])
def test_joined_values(equal: bool) -> None:
    built = Builder(a=(2, 3), b=(2, 5))
    a = built.rounded(built.inputs["a"], 0.05, 120)
    b = built.rounded(built.inputs["b"], 0.05 if equal else 0.07, 120)
    y = built.node("Concat", a, b, axis=1)
    ops = run(built, real(built, built.quantized(y, 0.05, 120)), passes=MOVED)
    tables = [] if equal else ["IntegerLookup"]
    assert ops == ["QuantizeLinear", "QuantizeLinear", *tables, "Concat", "DequantizeLinear"]


def test_what_is_split_stays_bytes() -> None:
    built = Builder(x=(2, 6))
    x = built.rounded(built.inputs["x"], 0.05, 120)
    outputs = [Value("left"), Value("right")]
    built.graph.insert(Node("Split", [x], outputs, {"axis": 1, "num_outputs": 2}, since_version=18))
    ends = [real(built, built.quantized(value, 0.05, 120)) for value in outputs]
    ops = run(built, *ends, passes=MOVED)
    assert ops == ["QuantizeLinear", "Split", "DequantizeLinear", "DequantizeLinear"]


def gelu(built: Builder, x: Value) -> Value:
    """Return x * (1 + erf(x / sqrt 2)) / 2, rounded after every operator."""
    inner = built.rounded(built.node("Div", x, built.constant(np.sqrt(2))), 0.04, 100)
    erf = built.rounded(built.node("Erf", inner), 1 / 120, 128)
    more = built.rounded(built.node("Add", erf, built.constant(1)), 0.01, 0)
    product = built.rounded(built.node("Mul", x, more), 0.03, 10)
    return built.node("Mul", product, built.constant(0.5))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_a_chain_of_rounded_operators_is_one_table(dtype) -> None:
    built = Builder(x=(5, 40))
    x = built.rounded(built.inputs["x"], 0.05, 100, dtype)
    y = built.quantized(gelu(built, x), 0.02, 9, dtype)
    assert run(built, y, passes=TABLES) == ["QuantizeLinear", "IntegerLookup"]


@pytest.mark.parametrize("op", ["Sigmoid", "LeakyRelu", "Relu"])
def test_unary_operators(op: str) -> None:
    built = Builder(x=(3, 50))
    y = built.node(op, built.rounded(built.inputs["x"], 0.05, 100))
    ops = run(built, built.quantized(y, 0.01, 0), passes=TABLES)
    assert ops == ["QuantizeLinear", "IntegerLookup"]


def test_a_number_for_each_channel_makes_tables_for_each() -> None:
    built = Builder(x=(2, 9, 6))
    x = built.rounded(built.inputs["x"], 0.05, 100)
    y = built.node("Mul", built.constant(RNG.standard_normal((1, 6))), x)
    assert run(built, built.quantized(y, 0.05, 128), passes=TABLES) == [
        "QuantizeLinear",
        "IntegerLookup",
    ]


def test_a_float_end_is_a_table_of_floats() -> None:
    built = Builder(x=(2, 30))
    x = built.rounded(built.inputs["x"], 0.05, 100)
    y = built.node("Softmax", built.node("Div", x, built.constant(8.0)))
    assert run(built, y, passes=TABLES) == ["QuantizeLinear", "IntegerLookup", "Softmax"]


def test_two_sources_are_not_looked_up() -> None:
    built = Builder(a=(2, 3), b=(2, 3))
    a = built.rounded(built.inputs["a"], 0.05, 120)
    b = built.rounded(built.inputs["b"], 0.05, 120)
    built.graph.outputs = [built.quantized(built.node("Mul", a, b), 0.05, 120)]
    infer_types(built.graph)
    assert not look_up_bytes.apply(built.graph) or "Mul" in [n.op for n in built.graph.nodes]


def test_many_channels_and_other_axes_stay() -> None:
    built = Builder(x=(2, 4, 200), z=(2, 4, 1))
    x = built.rounded(built.inputs["x"], 0.05, 100)
    z = built.rounded(built.inputs["z"], 0.05, 100)
    rows = built.node("Mul", x, built.constant(RNG.standard_normal((4, 1))))
    many = built.node("Mul", x, built.constant(RNG.standard_normal(200)))
    wider = built.node("Add", z, built.constant(RNG.standard_normal((1, 4, 3))))
    built.graph.outputs = [built.quantized(v, 0.05, 120) for v in (rows, many, wider)]
    infer_types(built.graph)
    look_up_bytes.apply(built.graph)
    assert "IntegerLookup" not in [node.op for node in built.graph.nodes]


def test_a_row_is_added_in_bytes() -> None:
    built = Builder(x=(3, 4, 200))
    x = built.rounded(built.inputs["x"], 0.0513, 100)
    data = built.constant(RNG.integers(-128, 128, 200), np.int8)
    row = built.node("DequantizeLinear", data, *built.place(0.0307, 0, np.int8))
    y = built.quantized(built.node("Add", row, x), 0.0411, 120)
    assert run(built, y, one_step=1) == ["QuantizeLinear", "IntegerAdd"]


def test_float_graphs_are_left_alone() -> None:
    built = Builder(x=(2, 3))
    built.graph.outputs = [built.node("Relu", built.inputs["x"])]
    assert not move_bytes.apply(built.graph)
    assert not look_up_bytes.apply(built.graph)
    assert not fuse_integer_lstm.apply(built.graph)


def lstm(direction: str, hidden: int, steps: int) -> tuple[Graph, dict[str, np.ndarray]]:
    """Return a lowered DynamicQuantizeLSTM and its input."""
    ways = 2 if direction == "bidirectional" else 1
    built = Builder(x=(steps, 2, 6))
    inputs: list[Value | None] = [built.inputs["x"]]
    for rows in (6, hidden):
        weight = RNG.integers(-127, 128, (ways, rows, 4 * hidden))
        inputs.append(built.constant(weight, np.int8))
    inputs.append(built.constant(RNG.standard_normal((ways, 8 * hidden))))
    inputs += [None] * 4
    for _ in range(2):
        scale = RNG.uniform(0.002, 0.01, (ways, 4 * hidden))
        inputs += [built.constant(scale), built.constant(np.zeros((ways, 4 * hidden)), np.int8)]
    node = Node(
        "DynamicQuantizeLSTM",
        inputs,
        [Value("y", "float32"), Value("h", "float32"), Value("c", "float32")],
        {"hidden_size": hidden, "direction": direction},
        "com.microsoft",
    )
    built.graph.insert(node)
    built.graph.outputs = list(node.outputs)
    dynamic_quantize_lstm.lower(built.graph, node)
    x = RNG.standard_normal((steps, 2, 6)).astype(np.float32)
    return built.graph, {"x": x}


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_an_lstm_of_bytes_is_one_node_a_direction(direction: str) -> None:
    graph, feeds = lstm(direction, 7, 5)
    plain = Session(graph, device="reference", fuse=False).run(feeds)
    fused = graph.copy()
    run_passes(fused)
    ops = [node.op for node in fused.nodes]
    assert ops.count("IntegerLSTM") == (2 if direction == "bidirectional" else 1)
    assert "Scan" not in ops
    for device in ("reference", "cpu"):
        results = Session(fused, device=device, fuse=False).run(feeds)
        for name, expected in plain.items():
            # A state on the edge of two codes may fall to either.
            np.testing.assert_allclose(results[name], expected, rtol=0, atol=5e-3)
            assert np.abs(results[name] - expected).mean() < 2e-4


def test_another_step_stays_a_scan() -> None:
    graph, _ = lstm("forward", 7, 5)
    scan = next(node for node in graph.nodes if node.op == "Scan")
    body = scan.attributes["body"]
    last = next(node for node in body.nodes if node.op == "Tanh")
    bent = body.insert(
        Node("Tanh", [last.inputs[0]], [Value("t", "float32")], since_version=13), last
    )
    body.set_input(last, 0, bent.outputs[0])
    run_passes(graph)
    assert "IntegerLSTM" not in [node.op for node in graph.nodes]
