"""Linear over codes of up to 4 bits as onnxruntime's MatMulNBits; wider codes it multiplies slowly.

Codes are nibbles, two to a byte along the row, low bits first; 8 stands for zero where there are no
zero points.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from halfbyte.converters.onnx.lowering.dequantized import scales_of
from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.converters.onnx.nbits import CENTER, block_size
from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.affine import pack_bits
from halfbyte.ir.encodings.dense import FLOATS, Dense
from halfbyte.ir.encodings.encoding import Array, Grid, PartSpec
from halfbyte.ir.graph import Value
from halfbyte.ir.part_views import ReshapedPart
from halfbyte.ir.streamed_parts import computed_part, row_step
from halfbyte.ir.tensor import Part, Tensor

ORT = "ort"
BITS, LEVELS = 4, 15


def matmul_nbits(rewriter: Rewriter, data: Value, weight: Value, dtype: str) -> Value | None:
    """Return data times the weight's transpose, or None where MatMulNBits does not fit.

    data: [..., columns]; weight: encoded [rows, columns].
    """
    tensor = weight.constant
    if rewriter.flavour != ORT or tensor is None or dtype not in ("float32", "float16"):
        return None
    grid = tensor.encoding.grid
    if grid is None or not _fits(grid):
        return None
    columns = tensor.columns
    block = (
        0
        if columns % (grid.group_size or columns)
        else block_size(columns, grid.group_size or columns)
    )
    if not block:
        return None
    inputs = [data, *_constants(rewriter, tensor, grid, block, weight.name, dtype)]
    shape = None if data.shape is None else (*data.shape[:-1], tensor.rows)
    return rewriter.add_foreign(
        "MatMulNBits",
        *inputs,
        dtype=dtype,
        shape=shape,
        K=columns,
        N=tensor.rows,
        bits=BITS,
        block_size=block,
    )


def _fits(grid: Grid) -> bool:
    placed = grid.zero == "fixed" and grid.low - grid.zero_point >= -CENTER
    placed = placed and grid.high - grid.zero_point < CENTER
    stored = grid.zero == "integer" and grid.low == 0 and grid.high <= LEVELS
    return (placed or stored) and not grid.act_order and not grid.composed_scales


def _constants(
    rewriter: Rewriter, tensor: Tensor, grid: Grid, block: int, name: str, dtype: str
) -> list[Value]:
    """Return codes [rows, blocks, bytes], scales [rows, blocks] and zero points [rows, bytes].

    Scales are in the dtype that is computed in: readers look for constants, not for casts of some.
    """
    rows, columns = tensor.rows, tensor.columns
    blocks, times = columns // block, (grid.group_size or columns) // block
    shift = CENTER - grid.zero_point if grid.zero == "fixed" else 0

    def codes(start: int, stop: int) -> Array:
        unpacked = tensor.encoding.unpack(tensor.read(start, stop), columns)
        return pack_bits((unpacked.codes + shift).astype(np.uint8), BITS)

    def scales(start: int, stop: int) -> Array:
        found = scales_of(tensor, start, stop).scale.astype(FLOATS[dtype])
        return np.repeat(found, times, axis=1)

    def zeros(start: int, stop: int) -> Array:
        found = scales_of(tensor, start, stop).zero_point
        assert found is not None
        if found.size and found.max() > LEVELS:
            raise QuantizationError(tensor.name, f"has zero points above {LEVELS}")
        return pack_bits(np.repeat(found, times, axis=1).astype(np.uint8), BITS)

    def constant(what: str, kind: str, width: int, function: Callable[[int, int], Array]) -> Value:
        step = row_step(columns, tensor.encoding.block_shape[0])
        spec = PartSpec(FLOATS.get(kind, np.dtype(np.uint8)), (rows, width))
        part: Part = computed_part(spec, step, function)
        shape: tuple[int, ...] = (rows, width)
        if what == "codes":
            shape = (rows, blocks, block // 2)
            part = ReshapedPart(part, (rows * blocks, block // 2))
        held = Tensor(f"{name}.{what}", shape, Dense(kind), {"data": part})
        return rewriter.weight(held, held.name, tensor.name)

    key = (rewriter.hold(tensor), block, dtype)
    found = [
        rewriter.once(("codes", *key), lambda: constant("codes", "uint8", columns // 2, codes)),
        rewriter.once(("scales", *key), lambda: constant("scales", dtype, blocks, scales)),
    ]
    if grid.zero == "integer":
        width = -(-blocks // 2)
        found.append(
            rewriter.once(("zeros", *key), lambda: constant("zero_points", "uint8", width, zeros))
        )
    return found
