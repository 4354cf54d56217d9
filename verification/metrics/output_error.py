"""Differences between two arrays of the same shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def summarize(reference: NDArray[Any], candidate: NDArray[Any]) -> dict[str, float]:
    """Return cosine, the largest absolute error, and that error over the largest |reference|.

    Both arrays have one shape, whatever it is.
    """
    first = reference.astype(np.float64).ravel()
    second = candidate.astype(np.float64).ravel()
    if not first.size:
        return {"cosine": 1.0, "max_abs_error": 0.0, "max_rel_error": 0.0}
    norms = math.sqrt(float(first @ first)) * math.sqrt(float(second @ second))
    identical = bool(np.array_equal(first, second))
    worst = float(np.abs(first - second).max())
    largest = float(np.abs(first).max())
    relative = worst / largest if largest else (0.0 if identical else math.inf)
    cosine = float(first @ second) / norms if norms else float(identical)
    return {"cosine": cosine, "max_abs_error": worst, "max_rel_error": relative}
