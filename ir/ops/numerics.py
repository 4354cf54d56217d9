"""Evaluations that compute wider than their inputs, or silently over infinities and NaN."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import numpy as np

from halfbyte.ir.ops.spec import Array, Context, Evaluate

CHUNK = 1 << 14
NARROW = frozenset({"float16", "bfloat16"})


def is_floating(array: Array) -> bool:
    """Whether an array holds floats of any width."""
    return "float" in array.dtype.name


def widened(array: Any) -> Array:
    """Return 16-bit floats as float32 and everything else as it is."""
    found: Array = np.asarray(array)
    return found.astype(np.float32) if found.dtype.name in NARROW else found


def doubled(array: Any) -> Array:
    """Return floats as float64 and everything else as it is."""
    found: Array = np.asarray(array)
    return found.astype(np.float64) if is_floating(found) else found


def quiet(evaluate: Evaluate) -> Evaluate:
    """Return an evaluate without warnings about infinities, NaN and overflow."""

    @wraps(evaluate)
    def silent(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        with np.errstate(all="ignore"):
            return evaluate(inputs, attributes, context)

    return silent


def by_chunks(function: Callable[[Array], Any], data: Array) -> Array:
    """Return `function(data)` in the dtype of data, piece by piece.

    What the function computes wider than its input then stays in the processor's cache.
    """
    if data.size <= CHUNK or not data.flags.c_contiguous:
        return np.asarray(function(data)).astype(data.dtype, copy=False)
    flat, result = data.reshape(-1), np.empty(data.size, data.dtype)
    for start in range(0, flat.size, CHUNK):
        piece = np.asarray(function(flat[start : start + CHUNK]))
        result[start : start + CHUNK] = piece.astype(data.dtype, copy=False)
    return result.reshape(data.shape)


def pointwise(function: Callable[..., Any], *names: str) -> Evaluate:
    """Return an evaluate of `function(*inputs, *attributes)`: 16-bit floats computed in float32.

    The result has the dtype of the first input.
    """

    @quiet
    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        given = [attributes[name] for name in names]
        if len(inputs) == 1:
            return [by_chunks(lambda data: function(widened(data), *given), np.asarray(inputs[0]))]
        values = [None if v is None else widened(v) for v in inputs]
        result = np.asarray(function(*values, *given))
        return [result.astype(np.asarray(inputs[0]).dtype, copy=False)]

    return evaluate
