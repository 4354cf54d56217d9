"""MatMulBnb4: 4-bit codes into a table of 16 values, times the largest magnitude of each block."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.converters.onnx.contrib.stored_blocks import require_room
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node
from halfbyte.ir.tensor import ComputedPart, Tensor

FP4, NF4 = 0, 1
# Quantiles of the normal distribution, scaled to [-1, 1]; sign and magnitude for FP4.
TABLES = {
    FP4: (
        *(0.0, 5.208333333e-03, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25),
        *(-0.0, -5.208333333e-03, -0.66666667, -1.0, -0.33333333, -0.5, -0.16666667, -0.25),
    ),
    NF4: (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
}


def lower(graph: Graph, node: Node) -> None:
    """Replace the node by halfbyte.Linear over values computed row by row.

    Raises:
        UnsupportedError: the weight is computed while the model runs, or the table is unknown.
    """
    at = Lowering(graph, node)
    rows, columns = int(at.required("N")), int(at.required("K"))
    block, kind = int(at.required("block_size")), int(at.required("quant_type"))
    if block < 1:
        raise at.refuse(f"block_size {block}")
    if kind not in TABLES:
        raise at.refuse(f"quant_type {kind}", [str(key) for key in TABLES])
    if not at.option("transB", 1):
        raise at.refuse("transB 0", ["1"])
    codes, magnitudes = at.stored(1), at.stored(2)
    require_room(codes, 1, -(-rows * columns // 2))
    require_room(magnitudes, 1, -(-rows * columns // block))
    table = np.asarray(TABLES[kind], np.float32)

    def values(start: int, stop: int) -> NDArray[Any]:
        first, last = start * columns, stop * columns
        packed = np.asarray(codes.numpy()).reshape(-1)[first // 2 : -(-last // 2)]
        # The high half of a byte comes first.
        halves = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
        found = table[halves[first % 2 :][: last - first]]
        scale = np.asarray(magnitudes.numpy(), np.float32).reshape(-1)
        return (found * scale[np.arange(first, last) // block]).reshape(stop - start, columns)

    part = ComputedPart(np.dtype(np.float32), (rows, columns), values)
    weight = Tensor(codes.name, (rows, columns), Dense("float32"), {"data": part})
    at.finish(at.add("Linear", at.need(0), at.weight(weight), domain=HALFBYTE_DOMAIN))
