"""GPTQ into codebooks of points: the columns of a point are rounded as one step.

The scales of 256 columns are those of the encoding's own search on what the values have become.
Points are then chosen one after the other, later columns making up for the error of earlier ones;
where a row's points from the search itself cost less, they stay. With the error of some columns
E = (W - Q) U_bb^-1, later columns move by -E U[b, rest], as rounding one by one would have done.
"""

from __future__ import annotations

import numpy as np

from halfbyte.ir.encodings.encoding import Array, Scales, Unpacked
from halfbyte.ir.encodings.ggml_iq import BLOCK, IQBlock
from halfbyte.ir.encodings.grid import values_of
from halfbyte.quant.algorithms.gptq_problem import Float, Problem
from halfbyte.quant.solver import Solver

POINT = 8  # columns whose signs, or whose point, belong together


def solve_points(
    weight: Float, encoding: IQBlock, problem: Problem, solver: Solver
) -> dict[str, Array]:
    """Return the parts for weight [rows, columns]; the problem keeps the columns' order."""
    values = np.ascontiguousarray(weight.T)
    pieces = []
    for low in range(0, len(values), BLOCK):
        high = low + BLOCK
        factor = np.ascontiguousarray(problem.factor[low:high, low:high])
        cross = problem.cross
        if cross is not None:
            cross = np.ascontiguousarray(cross[low:high, low:high])
        importance = problem.weight[low:high] / problem.weight[low:high].max()
        block = values[low:high].copy()
        searched = encoding.encode(np.ascontiguousarray(block.T), importance)
        scales = encoding.unpack(searched, BLOCK).scales
        codes, error = _one_after_other(encoding, scales, block.copy(), factor, cross, solver)
        stepwise = encoding.pack(Unpacked(codes, scales))
        whole = np.ascontiguousarray(encoding.decode(searched, BLOCK).T)
        better = error < solver.feed_back(block, factor, 0, whole, cross)
        data = np.where(better[:, None], stepwise["data"], searched["data"])
        pieces.append(data)
        chosen = np.ascontiguousarray(encoding.decode({"data": data}, BLOCK).T)
        solver.feed_back(values, problem.factor, low, chosen, problem.cross)
    return {"data": np.ascontiguousarray(np.concatenate(pieces, axis=1))}


def _one_after_other(
    encoding: IQBlock,
    scales: Scales,
    block: Float,
    factor: Float,
    cross: Float | None,
    solver: Solver,
) -> tuple[Array, Array]:
    """Return codes [rows, 256] and GPTQ's error [rows]; block [256, rows] is used up."""
    step = POINT * int(getattr(encoding, "SHIFTED", 1))
    rows = block.shape[1]
    codes = np.empty((rows, BLOCK), np.int32)
    error = np.zeros(rows)
    for low in range(0, BLOCK, step):
        columns = slice(low, low + step)
        scale = scales.scale[:, low // scales.group_size]
        wanted = np.zeros((rows, step), np.float32)
        with np.errstate(over="ignore"):
            np.divide(block[columns].T, scale[:, None], out=wanted, where=scale[:, None] != 0)
        codes[:, columns] = _nearest(encoding, wanted)
        part = Unpacked(codes[:, columns], Scales(scale[:, None], step))
        chosen = np.ascontiguousarray(values_of(part).T)
        error += solver.feed_back(block, factor, low, chosen, cross)
    return codes, error


def _nearest(encoding: IQBlock, wanted: Float) -> Array:
    """Return the codes nearest to wanted [rows, step], in units of the scale."""
    rows, step = wanted.shape
    per_block = BLOCK // step
    padded = np.zeros((-(-rows // per_block) * per_block, step), np.float32)
    padded[:rows] = wanted
    lying = padded.reshape(-1, BLOCK)
    ones = Scales(np.ones((len(lying), 1), np.float32), BLOCK)
    return encoding.assign(lying, ones).reshape(-1, step)[:rows]
