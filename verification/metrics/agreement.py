"""Share of tokens whose most probable next token is the same; the first index wins ties."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def per_token(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return whether each row of logits [rows, vocabulary] has the same argmax."""
    return np.asarray(reference.argmax(axis=-1) == candidate.argmax(axis=-1))


def summarize(same: NDArray[np.bool_]) -> dict[str, float]:
    """Return the share of tokens [n] where both models agree."""
    return {"top1_agreement": float(same.mean())}
