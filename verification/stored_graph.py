"""The graph that a file holds, run as a language model over whole sequences.

A container like ONNX carries a graph of its own with its cache as inputs and outputs. Verification
judges that graph, as other runtimes see it, not the one built anew from the config. A cache either
grows, and is empty here, or has places for positions, as many here as the sequence is long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError
from halfbyte.ir.dtypes import WIDE_FLOATS, numpy_dtype
from halfbyte.ir.graph import Value
from halfbyte.runtime.session import OUTPUTS, POSITIONS, TOKEN_IDS, Session

Array = NDArray[Any]
MASK = "attention_mask"
WRITE_INDICES, LENGTHS = "write_indices", "nonpad_kv_seqlen"
LOGITS = "logits"


class Runnable(Protocol):
    """What runs inputs by name: a Session, or a StoredGraph."""

    def reset(self) -> None:
        """Forget all positions."""

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Return arrays by output name."""


class StoredGraph:
    """A session over a graph whose cache is an input, which holds no position here."""

    def __init__(self, session: Session) -> None:
        """Take a session on the stored graph.

        Raises:
            HalfbyteError: the graph has inputs that are no language model's, or no logits.
        """
        self.session = session
        self._inputs = session.graph.inputs
        self._has_places = any(value.name == WRITE_INDICES for value in self._inputs)
        names = {value.name for value in session.graph.outputs}
        unknown = [v.name for v in self._inputs if not _is_known(v)]
        if unknown or LOGITS not in names or TOKEN_IDS not in {v.name for v in self._inputs}:
            found = f"input {unknown[0]!r}" if unknown else f"outputs {', '.join(sorted(names))}"
            raise HalfbyteError(
                f"{session.graph.name}: the file's graph has {found}; token ids, a mask, positions "
                f"and caches were required, and an output {LOGITS!r}"
            )

    def reset(self) -> None:
        """Do nothing: no position is held between runs."""

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Return the logits at `output_positions`, all without them."""
        ids = np.asarray(inputs[TOKEN_IDS])
        places = ids.shape[1] if self._has_places else 0
        feeds = {value.name: _feed(value, ids, places) for value in self._inputs}
        logits = self.session.run(feeds)[LOGITS]
        wanted = inputs.get(OUTPUTS)
        return {LOGITS: logits if wanted is None else logits[:, np.asarray(wanted)]}


def _is_known(value: Value) -> bool:
    if value.name in (TOKEN_IDS, MASK, POSITIONS, WRITE_INDICES, LENGTHS):
        return True
    return value.dtype in WIDE_FLOATS and value.shape is not None and len(value.shape) == 4


def _feed(value: Value, ids: Array, places: int) -> Array:
    """Return an input for the first positions of a batch; places: of each cache."""
    batch, length = ids.shape
    if value.name == TOKEN_IDS:
        return ids
    if value.name == MASK:
        return np.ones((batch, length), numpy_dtype(value.dtype or "int64"))
    if value.name == POSITIONS:
        return np.broadcast_to(np.arange(length, dtype=np.int64), (batch, length))
    if value.name in (WRITE_INDICES, LENGTHS):
        held = 0 if value.name == WRITE_INDICES else length
        return np.full(batch, held, numpy_dtype(value.dtype or "int64"))
    sizes = [dim if isinstance(dim, int) else places for dim in value.shape or ()]
    sizes[0] = batch
    return np.zeros(sizes, numpy_dtype(value.dtype or "float32"))
