"""Differences between two arrays of the same shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def summarize(reference: NDArray[Any], candidate: NDArray[Any]) -> dict[str, float]:
    """Return cosine, the largest absolute error, and that error over the largest |reference|.

    Both arrays have one shape, whatever it is. Where both hold NaN or the same infinity there is no
    error.
    """
    first = reference.astype(np.float64).ravel()
    second = candidate.astype(np.float64).ravel()
    counted = ~((np.isnan(first) & np.isnan(second)) | (np.isinf(first) & (first == second)))
    first, second = first[counted], second[counted]
    if not first.size:
        return {"cosine": 1.0, "max_abs_error": 0.0, "max_rel_error": 0.0}
    with np.errstate(invalid="ignore", over="ignore"):
        norms = math.sqrt(float(first @ first)) * math.sqrt(float(second @ second))
        worst = float(np.abs(first - second).max())
        product = float(first @ second)
    identical = bool(np.array_equal(first, second))
    largest = float(np.abs(first).max())
    relative = worst / largest if largest else (0.0 if identical else math.inf)
    cosine = product / norms if norms else float(identical)
    return {"cosine": cosine, "max_abs_error": worst, "max_rel_error": relative}
