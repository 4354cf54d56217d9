"""What a search of divisors sees of a group: samples of the weights and statistics of the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.graph import Graph
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.calibration.statistics import InputStatistics, pooled
from halfbyte.quant.transforms import LinearInput
from halfbyte.quant.transforms.fold import stored_encoding, weight_of
from halfbyte.quant.transforms.groups import EXPERT_LINEAR, Group

Float = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Matrix:
    """One matrix [out, in] that will be quantized, and the inputs it meets.

    start: its first row in the weight called `name`. moments: None where it met no input.
    """

    name: str
    tensor: Tensor
    start: int
    rows: int
    encoding: Encoding
    moments: InputStatistics | None

    def sample(self, wanted: int) -> Float:
        """Return `wanted` rows at even distances, all if it has no more."""
        wanted = min(wanted, self.rows)
        places = self.start + np.arange(wanted) * self.rows // max(wanted, 1)
        pieces = []
        for low, high in self.tensor.row_ranges():
            inside = places[(places >= low) & (places < high)]
            if len(inside):
                pieces.append(self.tensor.float32(low, high)[inside - low])
        return np.ascontiguousarray(np.concatenate(pieces))


@dataclass(frozen=True)
class GroupInput:
    """Matrices of a group that will be quantized, and the moments of all rows of its value.

    expert: the matrices' number in their stacks where each has divisors of its own, else None.
    """

    matrices: tuple[Matrix, ...]
    moments: InputStatistics
    expert: int | None = None


def gathered(
    graph: Graph,
    weights: Mapping[str, Tensor],
    group: Group,
    inputs: Sequence[LinearInput],
    encodings: Mapping[str, Encoding],
) -> list[GroupInput]:
    """Return what is known of a group: one entry, or one per expert with divisors of its own.

    Entries without statistics or without a matrix to quantize are left out.
    """
    plain: InputStatistics | None = None
    each: Sequence[InputStatistics | None] = ()
    for entry in inputs:
        if entry.x is not group.x:
            continue
        if isinstance(entry.statistics, list):
            each = entry.statistics
        else:
            plain = entry.statistics
    stacked = {node.inputs[1].name for node, _ in group.x.uses if node.op == EXPERT_LINEAR
               and node.inputs[1] is not None}  # fmt: skip
    matrices: list[list[Matrix]] = [[] for _ in range(max(1, group.source.experts))]
    for name in group.readers:
        tensor = weight_of(graph, weights, name)
        encoding = stored_encoding(tensor, name, encodings)
        if not encoding.is_quantized:
            continue
        count = tensor.shape[0] if name in stacked else 1
        rows = tensor.rows // count
        for index in range(count):
            moments = each[index] if name in stacked and each else plain
            made = Matrix(name, tensor, index * rows, rows, encoding, moments)
            matrices[index if group.source.experts else 0].append(made)
    if group.source.experts:
        return [
            GroupInput(tuple(found), found[0].moments, index)
            for index, found in enumerate(matrices)
            if found and found[0].moments is not None
        ]
    whole = plain if plain is not None else _summed(each)
    known = tuple(matrix for matrix in matrices[0] if matrix.moments is not None)
    return [GroupInput(known, whole)] if known and whole is not None else []


def _summed(each: Sequence[InputStatistics | None]) -> InputStatistics | None:
    return pooled([None if known is None else known.light() for known in each])


def by_source(values: Float64, group: Group) -> Float64:
    """Return the mean of `values` [K] over the channels that share a divisor: [size]."""
    size, channels = group.source.size, group.source.channels
    counts = np.bincount(channels, minlength=size)
    sums = np.bincount(channels, values, minlength=size)
    means: Float64 = sums.astype(np.float64) / np.maximum(counts, 1)
    return means


def largest_by_source(values: Float64, group: Group) -> Float64:
    """Return the largest of `values` [K] over the channels that share a divisor: [size]."""
    found = np.zeros(group.source.size)
    np.maximum.at(found, group.source.channels, values)
    return found
