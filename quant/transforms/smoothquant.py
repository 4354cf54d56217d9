"""SmoothQuant: range moves from activations into weights (arXiv 2211.10438).

Divisors are max|x|^alpha / max|w|^(1 - alpha) for each channel, over the tokens and over the rows
of all linear layers that read it; folded in the same groups as AWQ's. Channels that no token or no
weight uses keep 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.graph import Graph
from halfbyte.quant.solver import Solver
from halfbyte.quant.transforms import Folded, LinearInput, TransformOptions
from halfbyte.quant.transforms.groups import Group
from halfbyte.quant.transforms.inputs import GroupInput, Matrix, largest_by_source
from halfbyte.quant.transforms.layer import Keep, fold_layer

Float = NDArray[np.float32]


class SmoothQuant:
    """The transform `smoothquant`."""

    scope: Literal["layer"] = "layer"

    def fold(
        self,
        graph: Graph,
        inputs: Sequence[LinearInput],
        encodings: Mapping[str, Encoding],
        options: TransformOptions,
        solver: Solver,
    ) -> Folded:
        """Return the layer's weights with ranges of the activations folded in."""

        def choose(known: GroupInput, group: Group, keep: Keep) -> Float | None:
            return keep(smoothing(known, group, options.alpha))

        return fold_layer(graph, inputs, encodings, choose)


def smoothing(known: GroupInput, group: Group, alpha: float) -> Float:
    """Return the divisors [size] of a group."""
    reach = np.maximum(np.abs(known.moments.low), np.abs(known.moments.high))
    inputs = largest_by_source(reach.astype(np.float64), group)
    columns = np.max([_largest(matrix) for matrix in known.matrices], axis=0)
    weights = largest_by_source(columns.astype(np.float64), group)
    usable = (inputs > 0) & (weights > 0) & np.isfinite(inputs)
    x, w = np.where(usable, inputs, 1.0), np.where(usable, weights, 1.0)
    return np.asarray(np.where(usable, x**alpha / w ** (1 - alpha), 1.0), np.float32)


def _largest(matrix: Matrix) -> Float:
    """Return the largest |w| of each column, over rows read a range at a time."""
    found = np.zeros(matrix.tensor.columns, np.float32)
    stop = matrix.start + matrix.rows
    for low, high in matrix.tensor.row_ranges():
        first, last = max(low, matrix.start), min(high, stop)
        if first < last:
            values = np.abs(matrix.tensor.float32(first, last))
            np.maximum(found, values.max(axis=0), out=found)
    return found
