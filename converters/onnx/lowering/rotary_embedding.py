"""RotaryEmbedding before opset 23."""

from __future__ import annotations

from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.errors import UnsupportedError
from halfbyte.ir.graph import Node, Value
from halfbyte.ir.ops.spec import attribute, input_at, required_input


def lower(rewriter: Rewriter, node: Node) -> None:
    """Replace the node: heads apart, rotated halves or pairs, heads joined as they came.

    Raises:
        UnsupportedError: rank or head size is not known.
    """
    data, position_ids = required_input(node, 0), input_at(node, 3)
    if data.shape is None:
        raise UnsupportedError(f"rotating unknown ranks at opset {rewriter.opset}", node.label)
    flat = len(data.shape) == 3
    heads = data
    if flat:
        count = int(attribute(node, "num_heads", 0))
        shape = rewriter.constant("split_heads", [0, 0, count, -1])
        heads = rewriter.add("Reshape", data, shape)
    size = heads.shape[-1] if heads.shape is not None else None
    if not isinstance(size, int):
        raise UnsupportedError(f"rotating unknown sizes at opset {rewriter.opset}", node.label)
    dim = int(attribute(node, "rotary_embedding_dim", 0)) or size
    tables = [_table(rewriter, required_input(node, i), position_ids, flat) for i in (1, 2)]
    interleaved = bool(attribute(node, "interleaved", 0))
    turned = _rotated(rewriter, heads, tables, dim, size, interleaved)
    if flat:
        turned = rewriter.add("Reshape", turned, rewriter.constant("join_heads", [0, 0, -1]))
    rewriter.replace(node, turned)


def _table(rewriter: Rewriter, table: Value, ids: Value | None, flat: bool) -> Value:
    """Return cosines or sines [batch, sequence, dim / 2] with an axis for the heads."""
    rows = table if ids is None else rewriter.add("Gather", table, ids, axis=0)
    shape = [0, 0, 1, -1] if flat else None
    if shape is not None:
        return rewriter.add("Reshape", rows, rewriter.constant("head_axis", shape))
    split = rewriter.add("Reshape", rows, rewriter.constant("head_axis", [0, 0, 1, -1]))
    return rewriter.add("Transpose", split, perm=[0, 2, 1, 3])


def _cut(rewriter: Rewriter, value: Value, start: int, stop: int, step: int = 1) -> Value:
    """Return elements start, start + step, ... of the last axis."""
    if rewriter.opset < 10:
        raise UnsupportedError(f"Slice with inputs at opset {rewriter.opset}", value.name)
    constants = [rewriter.constant("cut", [number]) for number in (start, stop, -1, step)]
    return rewriter.add("Slice", value, *constants)


def _rotated(
    rewriter: Rewriter, heads: Value, tables: list[Value], dim: int, size: int, interleaved: bool
) -> Value:
    cos, sin = tables
    half = dim // 2
    if interleaved:
        first, second = (_cut(rewriter, heads, start, dim, 2) for start in (0, 1))
    else:
        first, second = _cut(rewriter, heads, 0, half), _cut(rewriter, heads, half, dim)
    real = rewriter.add("Sub", rewriter.add("Mul", cos, first), rewriter.add("Mul", sin, second))
    imaginary = rewriter.add(
        "Add", rewriter.add("Mul", sin, first), rewriter.add("Mul", cos, second)
    )
    if interleaved:
        pairs = [_with_last_axis(rewriter, value, half) for value in (real, imaginary)]
        joined = rewriter.add("Concat", *pairs, axis=-1)
        shape = rewriter.constant("join_pairs", [0, 0, 0, dim])
        turned = rewriter.add("Reshape", joined, shape)
    else:
        turned = rewriter.add("Concat", real, imaginary, axis=-1)
    if dim == size:
        return turned
    return rewriter.add("Concat", turned, _cut(rewriter, heads, dim, size), axis=-1)


def _with_last_axis(rewriter: Rewriter, value: Value, half: int) -> Value:
    return rewriter.add("Reshape", value, rewriter.constant("pairs", [0, 0, 0, half, 1]))
