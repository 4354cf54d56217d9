"""Chunks of a text's tokens, and the runs of a model over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError
from halfbyte.runtime.session import OUTPUTS, TOKEN_IDS, Session

Progress = Callable[[int], None]


def token_chunks(
    tokens: Sequence[int],
    context: int,
    *,
    chunks: int | None = None,
    skip: int = 0,
    first_token: int | None = None,
) -> NDArray[np.int64]:
    """Return tokens as [chunks, context] int64, without the first `skip` chunks and the tail.

    first_token: stands at the place of each chunk's first, as a text begins for the model.

    Raises:
        HalfbyteError: the text is too short.
    """
    available = len(tokens) // context
    if available <= skip:
        raise HalfbyteError(
            f"the text has {len(tokens)} tokens, {skip + 1} chunks of {context} are required; give "
            "a longer text with --data or a smaller --context"
        )
    count = available - skip if chunks is None else min(chunks, available - skip)
    kept = tokens[skip * context : (skip + count) * context]
    table = np.array(kept, dtype=np.int64).reshape(count, context)
    if first_token is not None:
        table[:, 0] = first_token
    return np.asarray(table, dtype=np.int64)


def pieces(table: NDArray[np.int64], batch: int) -> Iterator[tuple[bool, NDArray[np.int64]]]:
    """Yield (starts anew, ids [sequences, length]) with at most `batch` tokens, at least one row.

    A batch of several contexts runs several chunks side by side; a smaller one cuts chunks.
    """
    rows = max(1, batch // table.shape[1])
    for start in range(0, len(table), rows):
        chunk = table[start : start + rows]
        for begin in range(0, table.shape[1], batch):
            yield begin == 0, chunk[:, begin : begin + batch]


def run_chunks(
    session: Session,
    table: NDArray[np.int64],
    *,
    batch: int,
    every_output: bool,
    progress: Progress | None = None,
) -> None:
    """Run a language model over chunks [chunks, context], each from an empty cache.

    every_output: compute logits of every position, else of one. `progress` takes tokens done.
    """
    for anew, ids in pieces(table, batch):
        if anew:
            session.reset()
        positions = np.arange(ids.shape[1] if every_output else 1, dtype=np.int64)
        session.run({TOKEN_IDS: ids, OUTPUTS: positions})
        if progress is not None:
            progress(ids.size)
