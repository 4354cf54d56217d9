"""Elements of 2, 4 and 6 bits that lie one after the other, low bits first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.tensor import ComputedPart, FilePart

# bits: (bytes of a unit, elements in it)
UNITS = {2: (1, 4), 4: (1, 2), 6: (3, 4)}


def unpack_bits(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return the codes in whole units of packed bytes, one per byte."""
    width, count = UNITS[bits]
    units = packed.reshape(-1, width).astype(np.uint32)
    words = units[:, 0]
    for index in range(1, width):
        words = words | units[:, index] << np.uint32(8 * index)
    shifts = np.arange(count, dtype=np.uint32) * np.uint32(bits)
    codes = words[:, None] >> shifts & np.uint32((1 << bits) - 1)
    return np.asarray(codes, np.uint8).reshape(-1)


def packed_part(
    source: FilePart, bits: int, dtype: np.dtype[Any], rows: int, columns: int
) -> ComputedPart:
    """Return rows x columns elements of `dtype` unpacked, as they are read, from packed bytes."""
    width, count = UNITS[bits]
    total = source.shape[0]

    def read(start: int, stop: int) -> NDArray[Any]:
        first, last = start * columns, max(start, stop) * columns
        unit = first // count
        low, high = unit * width, -(-last // count) * width
        raw = source.read(low, min(high, total))
        if len(raw) % width:
            raw = np.concatenate([raw, np.zeros(-len(raw) % width, np.uint8)])
        codes = unpack_bits(raw, bits)[first - unit * count : last - unit * count]
        return codes.view(dtype).reshape(-1, columns)

    return ComputedPart(dtype, (rows, columns), read)
