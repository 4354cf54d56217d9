"""Mixtures of experts on the CPU: each expert's rows of a stacked weight meet the rows sent there.

A row of a product depends neither on the rows beside it nor on the number of threads, so results
do not change with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.ops.experts import choices
from halfbyte.ir.part_views import matrix_of
from halfbyte.ir.tensor import Tensor
from halfbyte.kernels import cpu as kernels
from halfbyte.runtime.backend import BoundNode, Step
from halfbyte.runtime.cpu_slots import floats


@dataclass(eq=False)
class Experts:
    """The matrices of a stacked weight as the kernels take them, each made on first use."""

    stack: Tensor
    upload: Callable[[Tensor], kernels.LinearWeight]
    _held: dict[int, kernels.LinearWeight] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Return how many there are."""
        return self.stack.shape[0]

    def __getitem__(self, expert: int) -> kernels.LinearWeight:
        """Return the matrix of one expert."""
        found = self._held.get(expert)
        if found is None:
            found = self._held[expert] = self.upload(matrix_of(self.stack, expert))
        return found


def groups(numbers: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each expert that occurs and the places where it does, in order."""
    order = np.argsort(numbers, kind="stable")
    ends = np.flatnonzero(np.diff(numbers[order], append=-1)) + 1
    start = 0
    for end in ends.tolist():
        yield int(numbers[order[start]]), order[start:end]
        start = end


@dataclass(eq=False)
class ExpertProduct:
    """One bound ExpertLinear."""

    experts: Experts
    x: NDArray[np.float32]
    chosen: NDArray[np.int64]
    out: NDArray[np.float32]
    compute: Any

    def __post_init__(self) -> None:
        """Make the views of rows that every run needs."""
        self.flat = self.x.reshape(-1, self.x.shape[-1])
        self.rows_out = self.out.reshape(-1, self.out.shape[-1])
        self.is_one_token = self.chosen.size == self.chosen.shape[-1]
        if self.is_one_token:
            self.row_views, self.out_views = list(self.flat), list(self.rows_out)

    def __call__(self) -> None:
        """Multiply every row by its experts' matrices."""
        if self.is_one_token:
            self._one_token(self.chosen.reshape(-1).tolist())
            return
        flat, rows = choices(self.x, self.chosen, self.experts.count)
        for expert, places in groups(self.chosen.reshape(-1)):
            weight = self.experts[expert]
            self.rows_out[places] = kernels.linear(flat[rows[places]], weight, None, self.compute)

    def _one_token(self, numbers: list[int]) -> None:
        """Do the same without ordering: a token meets each of its experts once."""
        if min(numbers) < 0 or max(numbers) >= self.experts.count:
            choices(self.x, self.chosen, self.experts.count)
        weights = [self.experts[expert] for expert in numbers]
        if len(self.row_views) == 1:
            kernels.linear(self.row_views[0], weights, None, self.compute, self.out_views)
            return
        for row, weight, out in zip(self.row_views, weights, self.out_views, strict=True):
            kernels.linear(row, weight, None, self.compute, out)


def bind_experts(backend: Any, bound: BoundNode) -> Step | None:
    """ExpertLinear over a stored weight."""
    x, weight, chosen = bound.inputs
    if x is None or weight is None or chosen is None or not floats(x, bound.outputs[0]):
        return None
    stack = weight.tensor
    if stack is None or not backend.takes(stack) or chosen.dtype != "int64":
        return None
    experts = backend.packed.get(stack, "experts", lambda: Experts(stack, backend.upload))
    return ExpertProduct(
        experts, x.value(), chosen.value(), bound.outputs[0].value(), backend.compute
    )


BINDERS: dict[str, Callable[[Any, BoundNode], Step | None]] = {
    "halfbyte.ExpertLinear": bind_experts,
}
