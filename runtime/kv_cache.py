"""States of a session: keys and values of every position held.

Each state is one array [batch, heads, capacity, d]; all states hold the same positions. Positions
past `position` are garbage, so going back to a prefix is only a smaller `position`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError, HalfbyteError
from halfbyte.ir.dtypes import numpy_dtype
from halfbyte.ir.graph import State

Array = NDArray[Any]
FIRST_CAPACITY = 256
POSITION_AXIS = 2


class StateBuffer:
    """One state. Steps keep the buffer and read `array` when they run: growth replaces it."""

    __slots__ = ("array", "state")

    def __init__(self, state: State) -> None:
        """Start without memory."""
        if len(state.shape) != 4 or state.axis != POSITION_AXIS:
            raise GraphError(
                state.name,
                f"state of shape {list(state.shape)}, [batch, heads, capacity, d] required",
            )
        self.state = state
        self.array: Array = np.empty((0, 0, 0, 0), numpy_dtype(state.dtype))

    def resize(self, batch: int, capacity: int, kept: int) -> None:
        """Take memory for `capacity` positions, keeping the first `kept`."""
        heads, size = (int(self.state.shape[i]) for i in (1, 3))
        fresh = np.zeros((batch, heads, capacity, size), self.array.dtype)
        if kept:
            fresh[:, :, :kept] = self.array[:, :, :kept]
        self.array = fresh


class KvCache:
    """All states of a session. `capacity` None grows by doubling; a number is a fixed limit."""

    def __init__(self, states: Mapping[str, State], capacity: int | None = None) -> None:
        """Make the buffers, without memory yet.

        Raises:
            HalfbyteError: the capacity is not positive.
        """
        if capacity is not None and capacity < 1:
            raise HalfbyteError(f"session: capacity {capacity}, at least 1 position was required")
        self.buffers = {name: StateBuffer(state) for name, state in states.items()}
        self.limit = capacity
        self.capacity = 0
        self.batch = 0
        self.position = 0

    def reserve(self, batch: int, count: int) -> None:
        """Make room for `count` more positions of `batch` sequences.

        Raises:
            HalfbyteError: the fixed capacity is too small or the batch changed midway.
        """
        if not self.buffers:
            return
        if self.position and batch != self.batch:
            raise HalfbyteError(
                f"session: a batch of {batch} after {self.position} positions of {self.batch}; "
                "reset() the session before the batch changes"
            )
        needed = self.position + count
        if self.limit is not None and needed > self.limit:
            raise HalfbyteError(
                f"session: {needed} positions are needed, capacity is {self.limit}; "
                "give a larger capacity or shorten the input"
            )
        if batch == self.batch and needed <= self.capacity:
            return
        capacity = self.limit or max(FIRST_CAPACITY, self.capacity)
        while capacity < needed:
            capacity *= 2
        for buffer in self.buffers.values():
            buffer.resize(batch, capacity, self.position)
        self.batch, self.capacity = batch, capacity

    def extend(self, state: str, values: Array) -> Array:
        """Write values [batch, heads, new, d] after the held positions; return all of them."""
        array = self.buffers[state].array
        stop = self.position + values.shape[2]
        array[:, :, self.position : stop] = values
        return array[:, :, :stop]

    def advance(self, count: int) -> None:
        """Count `count` new positions as held."""
        self.position += count

    def truncate(self, position: int) -> None:
        """Forget everything from `position` on.

        Raises:
            HalfbyteError: fewer positions are held.
        """
        if not 0 <= position <= self.position:
            raise HalfbyteError(
                f"session: cannot go back to position {position}, {self.position} are held; "
                f"give 0 to {self.position}"
            )
        self.position = position

    @property
    def nbytes(self) -> int:
        """Return the bytes that the states take."""
        return sum(buffer.array.nbytes for buffer in self.buffers.values())
