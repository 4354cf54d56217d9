"""GPTQ into codebooks of points: a block of columns is rounded as one step.

With the error of a whole block E = (W - Q) U_bb^-1, later columns move by -E U[b, rest], which is
what rounding its columns one after the other would have done.
"""

from __future__ import annotations

import numpy as np

from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.encodings.ggml_iq import BLOCK, IQBlock
from halfbyte.quant.algorithms.gptq_problem import Float, Problem
from halfbyte.quant.solver import Solver


def solve_points(
    weight: Float, encoding: IQBlock, problem: Problem, solver: Solver
) -> dict[str, Array]:
    """Return the parts for weight [rows, columns], columns in their own order."""
    place = np.argsort(problem.order)
    columns = weight.shape[1]
    assert np.array_equal(place, np.arange(columns))
    values = weight.copy()
    pieces = []
    for low in range(0, columns, BLOCK):
        high = low + BLOCK
        x = np.ascontiguousarray(values[:, low:high])
        importance = problem.weight[low:high] / problem.weight[low:high].max()
        parts = encoding.encode(x, importance)
        pieces.append(parts["data"])
        if high < columns:
            gap = x - encoding.decode(parts, BLOCK).astype(np.float32)
            inverse = np.linalg.inv(problem.factor[low:high, low:high].astype(np.float64))
            pushed = (inverse @ problem.factor[low:high, high:]).astype(np.float32)
            values[:, high:] -= solver.product(gap, np.ascontiguousarray(pushed.T))
    return {"data": np.ascontiguousarray(np.concatenate(pieces, axis=1))}
