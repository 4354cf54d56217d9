"""Sequences of random tokens beside a text that a language model is calibrated on.

A text shows a model few of its tokens, and inputs of layers that lie in few directions; rounding
then moves all error into the others, where another text finds it. Random tokens reach them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.graph import Graph
from halfbyte.ir.tokenizer import Tokenizer
from halfbyte.quant.calibration.batches import TOKEN_IDS, Batches
from halfbyte.quant.calibration.own_text import text_tokens
from halfbyte.runtime.session import index_limits

STREAM = 1  # own_text.py draws from the seed alone


def with_random_tokens(
    batches: Batches,
    graph: Graph,
    tokenizer: Tokenizer | None = None,
    seed: int = 0,
    sequences: int = 0,
) -> Batches:
    """Return the batches and `sequences` more, whose tokens but the first are random ones.

    Tokens are drawn alike from those that stand for text; without a tokenizer from all. Batches of
    other models than language models come back as they are.
    """
    rows = index_limits(graph).get(TOKEN_IDS)
    if rows is None or any(TOKEN_IDS not in run for run in batches.runs):
        return batches
    pool = text_tokens(rows, tokenizer)
    generator = np.random.default_rng((seed, STREAM))
    left = sequences
    runs, masks = [], []
    for run, mask in cycle(zip(batches.runs, batches.masks, strict=True)):
        count = min(left, len(run[TOKEN_IDS]))
        if not count:
            break
        cut = {name: a[:count] if len(a) == len(run[TOKEN_IDS]) else a for name, a in run.items()}
        runs.append(_random(cut, pool, generator))
        masks.append(None if mask is None else mask[:count])
        left -= count
    return Batches((*batches.runs, *runs), (*batches.masks, *masks))


def _random(
    run: Mapping[str, Any], pool: NDArray[np.int64], generator: np.random.Generator
) -> dict[str, Any]:
    given = run[TOKEN_IDS]
    drawn = pool[generator.integers(len(pool), size=given.shape)].astype(given.dtype)
    drawn[..., :1] = given[..., :1]
    return {**run, TOKEN_IDS: drawn}
