"""Text that a language model writes itself, beside the text that it is calibrated on.

A text of one kind shows a model few of its tokens, and inputs of layers that lie in few directions;
rounding then moves all error into the others, where another text finds it. What the model writes is
as varied as what it was trained on. Where it cannot write, random tokens stand in.

Source: arXiv 2305.17888 (LLM-QAT), which trains on such text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from halfbyte.files import atomic_file
from halfbyte.ir.model import Model
from halfbyte.ir.tokenizer import Tokenizer, TokenType
from halfbyte.quant.calibration.batches import TOKEN_IDS, Batches, token_batches
from halfbyte.runtime.session import OUTPUTS, Session, index_limits

DRAWN = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.BYTE)
LOGITS = "logits"
MOST_SEQUENCES = 64
LARGEST_MODEL_BYTES = 4 << 30  # of float32 weights, which all are in memory while it writes
Ids = NDArray[np.int64]
Doubles = NDArray[np.float64]


def with_own_text(
    batches: Batches,
    model: Model,
    device: str = "cpu",
    threads: int | None = None,
    seed: int = 0,
    kept: Path | None = None,
) -> tuple[Batches, str]:
    """Return the batches with others behind them, and what was done otherwise than this.

    As many sequences as the given ones, at most MOST_SEQUENCES, as long as the first. Batches of
    other models than language models come back as they are. kept: a file that what the model wrote
    goes to, or is taken from; its caller sees to it that everything else is the same.
    """
    rows = index_limits(model.graph).get(TOKEN_IDS)
    given = [run.get(TOKEN_IDS) for run in batches.runs]
    if rows is None or not given or any(ids is None or ids.ndim != 2 for ids in given):
        return batches, ""
    starts = np.concatenate([ids[:, :1] for ids in given if ids is not None])
    length = 0 if given[0] is None else given[0].shape[1]
    count = min(len(starts), MOST_SEQUENCES)
    generator = np.random.default_rng(seed)
    pool = text_tokens(rows, model.tokenizer)
    drawn = pool[generator.integers(len(pool), size=(count, length))]
    if len(np.unique(starts)) == 1:
        drawn[:, 0] = starts[0, 0]  # what every sequence begins with
    reason, note = _cannot_write(model), ""
    if reason:
        note = f"calibrated also on random tokens, not on text that the model wrote: {reason}"
    elif kept is not None and kept.is_file():
        drawn = np.load(kept, allow_pickle=False)
    else:
        session = Session(model, device, threads=threads, capacity=length)
        _write(session, drawn, 1 + (len(np.unique(starts)) == 1), pool, generator)
        if kept is not None:
            with atomic_file(kept) as stream:
                np.save(stream, drawn)
    more = token_batches(drawn, skip_first=batches.masks[0] is not None)
    return Batches((*batches.runs, *more.runs), (*batches.masks, *more.masks)), note


def _cannot_write(model: Model) -> str:
    graph = model.graph
    if not graph.states or all(value.name != LOGITS for value in graph.outputs):
        return "it does not write token by token"
    size = 4 * sum(int(np.prod(tensor.shape)) for tensor in model.weights.values())
    return "it is too large to run as a whole" if size > LARGEST_MODEL_BYTES else ""


def text_tokens(rows: int, tokenizer: Tokenizer | None) -> Ids:
    """Return the ids of tokens that stand for text."""
    ids = np.arange(rows, dtype=np.int64)
    if tokenizer is None or not tokenizer.token_types:
        return ids
    known = min(rows, len(tokenizer))
    kept = np.isin(np.asarray(tokenizer.token_types[:known]), [int(kind) for kind in DRAWN])
    return ids[:known][kept] if kept.any() else ids


def _write(
    session: Session, ids: Ids, given: int, pool: Ids, generator: np.random.Generator
) -> None:
    """Replace all but the first `given` tokens of sequences [count, length] by the model's own."""
    first = np.zeros(1, np.int64)
    for place in range(ids.shape[1] - 1):
        step = np.ascontiguousarray(ids[:, place : place + 1])
        logits = session.run({TOKEN_IDS: step, OUTPUTS: first})[LOGITS][:, 0]
        if place + 1 >= given:
            ids[:, place + 1] = pool[_sampled(logits[:, pool], generator.random)]


def _sampled(logits: NDArray[np.float32], random: Callable[[int], Doubles]) -> NDArray[np.intp]:
    """Return an index for each row of logits [rows, tokens], by their probabilities."""
    wide = logits.astype(np.float64)
    reach = np.exp(wide - wide.max(axis=1, keepdims=True)).cumsum(axis=1)
    places = random(len(reach))[:, None] * reach[:, -1:]
    return np.asarray(np.minimum((reach <= places).sum(axis=1), reach.shape[1] - 1))
