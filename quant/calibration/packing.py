"""Token ids of documents cut into sequences, and a seeded choice among them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


def packed(
    documents: Sequence[Sequence[int]],
    length: int,
    *,
    first_token: int | None = None,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
) -> Ids:
    """Return documents joined and cut to [sequences, length] int64; the tail is left out.

    first_token: stands at the place of each sequence's first, as a text begins for the model.
    prefix, suffix: tokens that begin and end each sequence, within `length`.
    """
    inner = length - len(prefix) - len(suffix)
    if inner < 1:
        return np.empty((0, length), np.int64)
    whole = np.concatenate([np.asarray(d, np.int64) for d in documents] or [np.empty(0, np.int64)])
    count = len(whole) // inner
    table = whole[: count * inner].reshape(count, inner)
    ends = [np.broadcast_to(np.array(e, np.int64), (count, len(e))) for e in (prefix, suffix)]
    table = np.concatenate([ends[0], table, ends[1]], axis=1)
    if first_token is not None:
        table[:, 0] = first_token
    return table


def chosen(count: int, wanted: int, seed: int) -> NDArray[np.intp]:
    """Return which of `count` things to take, in order; all of them if no more are wanted.

    The legacy generator is used because numpy never changes its stream.
    """
    if wanted >= count:
        return np.arange(count)
    return np.sort(np.random.RandomState(seed).permutation(count)[:wanted])


def shares(counts: Sequence[int], wanted: int) -> list[int]:
    """Return how many of each source to take so that all give alike, as far as they can."""
    taken = [0] * len(counts)
    left = min(wanted, sum(counts))
    while left:
        able = [place for place, count in enumerate(counts) if taken[place] < count]
        each = max(1, left // len(able))
        for place in able:
            more = min(each, counts[place] - taken[place], left)
            taken[place] += more
            left -= more
    return taken
