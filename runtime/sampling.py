"""Choose the next token from logits.

Order, as llama.cpp's default chain: repetition penalty, top-k, top-p, min-p, temperature, draw.
Filters judge probabilities before temperature. Temperature 0 takes the largest logit, the first
index winning ties. The draw uses a generator of its own: same seed and logits, same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError


@dataclass(frozen=True)
class Sampling:
    """How to choose. Off: top_k 0, top_p 1, min_p 0, repetition_penalty 1.

    repetition_window: how many last tokens the penalty looks at. seed None draws a fresh one.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            HalfbyteError: a number is out of range.
        """
        rules = (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 <= self.top_p <= 1, "0 to 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("repetition_window", self.repetition_window >= 0, "0 or more"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
        )
        for name, kept, required in rules:
            if not kept:
                raise HalfbyteError(
                    f"sampling: {name} is {getattr(self, name)}, {required} required"
                )


DEFAULT = Sampling()
GREEDY = Sampling(temperature=0.0)


def penalized(
    logits: NDArray[np.float32], recent: Sequence[int], penalty: float
) -> NDArray[np.float32]:
    """Return logits [vocabulary]; recent tokens' are divided (positive) or multiplied."""
    if penalty == 1.0 or not len(recent):
        return logits
    result: NDArray[np.float32] = logits.copy()
    ids = np.unique(np.asarray(recent, dtype=np.int64))
    chosen = result[ids]
    result[ids] = np.where(chosen > 0, chosen / penalty, chosen * penalty)
    return result


def best_first(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the indices of the `count` largest logits [vocabulary], largest first.

    Among ties the first index comes first; count 0 means all.
    """
    if 0 < count < len(logits):
        limit = np.partition(logits, len(logits) - count)[len(logits) - count]
        above = np.flatnonzero(logits > limit)
        ties = np.flatnonzero(logits == limit)[: count - len(above)]
        kept = np.sort(np.concatenate([above, ties]))
    else:
        kept = np.arange(len(logits))
    return np.asarray(kept[np.argsort(-logits[kept], kind="stable")], dtype=np.int64)


def probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return softmax of [n] logits in float64."""
    wide = np.exp(np.asarray(logits, np.float64) - float(np.max(logits)))
    return np.asarray(wide / wide.sum())


def candidates(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.int64]:
    """Return the ids that top-k, top-p and min-p leave of logits [vocabulary], likeliest first."""
    ids = best_first(logits, sampling.top_k)
    if sampling.top_p < 1:
        reached = np.cumsum(probabilities(logits[ids])) >= sampling.top_p
        ids = ids[: int(np.argmax(reached)) + 1] if reached.any() else ids
    if sampling.min_p > 0:
        likely = probabilities(logits[ids])
        ids = ids[likely >= sampling.min_p * likely[0]]
    return ids


class Sampler:
    """Chooses tokens one by one."""

    def __init__(self, sampling: Sampling) -> None:
        """Start the generator of random numbers."""
        self.sampling = sampling
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def sample(self, logits: NDArray[np.float32], history: Sequence[int] = ()) -> int:
        """Return the next token id.

        logits: [vocabulary] float32; history: the tokens so far, oldest first.

        Raises:
            HalfbyteError: the logits hold NaN.
        """
        rule = self.sampling
        recent = history[-rule.repetition_window :] if rule.repetition_window else ()
        scores = penalized(logits, recent, rule.repetition_penalty)
        best = int(np.argmax(scores))
        if np.isnan(scores[best]):
            raise HalfbyteError(
                "sampling: the logits hold NaN; the model or its weights are broken"
            )
        if rule.temperature == 0:
            return best
        ids = candidates(scores, rule)
        weights = np.cumsum(probabilities(scores[ids].astype(np.float64) / rule.temperature))
        drawn = self._random.random() * weights[-1]
        return int(ids[min(int(np.searchsorted(weights, drawn, side="right")), len(ids) - 1)])
