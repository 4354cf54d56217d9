"""Sequences of random tokens beside a text that a language model is calibrated on.

A text shows a model few of its tokens, and inputs of layers that lie in few directions; rounding
then moves all error into the others, where another text finds it. Random tokens reach them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.graph import Graph
from halfbyte.ir.tokenizer import Tokenizer, TokenType
from halfbyte.quant.calibration.batches import TOKEN_IDS, Batches
from halfbyte.runtime.session import index_limits

DRAWN = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.BYTE)


def with_random_tokens(
    batches: Batches, graph: Graph, tokenizer: Tokenizer | None = None, seed: int = 0
) -> Batches:
    """Return the batches and as many again, in which every token but the first is a random one.

    Tokens are drawn alike from those that stand for text; without a tokenizer from all. Batches of
    other models than language models come back as they are.
    """
    rows = index_limits(graph).get(TOKEN_IDS)
    if rows is None or any(TOKEN_IDS not in run for run in batches.runs):
        return batches
    pool = _drawn(rows, tokenizer)
    generator = np.random.default_rng(seed)
    runs = [_random(run, pool, generator) for run in batches.runs]
    return Batches((*batches.runs, *runs), (*batches.masks, *batches.masks))


def _drawn(rows: int, tokenizer: Tokenizer | None) -> NDArray[np.int64]:
    ids = np.arange(rows, dtype=np.int64)
    if tokenizer is None or not tokenizer.token_types:
        return ids
    known = min(rows, len(tokenizer))
    kept = np.isin(np.asarray(tokenizer.token_types[:known]), [int(kind) for kind in DRAWN])
    return ids[:known][kept] if kept.any() else ids


def _random(
    run: Mapping[str, Any], pool: NDArray[np.int64], generator: np.random.Generator
) -> dict[str, Any]:
    given = run[TOKEN_IDS]
    drawn = pool[generator.integers(len(pool), size=given.shape)].astype(given.dtype)
    drawn[..., :1] = given[..., :1]
    return {**run, TOKEN_IDS: drawn}
