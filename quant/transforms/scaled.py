"""Weights in float32 or their own float type, computed from others while they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.encoding import Encoding, PartSpec
from halfbyte.ir.streamed_parts import computed_part, row_step
from halfbyte.ir.tensor import Tensor

Float = NDArray[np.float32]
FLOAT32 = Dense("float32")


@dataclass(frozen=True)
class Change:
    """What is done to a weight of one or several matrices [out, in].

    columns: multiplies columns, [in] or [matrices, in]. divided: divides columns. rows: divides
    rows, [matrices * out]. low, high: limits of each group of `group_size` columns, of shape
    [matrices * out, groups], applied last.
    """

    columns: Float | None = None
    divided: Float | None = None
    rows: Float | None = None
    low: Float | None = None
    high: Float | None = None
    group_size: int = 0

    def __call__(self, values: Float, start: int, matrix_rows: int) -> Float:
        """Return values [n, in], rows from `start` on, changed; one rounding per step."""
        stop = start + len(values)
        if self.columns is not None:
            values = values * _of_rows(self.columns, start, stop, matrix_rows)
        if self.divided is not None:
            values = values / _of_rows(self.divided, start, stop, matrix_rows)
        if self.rows is not None:
            values = values / self.rows[start:stop, None]
        if self.low is not None and self.high is not None:
            spread = np.arange(values.shape[1]) // self.group_size
            values = np.clip(values, self.low[start:stop, spread], self.high[start:stop, spread])
        return values


def _of_rows(factors: Float, start: int, stop: int, matrix_rows: int) -> Float:
    if factors.ndim == 1:
        return factors
    return np.asarray(factors[np.arange(start, stop) // matrix_rows])


def changed(tensor: Tensor, change: Change, target: Encoding = FLOAT32) -> Tensor:
    """Return a dense tensor with `change` applied, in target's type, rows made as they are read."""
    matrix_rows = tensor.shape[-2] if len(tensor.shape) > 1 else 1

    def rows(start: int, stop: int) -> Float:
        return change(tensor.float32(start, stop), start, matrix_rows)

    return computed(tensor, rows, target)


def computed(
    tensor: Tensor, rows: Callable[[int, int], Float], target: Encoding = FLOAT32
) -> Tensor:
    """Return a dense tensor like `tensor` whose rows [start, stop) are what `rows` returns."""
    specs = target.part_specs(tensor.rows, tensor.columns)
    (name, spec), *_ = specs.items()

    def part(start: int, stop: int) -> NDArray[np.generic]:
        return np.asarray(target.encode(rows(start, stop))[name])

    made = computed_part(PartSpec(spec.dtype, spec.shape), row_step(tensor.columns), part)
    return replace(tensor, encoding=target, parts={name: made})
