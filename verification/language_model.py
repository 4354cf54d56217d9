"""Compare two language models, teacher-forced over the same text.

The text is tokenized once and cut into chunks of `context` tokens, the tail dropped; where the
vocabulary adds a beginning-of-sequence token, it replaces the first token of each chunk. Positions
context/2 to context-2 of each chunk are judged by the token that follows them. These are
llama-perplexity's definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError
from halfbyte.verification.metrics import agreement, kl_divergence, perplexity, probability_change
from halfbyte.verification.metrics.log_probabilities import (
    STORED_RANGE,
    log_softmax,
    row_blocks,
    stored_log_probabilities,
)
from halfbyte.verification.stored_graph import Runnable

Progress = Callable[[int], None]


@dataclass
class TokenFigures:
    """Figures of every judged token, collected chunk by chunk.

    storage: `exact`, or `16-bit` for the reference's log-probabilities as llama-perplexity stores
    them; its figures then come out the same, artefacts of the storage included.
    """

    storage: str = "exact"
    kl: list[NDArray[np.float64]] = field(default_factory=list)
    same: list[NDArray[np.bool_]] = field(default_factory=list)
    reference: list[NDArray[np.float64]] = field(default_factory=list)
    candidate: list[NDArray[np.float64]] = field(default_factory=list)

    def add(
        self,
        reference: NDArray[np.float32],
        candidate: NDArray[np.float32],
        following: NDArray[np.int64],
    ) -> None:
        """Judge logits [rows, vocabulary] of both models; following: [rows] the true tokens."""
        self.same.append(agreement.per_token(reference, candidate))
        for rows in row_blocks(len(following)):
            second = log_softmax(candidate[rows])
            if self.storage == "exact":
                first = log_softmax(reference[rows])
                self.kl.append(kl_divergence.per_token(first, second))
            else:
                first = stored_log_probabilities(reference[rows])
                self.kl.append(kl_divergence.per_token(first, second, floor=-STORED_RANGE))
            picked = following[rows, None]
            self.reference.append(np.take_along_axis(first, picked, axis=1)[:, 0])
            self.candidate.append(np.take_along_axis(second, picked, axis=1)[:, 0])

    def summarize(self) -> dict[str, float]:
        """Return every figure."""
        reference, candidate = np.concatenate(self.reference), np.concatenate(self.candidate)
        return {
            "tokens": len(reference),
            **kl_divergence.summarize(np.concatenate(self.kl)),
            **agreement.summarize(np.concatenate(self.same)),
            **perplexity.summarize(-reference, -candidate),
            **probability_change.summarize(reference, candidate),
        }


def chunk_tokens(
    tokens: Sequence[int], context: int, chunks: int | None, first_token: int | None
) -> NDArray[np.int64]:
    """Return tokens as [chunks, context] int64.

    Raises:
        HalfbyteError: the text is too short or `context` is below 4.
    """
    if context < 4:
        raise HalfbyteError(f"--context: {context} tokens found, at least 4 required")
    available = len(tokens) // context
    if available < 1:
        raise HalfbyteError(
            f"the text has {len(tokens)} tokens, one chunk needs {context}; "
            "give a longer text with --data or a smaller --context"
        )
    count = available if chunks is None else min(chunks, available)
    table = np.array(tokens[: count * context], dtype=np.int64).reshape(count, context)
    if first_token is not None:
        table[:, 0] = first_token
    return np.asarray(table, dtype=np.int64)


def compare(
    reference: Runnable,
    candidate: Runnable,
    chunks: NDArray[np.int64],
    progress: Progress | None = None,
    storage: str = "exact",
) -> dict[str, float]:
    """Return the figures of two models over token chunks [chunks, context] int64.

    storage: see `TokenFigures`.

    Raises:
        HalfbyteError: the models have vocabularies of different sizes.
    """
    figures = TokenFigures(storage)
    context = chunks.shape[1]
    judged = np.arange(context // 2, context - 1, dtype=np.int64)
    for tokens in chunks:
        logits = []
        for session in (reference, candidate):
            session.reset()
            inputs = {"input_ids": tokens[None, :], "output_positions": judged}
            logits.append(session.run(inputs)["logits"][0])
        sizes = [array.shape[-1] for array in logits]
        if sizes[0] != sizes[1]:
            raise HalfbyteError(
                f"the models give logits over {sizes[0]} and {sizes[1]} tokens, they must agree; "
                "compare two forms of the same model"
            )
        with np.errstate(invalid="ignore"):  # infinite logits become NaN, which fails every gate
            figures.add(logits[0], logits[1], tokens[judged + 1])
        if progress is not None:
            progress(1)
    return figures.summarize()
