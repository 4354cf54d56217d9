"""Operators that only move values move bytes.

    DequantizeLinear -> Reshape, Transpose, ...     becomes   the move -> DequantizeLinear
    Concat of dequantized values -> QuantizeLinear  becomes   QuantizeLinear of each -> Concat

One scale stands for the whole value, so both forms give the same bits.
"""

from __future__ import annotations

from dataclasses import replace

from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.spec import input_at, known_array
from halfbyte.ir.passes.matching import is_op, only_reader
from halfbyte.ir.passes.quantized_values import Quantized, dequantized

# Moves of input 0; the others say where to.
MOVES = (
    *("Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Slice"),
    *("Squeeze", "Tile", "Transpose", "Unsqueeze", "DepthToSpace", "SpaceToDepth", "Split"),
)


def equal_places(first: Quantized, other: Quantized) -> bool:
    """Whether two values have the same scale and zero point."""
    if first.data.dtype != other.data.dtype:
        return False
    for mine, theirs in ((first.scale, other.scale), (first.zero, other.zero)):
        if mine is theirs:
            continue
        left, right = known_array(mine), known_array(theirs)
        if left is None or right is None or left.reshape(-1)[0] != right.reshape(-1)[0]:
            return False
    return True


def moved_first(graph: Graph, node: Node, sources: list[Quantized]) -> None:
    """Let a move read bytes; its results are dequantized."""
    place = sources[0]
    inputs: list[Value | None] = [source.data for source in sources]
    inputs += node.inputs[len(sources) :]
    outputs = [Value(f"{old.name}.bytes", place.data.dtype, old.shape) for old in node.outputs]
    graph.insert(replace(node, inputs=inputs, outputs=outputs), node)
    for old, moved in zip(node.outputs, outputs, strict=True):
        result = Value(old.name, old.dtype, old.shape)
        back = Node("DequantizeLinear", [moved, place.scale, place.zero], [result])
        back.since_version, back.layer, back.origin = version_of(sources), node.layer, node.origin
        graph.insert(back, node)
        graph.replace_all_uses(old, result)
    graph.remove(node)


def version_of(sources: list[Quantized]) -> int:
    """Return the version of the operator that dequantizes the first source."""
    users = [user for user, _ in sources[0].data.uses if user.op == "DequantizeLinear"]
    return users[0].since_version if users else 25


def sink(graph: Graph, node: Node) -> bool:
    """Move before dequantizing."""
    if is_op(node, *MOVES):
        source = dequantized(graph, node.inputs[0])
        sources = [] if source is None else [source]
    elif is_op(node, "Concat"):
        found = [dequantized(graph, value) for value in node.inputs]
        sources = [source for source in found if source is not None]
        if len(sources) != len(found) or not all(equal_places(sources[0], s) for s in sources):
            return False
    else:
        return False
    if not sources:
        return False
    moved_first(graph, node, sources)
    return True


def quantize_parts(graph: Graph, node: Node) -> bool:
    """Quantize what is joined, where only the quantized whole is read."""
    if not is_op(node, "Concat"):
        return False
    following = only_reader(graph, node.outputs[0])
    if following is None or following.op != "QuantizeLinear" or following.domain:
        return False
    scale, zero = following.inputs[1], input_at(following, 2)
    if scale is None or scale.shape not in ((), (1,)) or scale.constant is None:
        return False
    if (zero is not None and zero.constant is None) or following.attributes.get("block_size"):
        return False
    if any(dequantized(graph, value) is None for value in node.inputs):
        return False
    dtype = following.outputs[0].dtype
    parts: list[Value | None] = []
    for value in node.inputs:
        assert value is not None
        part = Value(f"{value.name}.requantized", dtype, value.shape)
        graph.insert(
            replace(following, inputs=[value, *following.inputs[1:]], outputs=[part]), node
        )
        parts.append(part)
    old = following.outputs[0]
    joined = Value(old.name, dtype, old.shape)
    graph.insert(replace(node, inputs=parts, outputs=[joined]), node)
    graph.replace_all_uses(old, joined)
    graph.remove(following)
    graph.remove(node)
    return True


def apply(graph: Graph) -> bool:
    """Move bytes wherever a value is dequantized before it is moved."""
    if not any(node.op == "DequantizeLinear" and not node.domain for node in graph.nodes):
        return False
    changed = False
    for node in list(graph.nodes):
        changed |= sink(graph, node) or quantize_parts(graph, node)
    return changed
