"""GatherBlockQuantized: rows of a table of n-bit codes.

A table quantized along its last axis and gathered along its first becomes Gather over Affine
rows. Anything else goes through DequantizeLinear of the gathered codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.converters.onnx.contrib.matmul_nbits import shared
from halfbyte.converters.onnx.contrib.stored_blocks import affine_from_blocks, require_room
from halfbyte.ir.encodings.affine import Affine, pack_bits
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.tensor import ComputedPart, Part, Tensor

SIGNED = "int4"


def lower(graph: Graph, node: Node) -> None:
    """Replace the node.

    Raises:
        UnsupportedError: the table is computed while the model runs, or of another type.
    """
    at = Lowering(graph, node)
    table = at.stored(0)
    rank = len(table.shape)
    gather, quantized = int(at.option("gather_axis", 0)), int(at.option("quantize_axis", 1))
    gather, quantized = gather % rank, quantized % rank
    if rank == 2 and gather == 0 and quantized == 1:
        value = shared(at, table_of(at, table))
    else:
        value = dequantized(at, table, quantized)
    found = picked(at, value, at.need(1), gather, table.shape[gather], rank)
    at.finish(at.cast(found, at.need(2).dtype or "float32"))


def dequantized(at: Lowering, table: Tensor, axis: int) -> Value:
    """Return the whole table as values, for the forms that Affine rows cannot hold."""
    if getattr(table.encoding, "dtype_name", "") not in ("int4", "uint4"):
        raise at.refuse(f"a {table.encoding} table of rank {len(table.shape)}", ["int4", "uint4"])
    block = int(at.option("block_size", 128))
    inputs = [at.need(0), at.need(2), at.given(3)]
    return at.add("DequantizeLinear", *inputs, axis=axis, block_size=block)


def picked(at: Lowering, table: Value, indices: Value, axis: int, length: int, rank: int) -> Value:
    """Return the slices; an index outside the table yields zeros."""
    index = at.cast(indices, "int64")
    inside = at.add(
        "And",
        at.add("GreaterOrEqual", index, at.scalar(-length)),
        at.add("Less", index, at.scalar(length)),
    )
    found = at.add("Gather", table, at.add("Mod", index, at.scalar(length)), axis=axis)
    for _ in range(rank - 1 - axis):
        inside = at.add("Unsqueeze", inside, at.ints(-1))
    return at.add("Where", inside, found, at.like(at.number(0.0), found))


def table_of(at: Lowering, table: Tensor) -> Tensor:
    """Return the table [rows, columns] as Affine."""
    bits, block = int(at.option("bits", 4)), int(at.option("block_size", 128))
    if block < 1 or bits not in (2, 4, 8):
        raise at.refuse(f"block_size {block} with {bits} bits")
    scales = at.stored(2)
    zeros = None if at.given(3) is None else at.stored(3)
    dtype = str(getattr(table.encoding, "dtype_name", ""))
    if dtype == "uint8":
        columns = table.shape[1] * 8 // bits
        return affine_from_blocks(
            table.name, (table.shape[0], columns), bits, block, table, scales, zeros
        )
    if dtype not in ("int4", "uint4"):
        raise at.refuse(f"a table of {dtype}", ["int4", "uint4", "uint8"])
    return narrow_table(table, scales, zeros, block, dtype == SIGNED)


def narrow_table(
    table: Tensor, scales: Tensor, zeros: Tensor | None, block: int, signed: bool
) -> Tensor:
    """Return a table of int4 or uint4 elements; without zero points both stand for 0."""
    rows, columns = table.shape
    blocks, byte = -(-columns // block), np.dtype(np.uint8)
    for tensor in (scales, zeros):
        if tensor is not None:
            require_room(tensor, rows, blocks)
    # Unsigned codes of a signed table lie 8 higher, and so do its zero points.
    lift = 8 if signed else 0
    symmetric = signed and zeros is None

    def codes(start: int, stop: int) -> Any:
        values = table.decode(start, stop).astype(np.int16) + lift
        return pack_bits(values.astype(np.uint8), 4)

    def points(start: int, stop: int) -> Any:
        if zeros is None:
            return np.full((stop - start, blocks), lift, np.uint8)
        return (zeros.decode(start, stop).astype(np.int16) + lift).astype(np.uint8)

    scale = scales.encoding
    parts: dict[str, Part] = {
        "codes": ComputedPart(byte, (rows, -(-columns // 2)), codes),
        "scales": ComputedPart(
            np.dtype(getattr(scale, "dtype", np.float32)),
            (rows, blocks),
            lambda start, stop: scales.decode(start, stop).reshape(stop - start, blocks),
        ),
    }
    if not symmetric:
        parts["zero_points"] = ComputedPart(byte, (rows, blocks), points)
    kind = Affine(
        4, block, "none" if symmetric else "uint8", str(getattr(scale, "dtype_name", "float32"))
    )
    return Tensor(table.name, (rows, columns), kind, parts)
