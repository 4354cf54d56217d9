"""Change of the probability that each model gives the token that really follows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def summarize(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> dict[str, float]:
    """Return mean and root mean square of p_candidate - p_reference, from ln p [n]."""
    change = np.exp(candidate) - np.exp(reference)
    return {
        "mean_probability_change": float(change.mean()),
        "rms_probability_change": math.sqrt(float((change**2).mean())),
    }
