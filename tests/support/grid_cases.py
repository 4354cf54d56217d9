"""Importances that stress the encoders of grid types."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

GRID_KINDS = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M")
NEED_IMPORTANCE = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})


def importances(kind: str, columns: int, seed: int = 0) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yield (name, float32 [columns], or None where the kind can do without)."""
    rng = np.random.default_rng(seed)
    even = rng.random(columns).astype(np.float32)
    yield "even", even + np.float32(0.05)
    yield "with zeros", np.where(rng.random(columns) < 0.3, np.float32(0), even)
    yield "wild", np.exp(3 * rng.standard_normal(columns)).astype(np.float32)
    yield "all zero", np.zeros(columns, np.float32)
    if kind not in NEED_IMPORTANCE:
        yield "none", None
