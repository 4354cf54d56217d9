"""What passes ask when they look for a pattern of nodes."""

from __future__ import annotations

import numpy as np

from halfbyte.ir.graph import Dim, Graph, Node, Value
from halfbyte.ir.ops import op_key, op_spec, spec_of
from halfbyte.ir.ops.spec import UNKNOWN, Array, known_array
from halfbyte.ir.tensor import tensor_from_array


def is_op(node: Node | None, *ops: str) -> bool:
    """Whether a node is one of these ai.onnx operators in its newest form."""
    if node is None or node.domain or node.op not in ops:
        return False
    return spec_of(node) is op_spec(op_key(node.op))


def maker(value: Value | None, *ops: str) -> Node | None:
    """Return the node that makes a value if it is one of these operators."""
    node = None if value is None else value.producer
    return node if is_op(node, *ops) else None


def only_reader(graph: Graph, value: Value) -> Node | None:
    """Return the one node that reads a value, None where several do or it leaves the graph."""
    if len(value.uses) != 1 or value in graph.outputs:
        return None
    return value.uses[0][0]


def scalar(value: Value | None) -> float | None:
    """Return a constant of one element."""
    array = known_array(value, 1)
    return None if array is None or array.size != 1 else float(array.reshape(-1)[0])


def is_scalar(value: Value | None, wanted: float, tolerance: float = 1e-4) -> bool:
    """Whether a value is a constant near a number, relative to it."""
    found = scalar(value)
    return found is not None and abs(found - wanted) <= tolerance * abs(wanted)


def split_constant(node: Node) -> tuple[Value, float] | None:
    """Return the computed operand and the scalar of a commutative node."""
    for index in (0, 1):
        number, other = scalar(node.inputs[index]), node.inputs[1 - index]
        if number is not None and other is not None and other.constant is None:
            return other, number
    return None


def other_input(node: Node, value: Value) -> Value | None:
    """Return the operand of a binary node that is not `value`."""
    left, right = node.inputs[:2]
    return right if left is value else left


def full_shape(value: Value | None) -> tuple[Dim, ...] | None:
    """Return a shape without unknown dimensions."""
    if value is None or value.shape is None or UNKNOWN in value.shape:
        return None
    return value.shape


def stored(value: Value | None, dtype: str = "float32") -> Array | None:
    """Return the values of a dense constant of a dtype, of any size."""
    if value is None or value.constant is None or value.constant.encoding.is_quantized:
        return None
    return value.constant.numpy() if value.dtype == dtype else None


def new_constant(graph: Graph, name: str, array: Array) -> Value:
    """Add a constant that keeps its dtype."""
    tensor = tensor_from_array(graph.fresh_name(name), np.asarray(array, order="C"))
    return graph.add_constant(tensor, fixed=True)


def replace_node(
    graph: Graph, last: Node, op: str, inputs: list[Value | None], **attributes: object
) -> Node:
    """Let a new ai.onnx node yield the first output of `last`; dead nodes are left behind."""
    old = last.outputs[0]
    out = Value(old.name, old.dtype, old.shape)
    version = max(op_spec(op).versions)
    node = Node(op, inputs, [out], dict(attributes), "", version, last.layer, last.origin)
    graph.insert(node, last)
    graph.replace_all_uses(old, out)
    graph.remove(last)
    return node
