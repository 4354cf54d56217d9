"""A Scan whose step is an LSTM with a hidden state rounded to bytes becomes halfbyte.IntegerLSTM.

The step is what is left of DynamicQuantizeLSTM once its own product is fused: states h and c, the
share of the inputs, then

    gates = share + IntegerMatMul(DynamicQuantizeLinear(h), R);  i, o, f, fresh = Split(gates)
    c' = Sigmoid(f) * c + Sigmoid(i) * Tanh(fresh);  h' = Sigmoid(o) * Tanh(c')
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.spec import Array, input_at, known_array
from halfbyte.ir.passes.fusion import fuse
from halfbyte.ir.passes.matching import maker
from halfbyte.ir.passes.quantized_values import constant

MAX_WEIGHT = 1 << 26
NODES = 16  # of a step: no other work may hide in it


class Recurrent(NamedTuple):
    """The recurrent weights: [hidden, 4 * hidden], scale and zero point."""

    weight: Array
    scale: Array
    zero: Array | None


def operands(value: Value | None, op: str) -> tuple[Value | None, ...]:
    """Return the inputs of the node of kind `op` that makes a value; nothing for other values."""
    node = maker(value, op)
    return () if node is None else tuple(node.inputs)


def paired(value: Value | None, op: str, first: str) -> tuple[Value, Value] | None:
    """Return the operands of a commutative node, the one made by `first` before the other."""
    both = operands(value, op)
    for left, right in (both, both[::-1]) if len(both) == 2 else ():
        if left is not None and right is not None and maker(left, first) is not None:
            return left, right
    return None


def gate(value: Value, op: str, gates: Node) -> int | None:
    """Return which part of the split gates an activation is of."""
    inputs = operands(value, op)
    if not inputs or inputs[0] not in gates.outputs:
        return None
    return gates.outputs.index(inputs[0])


def cell_gates(cell: Value, c: Value) -> Node | None:
    """Return the node that splits the gates of c' = Sigmoid(f) c + Sigmoid(i) Tanh(fresh)."""
    sides = operands(cell, "Add")
    for side, other in (sides, sides[::-1]) if len(sides) == 2 else ():
        kept, new = paired(side, "Mul", "Sigmoid"), paired(other, "Mul", "Sigmoid")
        if kept is None or new is None or kept[1] is not c:
            continue
        source = operands(kept[0], "Sigmoid")[0]
        gates = maker(source, "Split")
        if gates is None or len(gates.outputs) != 4:
            continue
        places = [gate(kept[0], "Sigmoid", gates), gate(new[0], "Sigmoid", gates)]
        if [*places, gate(new[1], "Tanh", gates)] == [2, 0, 3]:
            return gates
    return None


def recurrent_of(value: Value | None, h: Value) -> Recurrent | None:
    """Return the weights of a product of the rounded state."""
    node = None if value is None else value.producer
    if node is None or node.op != "IntegerMatMul" or len(node.inputs) > 6:
        return None
    if any(np.isfinite(node.attributes.get(n, np.inf)) for n in ("minimum", "maximum")):
        return None
    source = maker(node.inputs[0], "DynamicQuantizeLinear")
    if source is None or source.inputs[0] is not h:
        return None
    if source.outputs != [node.inputs[0], node.inputs[2], node.inputs[3]]:
        return None
    weight, scale = (known_array(node.inputs[i], MAX_WEIGHT) for i in (1, 4))
    zero = known_array(input_at(node, 5), MAX_WEIGHT)
    if weight is None or scale is None or (input_at(node, 5) is not None and zero is None):
        return None
    return Recurrent(weight, scale, zero)


def step_of(body: Graph) -> Recurrent | None:
    """Return the weights of a body that is one step of such an LSTM."""
    if len(body.inputs) != 3 or len(body.outputs) != 3 or len(body.nodes) > NODES:
        return None
    (h, c, share), (result, cell, again) = body.inputs, body.outputs
    repeated = operands(again, "Identity")
    if again is not result and (not repeated or repeated[0] is not result):
        return None
    gates = cell_gates(cell, c)
    opened = paired(result, "Mul", "Sigmoid")
    if gates is None or opened is None or gates.attributes.get("axis") not in (-1, 1):
        return None
    if gate(opened[0], "Sigmoid", gates) != 1 or operands(opened[1], "Tanh") != (cell,):
        return None
    total = operands(gates.inputs[0], "Add")
    if len(total) != 2 or share not in total or input_at(gates, 1) is not None:
        return None
    return recurrent_of(total[1] if total[0] is share else total[0], h)


def fuse_scan(graph: Graph, node: Node) -> bool:
    """Replace one Scan."""
    given, body = node.attributes, node.attributes.get("body")
    if given.get("num_scan_inputs") != 1 or given.get("captures") or not isinstance(body, Graph):
        return False
    ways = [given.get(name) or [0] for name in ("scan_input_directions", "scan_output_directions")]
    axes = [given.get(name) or [0] for name in ("scan_input_axes", "scan_output_axes")]
    if ways[0] != ways[1] or axes != [[0], [0]] or len(node.inputs) != 3:
        return False
    found = step_of(body)
    if found is None or any(v is None or v.dtype != "float32" for v in node.inputs):
        return False
    h, c, share = node.inputs
    inputs: list[Value | None] = [share, h, c, constant(graph, found.weight, "recurrent")]
    inputs.append(constant(graph, found.scale, "recurrent_scale"))
    if found.zero is not None:
        inputs.append(constant(graph, found.zero, "recurrent_zero"))
    fuse(graph, [node], "IntegerLSTM", inputs, node.outputs, attributes={"reverse": ways[0][0]})
    return True


def apply(graph: Graph) -> bool:
    """Replace every Scan that has this form."""
    changed = False
    for node in list(graph.nodes):
        if node.op == "Scan" and not node.domain and len(node.outputs) == 3:
            changed |= fuse_scan(graph, node)
    return changed
