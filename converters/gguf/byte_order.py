"""Tensor data of big-endian GGUF files, as the little-endian bytes that encodings expect.

ggml stores every field in the machine's own order, so only fields wider than a byte differ. A block
is converted by one permutation of its bytes. Types whose fields ggml reads in several widths are
left out.

Source: block structures in ggml/src/ggml-common.h of ggml.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.gguf.ggml_types import GgmlType
from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.tensor import ComputedPart, Part

WIDE_FIELDS: dict[str, tuple[tuple[int, int], ...]] = {
    "Q4_0": ((0, 2),),
    "Q4_1": ((0, 2), (2, 2)),
    "Q5_0": ((0, 2), (2, 4)),
    "Q5_1": ((0, 2), (2, 2), (4, 4)),
    "Q8_0": ((0, 2),),
    "Q2_K": ((80, 2), (82, 2)),
    "Q3_K": ((108, 2),),
    "Q4_K": ((0, 2), (2, 2)),
    "Q5_K": ((0, 2), (2, 2)),
    "Q6_K": ((208, 2),),
    "IQ4_NL": ((0, 2),),
    "IQ4_XS": ((0, 2), (2, 2)),
    "TQ1_0": ((52, 2),),
    "TQ2_0": ((64, 2),),
    "MXFP4": (),
    "NVFP4": (),
    "Q1_0": ((0, 2),),
    "Q2_0": ((0, 2),),
}
"""(offset, bytes) of each field wider than one byte, per block."""


def block_permutation(kind: GgmlType) -> NDArray[np.intp]:
    """Return for each byte of a little-endian block its place in the big-endian block."""
    order = np.arange(kind.block_bytes)
    fields = ((0, kind.block_bytes),) if kind.dtype_name else WIDE_FIELDS[kind.name]
    for start, width in fields:
        order[start : start + width] = order[start : start + width][::-1]
    return order


def swapped_part(raw: Part, kind: GgmlType, dtype: np.dtype[Any], where: str) -> ComputedPart:
    """Return a part in this machine's order over big-endian bytes, converted on each read.

    raw: [rows, row bytes] uint8; dtype: uint8 for block types.

    Raises:
        UnsupportedError: the fields of the type are not in the table.
    """
    if not kind.dtype_name and kind.name not in WIDE_FIELDS:
        raise UnsupportedError(f"{kind.name} in a big-endian file", where, sorted(WIDE_FIELDS))
    order = block_permutation(kind)
    rows, row_bytes = raw.shape

    def convert(start: int, stop: int) -> Array:
        taken = np.asarray(raw.read(start, stop)).reshape(-1, kind.block_bytes)
        swapped = np.ascontiguousarray(taken[:, order])
        return swapped.reshape(-1, row_bytes).view(dtype) if row_bytes else taken.view(dtype)

    return ComputedPart(dtype, (rows, row_bytes // dtype.itemsize), convert)
