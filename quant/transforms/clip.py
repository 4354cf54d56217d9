"""AWQ's search of ranges: each group of a row is limited where that lowers the output error.

Of the limits 1, 0.95, ... 0.55 times the group's range, the one with the least error of the group's
part of the output, through the hessian of the group's own channels. Weights beyond the limits are
set to them, so that any rounding that follows takes the smaller range. For affine encodings; the
others search their scales themselves. Queries and keys are left, as in the paper's code: their
product is what matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.calibration.statistics import InputStatistics
from halfbyte.quant.solver import Solver
from halfbyte.quant.transforms import Folded, Found, LinearInput
from halfbyte.quant.transforms.fold import weight_of
from halfbyte.quant.transforms.groups import EXPERT_LINEAR, LINEAR
from halfbyte.quant.transforms.rounding import OutputError, group_width, try_rounded
from halfbyte.quant.transforms.scaled import Change, changed

Float = NDArray[np.float32]
LIMITS = [1 - step / 20 for step in range(10)]
LEFT = frozenset({Role.ATTENTION_QUERY, Role.ATTENTION_KEY})
CHUNK_VALUES = 1 << 20


def clipped(
    graph: Graph,
    folded: Folded,
    inputs: Sequence[LinearInput],
    encodings: Mapping[str, Encoding],
    solver: Solver,
) -> Folded:
    """Return `folded` with the weights of linear layers limited group by group."""
    limits: dict[str, tuple[Float, Float]] = {}
    by_expert = {entry.x for entry in inputs if isinstance(entry.statistics, list)}
    for entry in inputs:
        each, divisor = entry.statistics, folded.divisors.get(entry.x.name)
        ops = {LINEAR, EXPERT_LINEAR} - ({EXPERT_LINEAR} if entry.x in by_expert else set())
        if isinstance(each, list):
            ops = {EXPERT_LINEAR}
        for name in _readers(entry.x, ops):
            tensor, encoding = weight_of(graph, folded.weights, name), encodings.get(name)
            if not isinstance(encoding, Affine) or tensor.role in LEFT:
                continue
            moments = each if isinstance(each, list) else [each]
            limits[name] = _limits(tensor, encoding, moments, divisor, solver)
    return limited(graph, folded, encodings, limits)


def limited(
    graph: Graph,
    folded: Folded,
    encodings: Mapping[str, Encoding],
    limits: Mapping[str, tuple[Float, Float]],
) -> Folded:
    """Return `folded` with the ranges of groups of columns limited, [rows, groups] each."""
    weights = dict(folded.weights)
    for name, (low, high) in limits.items():
        tensor = weight_of(graph, folded.weights, name)
        width = group_width(encodings[name], tensor.columns)
        weights[name] = changed(tensor, Change(low=low, high=high, group_size=width))
    return replace(folded, weights=weights, found=Found(folded.found.factors, dict(limits)))


def _readers(x: Value, ops: set[str]) -> list[str]:
    """Return the weights that nothing but linear layers over x of these kinds read."""
    found: dict[str, None] = {}
    for node, index in x.uses:
        weight = node.inputs[1] if node.op in ops and index == 0 else None
        if weight is None or weight.constant is None:
            continue
        if all(user.op in ops and user.inputs[0] is x for user, _ in weight.uses):
            found[weight.name] = None
    return list(found)


def _limits(
    tensor: Tensor,
    encoding: Affine,
    moments: Sequence[InputStatistics | None],
    divisor: Float | None,
    solver: Solver,
) -> tuple[Float, Float]:
    """Return the lowest and highest value of every group: [rows, groups] each."""
    columns, rows = tensor.columns, tensor.rows // len(moments)
    groups = -(-columns // group_width(encoding, columns))
    low = np.full((tensor.rows, groups), -np.inf, np.float32)
    high = -low
    for index, known in enumerate(moments):
        if known is None:
            continue
        own = divisor if divisor is None or divisor.ndim == 1 else divisor[index]
        error = OutputError(known, solver)
        error = error if own is None else error.divided(own)
        for start, stop in _chunks(index * rows, (index + 1) * rows, columns):
            values = tensor.float32(start, stop)
            low[start:stop], high[start:stop] = best_limits(values, encoding, error)
    return low, high


def _chunks(start: int, stop: int, columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, CHUNK_VALUES // max(1, columns))
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def best_limits(values: Float, encoding: Affine, error: OutputError) -> tuple[Float, Float]:
    """Return the limits of each group of `values` [rows, K] with the least error.

    Groups that are best left alone get their own range.
    """
    columns = values.shape[1]
    width = group_width(encoding, columns)
    starts = list(range(0, columns, width))
    parts = [error.of_columns(start, min(start + width, columns)) for start in starts]
    low, high = np.minimum.reduceat(values, starts, axis=1), np.maximum.reduceat(values, starts, 1)
    if encoding.symmetric:
        high = np.maximum(np.abs(low), np.abs(high))
        low = -high
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    spread = np.arange(columns) // width
    best = np.ones(low.shape, np.float32)
    least = np.full(low.shape, np.inf)
    for limit in LIMITS:
        factor = np.float32(limit)
        inside = np.clip(values, (low * factor)[:, spread], (high * factor)[:, spread])
        found = try_rounded(encoding, inside)
        if found is None:
            continue
        difference = found - values
        errors = np.stack(
            [
                part.of_rows(difference[:, start : start + width])
                for part, start in zip(parts, starts, strict=True)
            ],
            axis=1,
        )
        better = errors < least
        best[better], least[better] = factor, errors[better]
    return low * best, high * best
