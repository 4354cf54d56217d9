"""RotaryEmbedding of onnxruntime: positions by batch and offset, ai.onnx's otherwise."""

from __future__ import annotations

from typing import Any

from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.ir.graph import Graph, Node, Value


def lower(graph: Graph, node: Node) -> None:
    """Replace the node.

    Raises:
        UnsupportedError: packed batches, or the number of heads cannot be told.
    """
    at = Lowering(graph, node)
    if at.option("is_packed_batching", 0):
        raise at.refuse("is_packed_batching", ["0"])
    data, cos, sin = at.need(0), at.need(2), at.need(3)
    rank = at.rank(0)
    dim, heads = int(at.option("rotary_embedding_dim", 0)), int(at.option("num_heads", 0))
    positions = positions_of(at, data, rank, at.need(1))
    options: dict[str, Any] = {
        "interleaved": int(at.option("interleaved", 0)),
        "rotary_embedding_dim": dim,
    }
    if rank == 3 and not heads:
        split = at.reshape(data, 0, 0, -1, head_size(at, cos, dim))
        turned = at.add(
            "RotaryEmbedding", at.transpose(split, 0, 2, 1, 3), cos, sin, positions, **options
        )
        at.finish(at.reshape(at.transpose(turned, 0, 2, 1, 3), 0, 0, -1))
        return
    at.finish(at.add("RotaryEmbedding", data, cos, sin, positions, num_heads=heads, **options))


def head_size(at: Lowering, cos: Value, dim: int) -> int:
    """Return how wide a head is, from the width of the cosine table."""
    half = cos.shape[-1] if cos.shape else None
    if dim or not isinstance(half, int):
        raise at.refuse("rank 3 without num_heads", advice="give num_heads")
    return 2 * half


def positions_of(at: Lowering, data: Value, rank: int, given: Value) -> Value:
    """Return positions [batch, sequence]; a single number is the first of every row."""
    if given.shape is None:
        raise at.refuse("position_ids of unknown rank")
    if len(given.shape) == 2:
        return given
    batch, length = at.dim(data, 0), at.dim(data, 1 if rank == 3 else 2)
    steps = at.add("Range", at.scalar(0), at.add("Squeeze", length, at.ints(0)), at.scalar(1))
    row = at.add("Add", at.cast(at.reshape(given, 1), "int64"), steps)
    both = at.add("Concat", batch, length, axis=0)
    return at.add("Expand", row, both)
