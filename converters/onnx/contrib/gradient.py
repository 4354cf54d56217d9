"""Gradient of ai.onnx.preview.training, written out as the nodes that compute it backwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.ir.graph import Graph, Node, Value

Rule = Callable[[Lowering, Node, Value], "list[Value]"]


def lower(graph: Graph, node: Node) -> None:
    """Put the derivatives of `y` by each of `xs` before the node, and in its place.

    Raises:
        UnsupportedError: `y` goes through an operator without a rule, a value has no known shape,
            or the inputs are not the values that `xs` names.
    """
    at = Lowering(graph, node)
    names = list(at.required("xs"))
    wanted = {value.name: value for value in graph.values()}
    target = wanted.get(at.required("y"))
    sources = [at.need(index) for index in range(len(names))]
    if target is None or [value.name for value in sources] != names:
        raise at.refuse("a gradient whose inputs are not the values that 'xs' and 'y' name")
    found = backwards(at, target, sources)
    at.finish(*(found.get(value) or filled(at, value, 0) for value in sources))


def backwards(at: Lowering, target: Value, sources: list[Value]) -> dict[Value, Value]:
    """Return the derivatives of a value's sum by each value on its way from the sources."""
    found = {target: filled(at, target, 1)}
    path = reached(at.graph, sources)
    for node in reversed(at.graph.nodes[: at.graph.nodes.index(at.node)]):
        given = next((found[v] for v in node.outputs if v in found), None)
        if given is None or not path.intersection(node.outputs):
            continue
        if node.op not in RULES or node.domain or node.attributes:
            raise at.refuse(f"the gradient of {node.label}", sorted(RULES))
        for value, part in zip(node.inputs, RULES[node.op](at, node, given), strict=True):
            if value is not None and (value in path or value in sources):
                whole = summed(at, part, value)
                found[value] = at.add("Add", found[value], whole) if value in found else whole
    return found


def reached(graph: Graph, sources: list[Value]) -> set[Value]:
    """Return the values that depend on the sources."""
    path: set[Value] = set(sources)
    for node in graph.nodes:
        if path.intersection(v for v in node.inputs if v is not None):
            path.update(node.outputs)
    return path - set(sources)


def filled(at: Lowering, value: Value, number: int) -> Value:
    """Return a tensor like a value, all of one number."""
    held = np.asarray([number], np.float32)
    made = at.like(at.add("ConstantOfShape", at.add("Shape", value), value=held), value)
    made.shape = value.shape
    return made


def summed(at: Lowering, part: Value, value: Value) -> Value:
    """Return a derivative summed over the axes along which `value` was repeated."""
    if part.shape is None or value.shape is None:
        raise at.refuse(f"the gradient by {value.name!r}, whose shape is unknown")
    if part.shape == value.shape:
        return part
    if any(isinstance(dim, str) for dim in (*part.shape, *value.shape)):
        raise at.refuse(f"the gradient by {value.name!r}, whose shape is not fixed")
    extra = len(part.shape) - len(value.shape)
    axes = [*range(extra), *(i + extra for i, dim in enumerate(value.shape) if dim == 1)]
    total = at.add("ReduceSum", part, at.ints(*axes), keepdims=1)
    return at.add("Reshape", total, at.add("Shape", value))


def operands(node: Node) -> tuple[Value, Value]:
    """Return the two inputs of a node."""
    left, right = node.inputs
    assert left is not None and right is not None
    return left, right


def of_add(at: Lowering, node: Node, given: Value) -> list[Value]:
    """Pass the derivative on."""
    return [given] * len(node.inputs)


def of_sub(at: Lowering, node: Node, given: Value) -> list[Value]:
    """Pass it on, negative to the right."""
    return [given, at.add("Neg", given)]


def of_mul(at: Lowering, node: Node, given: Value) -> list[Value]:
    """Multiply by the other factor."""
    left, right = operands(node)
    return [at.add("Mul", given, right), at.add("Mul", given, left)]


def of_div(at: Lowering, node: Node, given: Value) -> list[Value]:
    """Divide; for the divisor by its square."""
    right = operands(node)[1]
    first = at.add("Div", given, right)
    return [first, at.add("Neg", at.add("Mul", first, node.outputs[0]))]


def of_matmul(at: Lowering, node: Node, given: Value) -> list[Value]:
    """Multiply by the other matrix, transposed."""
    left, right = operands(node)
    if len(left.shape or ()) != 2 or len(right.shape or ()) != 2:
        raise at.refuse(f"the gradient of {node.label} over others than matrices")
    return [
        at.add("MatMul", given, at.transpose(right, 1, 0)),
        at.add("MatMul", at.transpose(left, 1, 0), given),
    ]


def of_exp(at: Lowering, node: Node, given: Value) -> list[Value]:
    """Multiply by the result."""
    return [at.add("Mul", given, node.outputs[0])]


def of_log(at: Lowering, node: Node, given: Value) -> list[Value]:
    """Divide by the input."""
    return [at.add("Div", given, node.inputs[0])]


def of_tanh(at: Lowering, node: Node, given: Value) -> list[Value]:
    """Multiply by 1 - y * y."""
    squared = at.add("Mul", given, at.add("Mul", node.outputs[0], node.outputs[0]))
    return [at.add("Sub", given, squared)]


def of_sigmoid(at: Lowering, node: Node, given: Value) -> list[Value]:
    """Multiply by y * (1 - y)."""
    scaled = at.add("Mul", given, node.outputs[0])
    return [at.add("Sub", scaled, at.add("Mul", scaled, node.outputs[0]))]


def of_neg(at: Lowering, node: Node, given: Value) -> list[Value]:
    """Change the sign."""
    return [at.add("Neg", given)]


RULES: dict[str, Rule] = {
    "Add": of_add,
    "Div": of_div,
    "Exp": of_exp,
    "Identity": of_add,
    "Log": of_log,
    "MatMul": of_matmul,
    "Mul": of_mul,
    "Neg": of_neg,
    "Sigmoid": of_sigmoid,
    "Sub": of_sub,
    "Sum": of_add,
    "Tanh": of_tanh,
}
