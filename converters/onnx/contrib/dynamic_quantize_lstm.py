"""DynamicQuantizeLSTM: an LSTM whose two products round their left side to uint8 as they run.

The input is rounded once on a scale of its own, the hidden state anew in every step, so the
recurrence becomes a Scan over steps.
"""

from __future__ import annotations

import numpy as np

from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.ir.graph import Graph, Node, Value

(X, W, R, B, LENGTHS, FIRST_H, FIRST_C, PEEPHOLES, W_SCALE, W_ZERO, R_SCALE, R_ZERO) = range(12)
DIRECTIONS = {"forward": (0,), "reverse": (1,), "bidirectional": (0, 1)}
USUAL = ("sigmoid", "tanh", "tanh")
GATES = 4


def lower(graph: Graph, node: Node) -> None:
    """Replace the node.

    Raises:
        UnsupportedError: row lengths, peepholes, clipping, or other activations.
    """
    at = Lowering(graph, node)
    backward = DIRECTIONS[str(at.option("direction", "forward"))]
    if at.option("clip", 0) or at.option("input_forget", 0):
        raise at.refuse("clip or input_forget")
    if at.given(LENGTHS) is not None or at.given(PEEPHOLES) is not None:
        raise at.refuse("sequence_lens or peepholes")
    named = [str(name).lower() for name in at.option("activations", USUAL * len(backward))]
    if tuple(named) != USUAL * len(backward):
        raise at.refuse(f"activations {named}", ["Sigmoid, Tanh, Tanh"])
    codes = at.many("DynamicQuantizeLinear", [at.need(X)], 3)
    runs = [direction(at, codes, index, back) for index, back in enumerate(backward)]
    # [steps, batch, hidden] and [batch, hidden] get the axis of directions.
    results = [
        at.add("Concat", *(at.add("Unsqueeze", run[i], at.ints(axis)) for run in runs), axis=axis)
        for i, axis in ((2, 1), (0, 0), (1, 0))
    ]
    at.finish(*results)


def direction(at: Lowering, codes: list[Value], index: int, backward: int) -> list[Value]:
    """Return the last hidden state, the last cell state and the hidden states of one direction."""
    hidden = int(at.required("hidden_size"))
    weight = chosen(at, W, index)
    total = at.add("MatMulInteger", codes[0], weight, codes[2], chosen(at, W_ZERO, index))
    scale = at.add("Mul", codes[1], chosen(at, W_SCALE, index))
    gates = at.add("Mul", at.cast(total, "float32"), scale)
    if at.given(B) is not None:
        both = at.array(at.stored(B).numpy()[index].reshape(2, -1).sum(axis=0))
        gates = at.add("Add", gates, both)
    batch = at.dim(at.need(X), 1)
    states = [first_state(at, place, index, batch, hidden) for place in (FIRST_H, FIRST_C)]
    return at.many(
        "Scan",
        [*states, gates],
        3,
        body=step(at, index, hidden),
        num_scan_inputs=1,
        scan_input_directions=[backward],
        scan_output_directions=[backward],
        captures=0,
    )


def chosen(at: Lowering, place: int, index: int) -> Value:
    """Return the part of a stored input for one direction; one scale is for the whole matrix."""
    found = at.stored(place).numpy()[index]
    return at.array(np.ascontiguousarray(found))


def first_state(at: Lowering, place: int, index: int, batch: Value, hidden: int) -> Value:
    """Return the given first state of a direction, or zeros."""
    given = at.given(place)
    if given is None:
        shape = at.add("Concat", batch, at.ints(hidden), axis=0)
        return at.add("Expand", at.array(np.zeros((), np.float32)), shape)
    return at.add("Gather", given, at.scalar(index), axis=0)


def step(at: Lowering, index: int, hidden: int) -> Graph:
    """Return the graph of one step: states [batch, hidden] and the input's share of the gates."""
    name = f"{at.node.outputs[0].name or at.node.op}.step.{index}"
    body = Graph("step")
    h, c = (body.add_input(name, "float32", ("batch", hidden)) for name in ("h", "c"))
    share = body.add_input("share", "float32", ("batch", GATES * hidden))
    end = body.insert(Node("Identity", [share], [Value(name, "float32", share.shape)]))
    inside = Lowering(body, end)
    stored = [np.ascontiguousarray(at.stored(i).numpy()[index]) for i in (R, R_ZERO, R_SCALE)]
    weight, zero, scale = (inside.array(array) for array in stored)
    codes = inside.many("DynamicQuantizeLinear", [h], 3)
    total = inside.add("MatMulInteger", codes[0], weight, codes[2], zero)
    held = inside.add("Mul", inside.cast(total, "float32"), inside.add("Mul", codes[1], scale))
    gates = inside.add("Add", share, held)
    parts = inside.many("Split", [gates], GATES, axis=-1, num_outputs=GATES)
    opened = [inside.add("Sigmoid", part) for part in parts[:3]]
    new = inside.add("Mul", opened[0], inside.add("Tanh", parts[3]))
    cell = inside.add("Add", inside.add("Mul", opened[2], c), new)
    result = inside.add("Mul", opened[1], inside.add("Tanh", cell))
    body.remove(end)
    again = body.add("Identity", [result], dtype="float32", shape=result.shape, since_version=25)
    body.outputs = [result, cell, again]
    return body
