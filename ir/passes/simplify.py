"""Remove nodes that change nothing, and join reshapes and transpositions that follow each other."""

from __future__ import annotations

from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.spec import input_at, known_ints
from halfbyte.ir.passes import dead_code
from halfbyte.ir.passes.matching import is_op, maker, scalar


def order_of(node: Node) -> list[int] | None:
    """Return the axes of a Transpose, None for an unknown rank."""
    source = node.inputs[0]
    given = node.attributes.get("perm")
    if given is not None:
        return [int(axis) for axis in given]
    if source is None or source.shape is None:
        return None
    return list(reversed(range(len(source.shape))))


def unchanged(node: Node) -> bool:
    """Whether the first output is the first input."""
    source = node.inputs[0] if node.inputs else None
    if source is None:
        return False
    if is_op(node, "Identity"):
        return True
    if is_op(node, "Dropout"):
        training = input_at(node, 2)
        off = training is None or scalar(training) == 0.0
        return off and not any(value.uses for value in node.outputs[1:])
    if is_op(node, "Cast"):
        fixed = source.constant is None or source.fixed
        return fixed and source.dtype is not None and source.dtype == node.attributes.get("to")
    if is_op(node, "Transpose"):
        order = order_of(node)
        return order is not None and order == list(range(len(order)))
    return is_op(node, "Concat") and len(node.inputs) == 1


def join_transposes(graph: Graph, node: Node) -> bool:
    """Let a Transpose of a Transpose read the first one's input."""
    before = maker(node.inputs[0], "Transpose") if is_op(node, "Transpose") else None
    if before is None:
        return False
    first, second = order_of(before), order_of(node)
    if first is None or second is None or before.inputs[0] is None:
        return False
    node.attributes = {**node.attributes, "perm": [first[axis] for axis in second]}
    graph.set_input(node, 0, before.inputs[0])
    return True


def join_reshapes(graph: Graph, node: Node) -> bool:
    """Let a Reshape to constant dimensions read through another Reshape."""
    before = maker(node.inputs[0], "Reshape") if is_op(node, "Reshape") else None
    shape = known_ints(node.inputs[1]) if before is not None else None
    if before is None or shape is None or before.inputs[0] is None or 0 in shape:
        return False
    graph.set_input(node, 0, before.inputs[0])
    return True


def apply(graph: Graph) -> bool:
    """Simplify in topological order."""
    changed = False
    outputs: set[Value] = set(graph.outputs)
    for node in list(graph.nodes):
        changed |= join_transposes(graph, node) or join_reshapes(graph, node)
        source = node.inputs[0] if node.inputs else None
        if source is None or not unchanged(node) or node.outputs[0] in outputs:
            continue
        if source.constant is not None and not source.fixed:
            continue
        graph.replace_all_uses(node.outputs[0], source)
        graph.remove(node)
        changed = True
    if changed:
        dead_code.apply(graph)
    return changed
