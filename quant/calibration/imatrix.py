"""Sums of squared inputs of linear layers: what importance matrices are made of.

llama-imatrix adds in float32, token after token; here squares and sums are float64, so that neither
the batch nor the length of the text changes the result. A dense weight has one sum and one count; a
stacked weight has one of each per expert, and a token counts for the experts that it was sent to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError

FEW_TOKENS = 32


@dataclass(frozen=True, eq=False)
class SquareSums:
    """Sums of one weight. sums: [matrices, columns] float64; counts: [matrices] int64."""

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class ScarceExperts:
    """How many experts of a stacked weight saw no token, and how many fewer than FEW_TOKENS."""

    weight: str
    experts: int
    unseen: int
    few: int

    def __str__(self) -> str:
        """Return what to tell a user."""
        few = f", {self.few} fewer than {FEW_TOKENS}" if self.few else ""
        return f"{self.weight}: {self.unseen} of {self.experts} experts saw no token{few}"


class SquareCollector:
    """An observer that adds up squares.

    matrices: how many matrices each observed weight has, by the name of the graph's constant.
    """

    def __init__(self, matrices: Mapping[str, int]) -> None:
        """Start with nothing seen."""
        self._matrices = dict(matrices)
        self.found: dict[str, SquareSums] = {}

    def wants(self, weight: str) -> bool:
        """Whether the weight is one of those to be observed."""
        return weight in self._matrices

    def observe(
        self,
        weights: Sequence[str],
        x: NDArray[np.float32],
        experts: NDArray[np.int64] | None,
    ) -> None:
        """Add the squares of rows [rows, columns] to every weight that they meet.

        Raises:
            HalfbyteError: a row holds infinities or NaN.
        """
        matrices = self._matrices[weights[0]]
        if experts is None:
            sums, counts = _squares(x)[None], np.array([len(x)], np.int64)
        else:
            sums, counts = _expert_squares(x, experts, matrices)
        if not np.isfinite(sums).all():
            raise HalfbyteError(
                f"weight {weights[0]!r}: its inputs are infinite or NaN on this text, finite ones "
                "are required; check the model"
            )
        for name in weights:
            held = self.found.get(name)
            if held is None:
                self.found[name] = SquareSums(sums.copy(), counts.copy())
            else:
                held.sums[...] += sums
                held.counts[...] += counts

    def scarce(self) -> list[ScarceExperts]:
        """Return the stacked weights of which some experts saw few tokens or none."""
        found = []
        for name, held in self.found.items():
            unseen = int((held.counts == 0).sum())
            few = int((held.counts < FEW_TOKENS).sum()) - unseen
            if len(held.counts) > 1 and (unseen or few):
                found.append(ScarceExperts(name, len(held.counts), unseen, few))
        return found


def _squares(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the sums of squares of the columns of [rows, columns]."""
    return np.asarray(np.einsum("ij,ij->j", x, x, dtype=np.float64))


def _expert_squares(
    x: NDArray[np.float32], experts: NDArray[np.int64], matrices: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return sums [matrices, columns] and counts of rows sent to experts [rows, used]."""
    flat = experts.reshape(-1)
    counts = np.bincount(flat, minlength=matrices)
    order = np.argsort(flat, kind="stable") // experts.shape[1]
    ends = np.cumsum(counts)
    sums = np.zeros((matrices, x.shape[1]), np.float64)
    for expert in np.flatnonzero(counts):
        rows = order[ends[expert] - counts[expert] : ends[expert]]
        sums[expert] = _squares(x[rows])
    return sums, counts.astype(np.int64)
