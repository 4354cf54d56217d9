"""The inputs that a calibration runs over, in runs of a few sequences each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError

Array = NDArray[Any]
RUN_TOKENS = 2048
MASK = "attention_mask"


@dataclass(frozen=True)
class Batches:
    """Inputs by name for each run of the graph.

    masks: for each run bool [sequences, length], which positions count; None where all do.
    """

    runs: tuple[Mapping[str, Array], ...]
    masks: tuple[NDArray[np.bool_] | None, ...]

    @property
    def samples(self) -> int:
        """Return the number of sequences, or of whatever stands along the first axis."""
        return sum(max((len(a) for a in run.values() if a.ndim), default=1) for run in self.runs)


def token_batches(
    ids: NDArray[np.int64], *, skip_first: bool = False, run_tokens: int = RUN_TOKENS
) -> Batches:
    """Return whole sequences [n, length] of a language model in runs of about `run_tokens`.

    skip_first: leave the first position of each sequence out of the statistics; models often put
    values there that are far larger than all others.
    """
    count, length = ids.shape
    step = max(1, run_tokens // max(1, length))
    positions = np.arange(length, dtype=np.int64)
    runs, masks = [], []
    for start in range(0, count, step):
        rows = np.ascontiguousarray(ids[start : start + step], np.int64)
        everywhere = np.ascontiguousarray(np.broadcast_to(positions, rows.shape))
        runs.append({"input_ids": rows, "position_ids": everywhere, "output_positions": positions})
        mask = np.broadcast_to(positions > 0, rows.shape) if skip_first else None
        masks.append(mask)
    return Batches(tuple(runs), tuple(masks))


def input_batches(samples: Sequence[Mapping[str, Array]]) -> Batches:
    """Return one run for each set of inputs; an `attention_mask` says which positions count.

    Raises:
        HalfbyteError: there is no sample.
    """
    if not samples:
        raise HalfbyteError("calibration: no sample was given, at least one is required")
    masks = [np.asarray(run[MASK]) != 0 if MASK in run else None for run in samples]
    return Batches(tuple(dict(run) for run in samples), tuple(masks))
