"""Products with int8 weights in integers whose activations are quantized while they run.

    MatMul(x, DequantizeLinear(codes, scale))    becomes
    DynamicQuantizeLinear(x) -> MatMulInteger(.., codes) -> Cast -> Mul by both scales

Only weights with one scale for each output column and codes around zero are taken. Source: the form
that onnxruntime's quantize_dynamic writes, which its session fuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops import infer, op_spec
from halfbyte.ir.ops.spec import attribute, input_at, known_array
from halfbyte.ir.passes import dead_code
from halfbyte.ir.passes.matching import new_constant

FLOAT = "float32"


@dataclass
class IntegerWeight:
    """Codes [in, out] and scales [out]; name: of the constant that holds the codes."""

    name: str
    codes: Value
    scale: Value


class NodeWriter:
    """Puts nodes in front of a node; the integers of one activation are made once."""

    def __init__(self, graph: Graph) -> None:
        """Start in front of no node: at the end."""
        self.graph = graph
        self.at: Node | None = None
        self._quantized: dict[Value, list[Value]] = {}

    def add(
        self, op: str, *inputs: Value, name: str, outputs: int = 1, **attributes: object
    ) -> list[Value]:
        """Return the outputs of a new node."""
        made = [Value(self.graph.fresh_name(f"{name}.{op.lower()}")) for _ in range(outputs)]
        version = max(op_spec(op).versions)
        node = Node(op, list(inputs), made, dict(attributes), "", version)
        if self.at is not None:
            node.layer, node.origin = self.at.layer, self.at.origin
        self.graph.insert(node, self.at)
        for value, kind in zip(made, infer(node), strict=False):
            value.dtype, value.shape = kind.dtype, kind.shape
        return made

    def quantized(self, data: Value) -> list[Value]:
        """Return codes, scale and zero point of what is quantized while the graph runs."""
        if data not in self._quantized:
            made = self.add("DynamicQuantizeLinear", data, name=data.name, outputs=3)
            self._quantized[data] = made
        return self._quantized[data]


def use_dynamic_integers(graph: Graph) -> int:
    """Rewrite, in place, every product that allows it; return how many did."""
    writer, count = NodeWriter(graph), 0
    for node in list(graph.nodes):
        if node.op != "MatMul" or node.domain:
            continue
        data, weight = node.inputs[0], node.inputs[1]
        if data is None or data.constant is not None or data.dtype not in (None, FLOAT):
            continue
        writer.at = node
        stored = integer_weight(writer, weight)
        if stored is None:
            continue
        _rewrite(writer, node, data, stored)
        count += 1
    if count:
        dead_code.apply(graph)
    return count


def require_integers(graph: Graph, path: Path) -> None:
    """Rewrite the products of a graph that is to be written as `path`.

    Raises:
        UnsupportedError: none can be.
    """
    if not use_dynamic_integers(graph):
        what = "int8-dynamic without a product over int8 weights"
        raise UnsupportedError(what, str(path), advice="give --type int8")


def _rewrite(writer: NodeWriter, node: Node, data: Value, weight: IntegerWeight) -> None:
    old = node.outputs[0]
    codes, scale, zero = writer.quantized(data)
    sums = writer.add("MatMulInteger", codes, weight.codes, zero, name=old.name)[0]
    floats = writer.add("Cast", sums, name=old.name, to=FLOAT)[0]
    factor = writer.add("Mul", scale, weight.scale, name=f"{old.name}.scale")[0]
    result = writer.add("Mul", floats, factor, name=old.name)[0]
    writer.graph.replace_all_uses(old, result)
    writer.graph.remove(node)
    result.name, old.name = old.name, result.name
    result.dtype, result.shape = FLOAT, old.shape or result.shape


def integer_weight(writer: NodeWriter, value: Value | None) -> IntegerWeight | None:
    """Return the int8 weight that a value stands for, None for anything else."""
    node = None if value is None else value.producer
    turned = node is not None and node.op == "Transpose" and not node.domain
    if node is not None and turned:
        if attribute(node, "perm", [1, 0]) != [1, 0] or node.inputs[0] is None:
            return None
        node = node.inputs[0].producer
    if node is None or node.op != "DequantizeLinear" or node.domain:
        return None
    codes, scale = node.inputs[0], node.inputs[1]
    if codes is None or scale is None or codes.dtype != "int8" or codes.constant is None:
        return None
    zero = input_at(node, 2)
    points = known_array(zero, 1 << 20)
    if zero is not None and (points is None or points.any()):
        return None
    shape = codes.constant.shape
    if len(shape) != 2:
        return None
    out = shape[0] if turned else shape[1]
    if not _is_per_column(node, scale, out, turned):
        return None
    name = codes.name
    if turned:
        codes = writer.add("Transpose", codes, name=name, perm=[1, 0])[0]
    if len(scale.shape or ()) == 2:
        flat = new_constant(writer.graph, "scale.row", np.asarray([-1], np.int64))
        scale = writer.add("Reshape", scale, flat, name=f"{name}.scale")[0]
    return IntegerWeight(name, codes, scale)


def _is_per_column(node: Node, scale: Value, out: int, turned: bool) -> bool:
    """Whether there is one scale for all, or one for each column of the product."""
    shape, block = scale.shape or (), int(attribute(node, "block_size", 0))
    if scale.dtype != FLOAT:
        return False
    axis = int(attribute(node, "axis", 1)) % 2
    if block:
        return axis == int(turned) and shape == ((out, 1) if turned else (1, out))
    return shape in ((), (1,)) or (shape == (out,) and axis == int(not turned))
