"""Kullback-Leibler divergence per token: sum of p_reference * (ln p_reference - ln p_candidate)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def per_token(
    reference: NDArray[np.float64], candidate: NDArray[np.float64], floor: float = -np.inf
) -> NDArray[np.float64]:
    """Return the divergence of each row; ln p: [rows, vocabulary] float64.

    Tokens to which the reference gives ln p of `floor` or less do not count.
    """
    present = np.isfinite(reference) & (reference > floor)
    difference = np.where(present, reference, 0.0) - np.where(present, candidate, 0.0)
    return np.asarray((np.exp(reference) * difference).sum(axis=-1))


def summarize(values: NDArray[np.float64]) -> dict[str, float]:
    """Return mean, median, 99th percentile (linear) and maximum of divergences [n], in nats."""
    return {
        "mean_kl": float(values.mean()),
        "median_kl": float(np.median(values)),
        "p99_kl": float(np.percentile(values, 99)),
        "max_kl": float(values.max()),
    }
