"""Perplexity: exp of the mean negative log-likelihood, with its standard error."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def _error_of_mean(values: NDArray[np.float64]) -> float:
    """Return sqrt(population variance / (n - 1)); 0 for a single value."""
    return math.sqrt(float(values.var()) / (len(values) - 1)) if len(values) > 1 else 0.0


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:  # a model that rules out what follows
        return math.inf


def summarize(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> dict[str, float]:
    """Return both perplexities and their ratio from negative log-likelihoods [n].

    The error of the ratio uses the covariance of the two, which see the same tokens.
    """
    result = {}
    for name, values in (("reference", reference), ("candidate", candidate)):
        perplexity = _exp(float(values.mean()))
        result[f"ppl_{name}"] = perplexity
        result[f"ppl_{name}_error"] = perplexity * _error_of_mean(values)
    difference = candidate - reference
    ratio = _exp(float(difference.mean()))
    result["ppl_ratio"] = ratio
    result["ppl_ratio_error"] = ratio * _error_of_mean(difference)
    result["ppl_increase"] = ratio - 1.0
    return result
