"""Log-softmax in float64, a few rows at a time so that memory stays small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

ROWS_AT_ONCE = 16


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ln p for logits [rows, vocabulary]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def row_blocks(rows: int) -> Iterator[slice]:
    """Yield slices that cover `rows` rows."""
    for start in range(0, rows, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, rows))
