"""Embedding tables and the output head of language models."""

from __future__ import annotations

import numpy as np

from halfbyte.converters.architectures.layers.builder import LayerBuilder
from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.roles import Role


def decoder_inputs(graph: Graph) -> tuple[Value, Value, Value]:
    """Add the inputs of every decoder: token ids, their positions, and which positions to answer.

    The last, [outputs], indexes the sequence: only those positions get logits.
    """
    ids = graph.add_input("input_ids", "int64", ("batch", "sequence"))
    positions = graph.add_input("position_ids", "int64", ("batch", "sequence"))
    return ids, positions, graph.add_input("output_positions", "int64", ("outputs",))


def embed(builder: LayerBuilder, ids: Value, role: Role, name: str) -> Value:
    """Look up rows of a table of any encoding: ids [...] to float32 [..., columns]."""
    table = builder.weight(role)
    shape = (*(ids.shape or ()), (table.shape or (0,))[-1])
    return builder.op("Gather", table, ids, name=name, shape=shape, axis=0)


def take_positions(builder: LayerBuilder, x: Value, positions: Value, name: str) -> Value:
    """Keep the sequence positions asked for: x [batch, sequence, hidden], positions [outputs]."""
    batch, _, hidden = x.shape or ("batch", "sequence", 0)
    shape = (batch, *(positions.shape or ()), hidden)
    return builder.op("Gather", x, positions, name=name, shape=shape, axis=1)


def output_head(builder: LayerBuilder, x: Value) -> Value:
    """Return logits from the head, or from the token embedding where the two are tied."""
    head = builder.find(Role.OUTPUT_HEAD) or builder.weight(Role.TOKEN_EMBEDDING)
    return builder.project(x, head, builder.find(Role.OUTPUT_HEAD, None, "bias"), "logits")


def position_range(builder: LayerBuilder, ids: Value) -> Value:
    """Return 0 .. sequence - 1 for ids [batch, sequence]."""
    int64, axis = "int64", builder.constant("first_axis", np.asarray([0], np.int64))
    length = builder.op(
        "Shape", ids, name="sequence_shape", shape=(1,), dtype=int64, start=1, end=2
    )
    length = builder.op("Squeeze", length, axis, name="sequence_length", shape=(), dtype=int64)
    zero = builder.constant("zero", np.asarray(0, np.int64))
    one = builder.constant("one", np.asarray(1, np.int64))
    return builder.op(
        "Range", zero, length, one, name="positions", shape=("sequence",), dtype=int64
    )
