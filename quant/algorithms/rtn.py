"""Round to nearest: each block by the encoding's own search, no calibration data.

For ggml types that is llama.cpp's quantizer (importance-weighted where a matrix is given).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.encoding import Array, Encoding, Unpacked
from halfbyte.ir.streamed_parts import Large, Small, computed_parts, naming
from halfbyte.ir.tensor import Tensor


def requantize(
    tensor: Tensor, encoding: Encoding, importance: NDArray[np.float32] | None = None
) -> Tensor:
    """Return the tensor in `encoding`, its rows encoded when they are read.

    importance: [columns] float32, finite and not negative.

    Raises:
        QuantizationError: the rows have a wrong length, or importance does not fit; while reading:
            a weight is not finite or leaves the encoding's range.
    """
    with naming(tensor.name):
        specs = encoding.part_specs(tensor.rows, tensor.columns)
    if importance is not None:
        _check_importance(tensor, importance)
    small: Small
    if len(specs) == 1:
        small, large = _no_small_parts, _whole_blocks(tensor, encoding, importance)
    else:
        small, large = _scales_first(tensor, encoding, importance)
    parts = computed_parts(specs, tensor.columns, small, large, encoding.block_shape[0])
    return replace(tensor, encoding=encoding, parts=parts)


def _check_importance(tensor: Tensor, importance: NDArray[np.float32]) -> None:
    if importance.shape != (tensor.columns,):
        found = "x".join(map(str, importance.shape))
        rule = f"importance of {found} values was given, {tensor.columns} are required"
        raise QuantizationError(tensor.name, rule)
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise QuantizationError(tensor.name, "importance must be finite and not negative")


def _no_small_parts(start: int, stop: int) -> dict[str, Array]:
    return {}


def _whole_blocks(
    tensor: Tensor, encoding: Encoding, importance: NDArray[np.float32] | None
) -> Large:
    def large(start: int, stop: int, known: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        with naming(tensor.name):
            dense = isinstance(encoding, Dense)
            rows = tensor.decode(start, stop) if dense else tensor.float32(start, stop)
            (values,) = encoding.encode(rows, importance).values()
            return values, {}

    return large


def _scales_first(
    tensor: Tensor, encoding: Encoding, importance: NDArray[np.float32] | None
) -> tuple[Small, Large]:
    """Return readers that fit once per row and assign codes on the scales already fitted."""

    def small(start: int, stop: int) -> dict[str, Array]:
        with naming(tensor.name):
            scales = encoding.fit(tensor.float32(start, stop), importance)
            return encoding.pack_scales(scales, tensor.columns)

    def large(start: int, stop: int, known: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        with naming(tensor.name):
            rows = tensor.float32(start, stop)
            if known:
                scales = encoding.unpack_scales(known, tensor.columns)
            else:
                scales = encoding.fit(rows, importance)
            parts = encoding.pack(Unpacked(encoding.assign(rows, scales), scales))
            return parts.pop(next(iter(parts))), parts

    return small, large
