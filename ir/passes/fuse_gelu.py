"""Gelu, Swish, HardSwish and Mish from the nodes that exporters spell them with."""

from __future__ import annotations

import math

from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.spec import input_at
from halfbyte.ir.passes import dead_code
from halfbyte.ir.passes.matching import (
    is_op,
    is_scalar,
    maker,
    only_reader,
    other_input,
    replace_node,
    split_constant,
)


def scaled(value: Value | None, factor: float) -> Value | None:
    """Return x where a value is x times a factor, by Mul or Div."""
    node = maker(value, "Mul", "Div")
    if node is None:
        return None
    if node.op == "Div":
        return node.inputs[0] if is_scalar(node.inputs[1], 1.0 / factor) else None
    found = split_constant(node)
    close = found is not None and abs(found[1] - factor) <= 1e-4 * abs(factor)
    return found[0] if close and found is not None else None


def cubed(value: Value | None, x: Value) -> bool:
    """Whether a value is x to the third."""
    node = maker(value, "Pow", "Mul")
    if node is None:
        return False
    if node.op == "Pow":
        return node.inputs[0] is x and is_scalar(node.inputs[1], 3.0)
    for index in (0, 1):
        square = maker(node.inputs[index], "Mul")
        if node.inputs[1 - index] is x and square is not None:
            return square.inputs[0] is x and square.inputs[1] is x
    return False


def tanh_argument(value: Value | None) -> Value | None:
    """Return x where a value is sqrt(2 / pi) (x + 0.044715 x^3)."""
    total = maker(scaled(value, math.sqrt(2 / math.pi)), "Add")
    if total is None:
        return None
    for index in (0, 1):
        x, rest = total.inputs[index], total.inputs[1 - index]
        if x is not None and cubed(scaled(rest, 0.044715), x):
            return x
    return None


def gelu_tail(graph: Graph, gate: Node, x: Value) -> Node | None:
    """Return the last node of 0.5 x (1 + gate), in any order of the factors."""
    plus = only_reader(graph, gate.outputs[0])
    if (
        not is_op(plus, "Add")
        or plus is None
        or not is_scalar(other_input(plus, gate.outputs[0]), 1.0)
    ):
        return None
    node, halved, times_x = plus, False, False
    while not (halved and times_x):
        value = node.outputs[0]
        reader = only_reader(graph, value)
        if not is_op(reader, "Mul", "Div") or reader is None:
            return None
        other = other_input(reader, value)
        if reader.op == "Div":
            step = "half" if reader.inputs[0] is value and is_scalar(other, 2.0) else ""
        elif is_scalar(other, 0.5):
            step = "half"
        elif other is x:
            step = "x"
        else:
            step = "both" if scaled(other, 0.5) is x else ""
        if not step or (halved and step != "x") or (times_x and step != "half"):
            return None
        halved, times_x = halved or step != "x", times_x or step != "half"
        node = reader
    return node


def gelu(graph: Graph, node: Node) -> bool:
    """Replace the pattern around an Erf or Tanh."""
    if is_op(node, "Erf"):
        x, kind = scaled(node.inputs[0], math.sqrt(0.5)), "none"
    elif is_op(node, "Tanh"):
        x, kind = tanh_argument(node.inputs[0]), "tanh"
    else:
        return False
    last = None if x is None else gelu_tail(graph, node, x)
    if last is None or x is None or last.outputs[0] in graph.outputs:
        return False
    replace_node(graph, last, "Gelu", [x], approximate=kind)
    return True


def clipped_shift(value: Value | None, x: Value) -> bool:
    """Whether a value is x + 3 kept within 0 and 6."""
    clip = maker(value, "Clip")
    if clip is None or not is_scalar(input_at(clip, 2), 6.0):
        return False
    plus = maker(clip.inputs[0], "Add")
    if plus is None or not is_scalar(input_at(clip, 1), 0.0):
        return False
    found = split_constant(plus)
    return found is not None and found[0] is x and abs(found[1] - 3.0) < 1e-6


def gate_of(value: Value | None, x: Value) -> tuple[str, dict[str, object]] | None:
    """Return the operator that x times this value is."""
    node = maker(value, "Sigmoid", "HardSigmoid", "Tanh")
    if node is not None and node.op == "Sigmoid" and node.inputs[0] is x:
        return "Swish", {"alpha": 1.0}
    if node is not None and node.op == "HardSigmoid" and node.inputs[0] is x:
        sixth = abs(node.attributes.get("alpha", 0.2) - 1 / 6) < 1e-6
        return ("HardSwish", {}) if sixth and node.attributes.get("beta", 0.5) == 0.5 else None
    if node is not None and node.op == "Tanh":
        soft = maker(node.inputs[0], "Softplus")
        return ("Mish", {}) if soft is not None and soft.inputs[0] is x else None
    inner = scaled(value, 1 / 6)
    return ("HardSwish", {}) if inner is not None and clipped_shift(inner, x) else None


def gated(graph: Graph, node: Node) -> bool:
    """Replace x times a gate of x."""
    if not is_op(node, "Mul") or node.outputs[0] in graph.outputs:
        return False
    for index in (0, 1):
        x, gate = node.inputs[index], node.inputs[1 - index]
        if x is None or gate is None:
            continue
        found = gate_of(gate, x)
        if found is not None:
            replace_node(graph, node, found[0], [x], **found[1])
            return True
        # x clip(x + 3, 0, 6), divided by 6 afterwards
        last = only_reader(graph, node.outputs[0]) if clipped_shift(gate, x) else None
        if last is None or last.outputs[0] in graph.outputs:
            continue
        if scaled(last.outputs[0], 1 / 6) is node.outputs[0]:
            replace_node(graph, last, "HardSwish", [x])
            return True
    return False


def apply(graph: Graph) -> bool:
    """Replace every such pattern."""
    changed = False
    for node in list(graph.nodes):
        if node.outputs and node.outputs[0].producer is node:
            changed |= gelu(graph, node) or gated(graph, node)
    if changed:
        dead_code.apply(graph)
    return changed
