"""Figures of an importance matrix: how much each weight's inputs carry, and how unevenly.

Activations are means of squares by column, over all matrices that saw a token. The figures are
those of llama-imatrix's --show-statistics, in float64: `active` is the share of columns above
ACTIVE, `z_density` the share more than one standard deviation above the mean, `entropy` in bits,
`cosine` compares the sums with those of the same weight one layer before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

ACTIVE = 1e-5
TOP_COLUMNS = 5
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class WeightFigures:
    """Figures of one weight. tokens: of the matrix that saw most; top: (column, mean square)."""

    name: str
    layer: int | None
    matrices: int
    columns: int
    tokens: int
    unseen_matrices: int
    total: float
    least: float
    most: float
    mean: float
    deviation: float
    active: float
    zeros: float
    entropy: float
    evenness: float
    z_density: float
    cosine: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class LayerFigures:
    """Figures of one layer: means over its weights, each weighted by its columns."""

    layer: int
    total: float
    z_density: float
    cosine: float | None


@dataclass(frozen=True)
class ImportanceReport:
    """What an importance matrix file holds."""

    source: str
    form: str
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    weights: tuple[WeightFigures, ...]
    layers: tuple[LayerFigures, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        return asdict(self)


def _split(name: str) -> tuple[int | None, str]:
    match = _LAYER.fullmatch(name)
    return (None, name) if match is None else (int(match[1]), match[2])


def _in_order(name: str) -> tuple[bool, int, str]:
    layer, stem = _split(name)
    return layer is None, layer or 0, stem


def _cosine(first: NDArray[np.float64], second: NDArray[np.float64] | None) -> float | None:
    """Return the cosine of two weights' sums, None where there is none to compare with."""
    if second is None or first.shape != second.shape:
        return None
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.vdot(first, second)) / lengths if lengths else None


def weight_figures(
    name: str,
    sums: NDArray[np.float32],
    counts: NDArray[np.int64],
    before: NDArray[np.float32] | None = None,
) -> WeightFigures:
    """Return the figures of one weight.

    sums: [matrices, columns]; counts: [matrices]; before: the sums of the same weight one layer
    before. A weight without any token has figures of 0.
    """
    exact = sums.astype(np.float64)
    seen = counts > 0
    means = exact[seen] / counts[seen, None]
    values = means if means.size else np.zeros((1, sums.shape[1]))
    total, deviation = float(values.sum()), float(values.std())
    shares = values[values > 0] / total if total > 0 else np.ones(1)
    entropy = abs(float(-(shares * np.log2(shares)).sum()))
    spread = (values - values.mean()) / deviation if deviation > 0 else np.zeros(1)
    columns = values.mean(axis=0)
    top = np.argsort(-columns, kind="stable")[:TOP_COLUMNS]
    return WeightFigures(
        name=name,
        layer=_split(name)[0],
        matrices=len(counts),
        columns=sums.shape[1],
        tokens=int(counts.max()),
        unseen_matrices=int((~seen).sum()),
        total=total,
        least=float(values.min()),
        most=float(values.max()),
        mean=float(values.mean()),
        deviation=deviation,
        active=float((values > ACTIVE).mean()),
        zeros=float((values == 0).mean()),
        entropy=entropy,
        evenness=entropy / float(np.log2(values.size)) if values.size > 1 else 1.0,
        z_density=float((spread > 1).sum()) / values.size,
        cosine=_cosine(exact, None if before is None else before.astype(np.float64)),
        top=tuple((int(column), float(columns[column])) for column in top),
    )


def _weighted(found: Sequence[WeightFigures], figures: Iterable[float]) -> float:
    sizes = [f.columns * (f.matrices - f.unseen_matrices) for f in found]
    return float(np.average(list(figures), weights=sizes)) if any(sizes) else 0.0


def layer_figures(weights: Sequence[WeightFigures]) -> tuple[LayerFigures, ...]:
    """Return the figures of every layer; a weight without a layer before counts as cosine 0."""
    layers: dict[int, list[WeightFigures]] = {}
    for found in weights:
        if found.layer is not None:
            layers.setdefault(found.layer, []).append(found)
    return tuple(
        LayerFigures(
            layer,
            _weighted(found, (f.total for f in found)),
            _weighted(found, (f.z_density for f in found)),
            _weighted(found, (f.cosine or 0.0 for f in found))
            if any(f.cosine is not None for f in found)
            else None,
        )
        for layer, found in sorted(layers.items())
    )


def describe_weights(
    entries: Mapping[str, tuple[NDArray[np.float32], NDArray[np.int64]]],
) -> tuple[WeightFigures, ...]:
    """Return the figures of every weight, in the order of the layers.

    entries: sums [matrices, columns] and counts [matrices] by GGUF name.
    """
    found = []
    for name in sorted(entries, key=_in_order):
        layer, stem = _split(name)
        before = None if layer is None else entries.get(f"blk.{layer - 1}.{stem}")
        found.append(weight_figures(name, *entries[name], None if before is None else before[0]))
    return tuple(found)
