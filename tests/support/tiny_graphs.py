"""Small graphs made by hand: a decoder by the language-model contract, and random ones."""

from __future__ import annotations

import numpy as np

from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.graph import Graph, State, Value
from halfbyte.ir.tensor import ArrayPart, Tensor, tensor_from_array

VOCABULARY, HIDDEN, HEADS, GROUPS, HEAD_DIM, WIDTH = 40, 32, 4, 2, 8, 64
TEXT = ("batch", "sequence")


def weight(seed: int, rows: int, columns: int, encoding: str = "float32") -> Tensor:
    """Return a random weight [rows, columns] in an encoding."""
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    found = encoding_from_name(encoding)
    parts = {name: ArrayPart(part) for name, part in found.encode(values * 0.3).items()}
    return Tensor(f"w{seed}", (rows, columns), found, parts)


def linear(graph: Graph, x: Value, tensor: Tensor, name: str, layer: int | None = None) -> Value:
    """Add a Linear."""
    shape = (*(x.shape or ())[:-1], tensor.rows)
    value = graph.add_constant(tensor)
    return graph.add(
        "Linear",
        [x, value],
        name=name,
        dtype="float32",
        shape=shape,
        domain="halfbyte",
        layer=layer,
    )


def tiny_decoder(encoding: str = "float32", layers: int = 2) -> Graph:
    """Return a decoder without rotary embedding: attention and gated feed-forward per layer."""
    graph = Graph("tiny")
    ids = graph.add_input("input_ids", "int64", TEXT)
    graph.add_input("position_ids", "int64", TEXT)
    wanted = graph.add_input("output_positions", "int64", ("outputs",))
    table = graph.add_constant(weight(1, VOCABULARY, HIDDEN, encoding))
    x = graph.add("Gather", [table, ids], name="x", dtype="float32", since_version=13, axis=0)
    x.shape = (*TEXT, HIDDEN)
    for layer in range(layers):
        x = decoder_layer(graph, x, layer, encoding)
    last = graph.add("Gather", [x, wanted], name="last", dtype="float32", since_version=13, axis=1)
    last.shape = ("batch", "outputs", HIDDEN)
    graph.outputs.append(linear(graph, last, weight(2, VOCABULARY, HIDDEN, encoding), "logits"))
    return graph


def decoder_layer(graph: Graph, x: Value, layer: int, encoding: str) -> Value:
    """Add one layer."""
    seed, like = 10 * (layer + 1), {"dtype": "float32", "shape": x.shape, "layer": layer}
    scale = graph.add_constant(tensor_from_array(f"scale{layer}", np.ones(HIDDEN, np.float32)))
    norm = graph.add("RMSNormalization", [x, scale], since_version=23, axis=-1, **like)
    sizes = {"q": HEADS * HEAD_DIM, "k": GROUPS * HEAD_DIM, "v": GROUPS * HEAD_DIM}
    q, k, v = (
        linear(graph, norm, weight(seed + i, rows, HIDDEN, encoding), f"{name}{layer}", layer)
        for i, (name, rows) in enumerate(sizes.items())
    )
    for name in ("key_cache", "value_cache"):
        shape = ("batch", GROUPS, "capacity", HEAD_DIM)
        graph.add_state(State(f"{name}.{layer}", "float32", shape, 2, None, layer))
    context = graph.add(
        "CachedAttention",
        [q, k, v],
        domain="halfbyte",
        num_heads=HEADS,
        num_kv_heads=GROUPS,
        scale=HEAD_DIM**-0.5,
        key_state=f"key_cache.{layer}",
        value_state=f"value_cache.{layer}",
        **like,
    )
    out = linear(graph, context, weight(seed + 4, HIDDEN, HIDDEN, encoding), f"o{layer}", layer)
    x = graph.add("Add", [x, out], since_version=14, **like)
    norm = graph.add("RMSNormalization", [x, scale], since_version=23, axis=-1, **like)
    gate = linear(graph, norm, weight(seed + 5, WIDTH, HIDDEN, encoding), f"gate{layer}", layer)
    up = linear(graph, norm, weight(seed + 6, WIDTH, HIDDEN, encoding), f"up{layer}", layer)
    wide = {"dtype": "float32", "shape": up.shape, "layer": layer}
    opened = graph.add("Swish", [gate], since_version=24, **wide)
    product = graph.add("Mul", [opened, up], since_version=14, **wide)
    down = linear(graph, product, weight(seed + 7, HIDDEN, WIDTH, encoding), f"d{layer}", layer)
    return graph.add("Add", [x, down], since_version=14, **like)


BINARY = {"Add": 14, "Sub": 14, "Mul": 14}
UNARY = {"Neg": 13, "Tanh": 13, "Swish": 24, "Relu": 14}


def random_graph(choices: list[tuple[int, int, int]], shape: tuple[int, ...] = (2, 8)) -> Graph:
    """Return a graph of inputs a, b, a constant and one node per choice (operator, two operands).

    Besides elementwise operators there are Linear and normalizations, so that every fusion can
    apply; the last two values are outputs.
    """
    graph = Graph("random")
    width = shape[-1]
    values = [graph.add_input(name, "float32", shape) for name in ("a", "b")]
    constant = np.linspace(-1, 1, width, dtype=np.float32)
    values.append(graph.add_constant(tensor_from_array("c", np.tile(constant, (shape[0], 1)))))
    values.append(graph.add_constant(tensor_from_array("d", np.tile(constant, (shape[0], 1)))))
    scale = graph.add_constant(tensor_from_array("scale", np.ones(width, np.float32)))
    like = {"dtype": "float32", "shape": shape}
    operators = [*BINARY, *UNARY, "Linear", "RMSNormalization"]
    for op_index, first, second in choices:
        op = operators[op_index % len(operators)]
        x, y = values[first % len(values)], values[second % len(values)]
        if op in BINARY:
            values.append(graph.add(op, [x, y], since_version=BINARY[op], **like))
        elif op in UNARY:
            values.append(graph.add(op, [x], since_version=UNARY[op], **like))
        elif op == "Linear":
            values.append(linear(graph, x, weight(second % 3, width, width), "linear"))
        else:
            values.append(graph.add(op, [x, scale], since_version=23, axis=-1, **like))
    graph.outputs = list(dict.fromkeys(values[-2:]))
    return graph
