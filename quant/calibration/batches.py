"""The inputs that a calibration runs over, in runs of a few sequences each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError
from halfbyte.ir.graph import Graph

Array = NDArray[Any]
RUN_TOKENS = 1024
MASK = "attention_mask"
TOKEN_IDS = "input_ids"


@dataclass(frozen=True)
class Batches:
    """Inputs by name for each run of the graph.

    masks: for each run bool [sequences, length], which positions count; None where all do.
    """

    runs: tuple[Mapping[str, Array], ...]
    masks: tuple[NDArray[np.bool_] | None, ...]

    @property
    def samples(self) -> int:
        """Return how many there are along the first axis of the first input."""
        firsts = [next(iter(run.values()), np.empty(0)) for run in self.runs]
        return sum(len(first) if first.ndim else 1 for first in firsts)


def token_batches(
    ids: NDArray[np.int64], *, skip_first: bool = False, run_tokens: int = RUN_TOKENS
) -> Batches:
    """Return whole sequences [n, length] of token ids in runs of about `run_tokens` tokens.

    skip_first: leave the first position of each sequence out of the statistics; models often put
    values there that are far larger than all others.
    """
    count, length = ids.shape
    step = max(1, run_tokens // max(1, length))
    counted = np.arange(length) > 0
    runs, masks = [], []
    for start in range(0, count, step):
        rows = np.ascontiguousarray(ids[start : start + step], np.int64)
        runs.append({TOKEN_IDS: rows})
        masks.append(np.broadcast_to(counted, rows.shape) if skip_first else None)
    return Batches(tuple(runs), tuple(masks))


def completed(batches: Batches, graph: Graph) -> Batches:
    """Return the batches with what a session would add for inputs that are not given.

    Raises:
        HalfbyteError: an input is missing, or is not the graph's.
    """
    names = [value.name for value in graph.inputs]
    runs = []
    for run in batches.runs:
        unknown = [name for name in run if name not in names]
        if unknown:
            raise HalfbyteError(
                f"calibration: no input is named {unknown[0]!r}; inputs are {', '.join(names)}"
            )
        runs.append({name: run[name] if name in run else _default(name, run) for name in names})
    return Batches(tuple(runs), batches.masks)


def _default(name: str, run: Mapping[str, Array]) -> Array:
    ids = run.get(TOKEN_IDS)
    if ids is not None and ids.ndim == 2:
        positions = np.arange(ids.shape[1], dtype=np.int64)
        if name == "position_ids":
            return np.broadcast_to(positions, ids.shape)
        if name == "output_positions":
            return positions
        if name == MASK:
            return np.ones(ids.shape, np.int64)
        if name == "token_type_ids":
            return np.zeros(ids.shape, np.int64)
    raise HalfbyteError(f"calibration: input {name!r} is missing; give an array for it")


def input_batches(samples: Sequence[Mapping[str, Array]]) -> Batches:
    """Return one run for each set of inputs; an `attention_mask` says which positions count.

    Raises:
        HalfbyteError: there is no sample.
    """
    if not samples:
        raise HalfbyteError("calibration: no sample was given, at least one is required")
    masks = [np.asarray(run[MASK]) != 0 if MASK in run else None for run in samples]
    return Batches(tuple(dict(run) for run in samples), tuple(masks))
