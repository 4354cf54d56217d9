"""Rows that stress encoders: many magnitudes, signs, ties, zeros and flat blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def stress_rows(
    columns: int = 256, rows: int = 24, seed: int = 0
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, float32 rows [rows, columns])."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((rows, columns)).astype(np.float32)
    shapes = {
        "normal": normal,
        "cubed": normal**3,
        "positive": np.abs(normal) + np.float32(0.5),
        "negative": -np.abs(normal),
        "sparse": np.where(rng.random(normal.shape) < 0.8, np.float32(0), normal),
        "gridded": np.round(normal * 4) / np.float32(4),
        "zeros": np.zeros_like(normal),
        "signed zeros": np.copysign(np.float32(0), normal),
        "steps": np.repeat(normal[:, ::16], 16, axis=1),
        "flat": np.full_like(normal, 0.37),
        "flat negative": np.full_like(normal, -1.25),
    }
    for name, values in shapes.items():
        for scale in (1e-6, 1e-2, 1.0, 1e2):
            yield f"{name} x {scale:g}", (values * np.float32(scale)).astype(np.float32)
    yield "subnormal scales", (normal * np.float32(1e-7)).astype(np.float32)
    yield "vanishing", (normal * np.float32(1e-38)).astype(np.float32)
    one = np.zeros_like(normal)
    one[:, ::32] = np.float32(3e-39)
    yield "single subnormals", one
