"""Round to nearest: each block by the encoding's own search, no calibration data.

For ggml types that is llama.cpp's quantizer (importance-weighted where a matrix is given).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.encoding import Array, Encoding, PartSpec, Unpacked
from halfbyte.ir.encodings.reencode import reencoded
from halfbyte.ir.streamed_parts import Large, Small, computed_parts, naming
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.algorithms.shared_rows import Fit, fitter

Weights = NDArray[np.float32] | None
Made = Callable[[int, int, Weights], dict[str, Array]]
Encode = Callable[[Encoding, Array, Weights], dict[str, Array]]


def requantize(
    tensor: Tensor,
    encoding: Encoding,
    importance: NDArray[np.float32] | None = None,
    compat: bool = False,
) -> Tensor:
    """Return the tensor in `encoding`, its rows encoded when they are read.

    importance: [columns] float32, or [matrices, columns] for rows of as many matrices one after the
    other; finite and not negative. compat: llama.cpp's bytes also where its encoder has a fault.

    Raises:
        QuantizationError: the rows have a wrong length, or importance does not fit; while reading:
            a weight is not finite or leaves the encoding's range.
    """

    def blocks(start: int, stop: int, weights: Weights) -> dict[str, Array]:
        parts = tensor.read(start, stop)
        return reencoded(tensor.encoding, parts, tensor.columns, encoding, weights, compat)

    return _made_of(blocks, tensor, encoding, importance)


def encoded_with(encode: Encode, tensor: Tensor, encoding: Encoding, importance: Weights) -> Tensor:
    """Return the tensor in `encoding`; encode(encoding, rows, importance) makes whole blocks.

    Raises:
        QuantizationError: as `requantize`.
    """

    def blocks(start: int, stop: int, weights: Weights) -> dict[str, Array]:
        return encode(encoding, tensor.float32(start, stop), weights)

    return _made_of(blocks, tensor, encoding, importance)


def _made_of(blocks: Made, tensor: Tensor, encoding: Encoding, importance: Weights) -> Tensor:
    with naming(tensor.name):
        specs = encoding.part_specs(tensor.rows, tensor.columns)
    if importance is not None:
        _check_importance(tensor, importance)
    slices = _Slices(tensor.rows, importance, specs)
    small: Small
    if len(specs) == 1:
        small, large = _no_small_parts, _whole_blocks(tensor, slices, blocks)
    else:
        small, large = _scales_first(tensor, encoding, slices, fitter(tensor, encoding))
    parts = computed_parts(specs, tensor.columns, small, large, encoding.block_shape[0])
    return replace(tensor, encoding=encoding, parts=parts)


def _check_importance(tensor: Tensor, importance: NDArray[np.float32]) -> None:
    columns = importance.shape[-1:] == (tensor.columns,)
    matrices = importance.shape[0] if importance.ndim == 2 else 1
    if importance.ndim not in (1, 2) or not columns or not matrices or tensor.rows % matrices:
        found = "x".join(map(str, importance.shape))
        rule = f"importance of {found} values was given, {tensor.columns} are required"
        raise QuantizationError(tensor.name, rule)
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise QuantizationError(tensor.name, "importance must be finite and not negative")


class _Slices:
    """Ranges of rows, cut where the matrix and with it the importance changes."""

    def __init__(self, rows: int, importance: Weights, specs: dict[str, PartSpec]) -> None:
        self._importance = importance
        self._specs = specs
        matrices = 1 if importance is None or importance.ndim == 1 else len(importance)
        self._step = max(1, rows // matrices)

    def _of_rows(self, start: int, stop: int) -> Iterator[tuple[int, int, Weights]]:
        importance = self._importance
        if importance is None or importance.ndim == 1:
            yield start, stop, importance
            return
        while start < stop:
            matrix = start // self._step
            end = min(stop, (matrix + 1) * self._step)
            yield start, end, importance[matrix]
            start = end

    def joined(self, start: int, stop: int, make: Made) -> dict[str, Array]:
        """Return the parts that `make` gives for each slice, put together."""
        made = [make(a, b, weights) for a, b, weights in self._of_rows(start, stop)]
        if len(made) == 1:
            return made[0]
        return {
            name: np.concatenate([parts[name] for parts in made])
            if self._specs[name].per_row
            else first
            for name, first in made[0].items()
        }


def _no_small_parts(start: int, stop: int) -> dict[str, Array]:
    return {}


def _whole_blocks(tensor: Tensor, slices: _Slices, blocks: Made) -> Large:
    def large(start: int, stop: int, known: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        with naming(tensor.name):
            (values,) = slices.joined(start, stop, blocks).values()
            return values, {}

    return large


def _scales_first(
    tensor: Tensor, encoding: Encoding, slices: _Slices, fit: Fit
) -> tuple[Small, Large]:
    """Return readers that fit once per row and assign codes on the scales already fitted."""

    def scales_of(start: int, stop: int, weights: Weights) -> dict[str, Array]:
        scales = fit(tensor.float32(start, stop), start, weights)
        return encoding.pack_scales(scales, tensor.columns)

    def fitted(start: int, stop: int, weights: Weights) -> dict[str, Array]:
        rows = tensor.float32(start, stop)
        scales = fit(rows, start, weights)
        return encoding.pack(Unpacked(encoding.assign(rows, scales), scales))

    def small(start: int, stop: int) -> dict[str, Array]:
        with naming(tensor.name):
            return slices.joined(start, stop, scales_of)

    def large(start: int, stop: int, known: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        with naming(tensor.name):
            if known:
                rows = tensor.float32(start, stop)
                scales = encoding.unpack_scales(known, tensor.columns)
                parts = encoding.pack(Unpacked(encoding.assign(rows, scales), scales))
            else:
                parts = slices.joined(start, stop, fitted)
            return parts.pop(next(iter(parts))), parts

    return small, large
