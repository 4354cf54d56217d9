"""Log-probabilities in float64, a few rows at a time so that memory stays small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

ROWS_AT_ONCE = 16
STORED_RANGE = 16.0
STORED_STEPS = 65535


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ln p for logits [rows, vocabulary]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def stored_log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ln p for logits [rows, vocabulary] as a llama-perplexity base file holds it.

    16-bit steps over at most 16 nats below the best token; what lies lower is raised to that
    floor, so a row need not sum to one.
    """
    wide = logits.astype(np.float64)
    highest = wide.max(axis=-1, keepdims=True)
    lowest = np.maximum(wide.min(axis=-1, keepdims=True), highest - STORED_RANGE)
    step = np.maximum((highest - lowest) / STORED_STEPS, np.finfo(np.float64).tiny)
    codes = np.floor(np.clip((wide - lowest) / step, 0, STORED_STEPS) + 0.5)
    total = highest + np.log(np.exp(wide - highest).sum(axis=-1, keepdims=True))
    return np.asarray(lowest - total + codes * step)


def row_blocks(rows: int) -> Iterator[slice]:
    """Yield slices that cover `rows` rows."""
    for start in range(0, rows, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, rows))
