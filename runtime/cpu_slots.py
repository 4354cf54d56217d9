"""What the binders of the CPU ask of slots, and weights in packed form."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np

from halfbyte.ir.ops.fused import Activation
from halfbyte.kernels import cpu_nets
from halfbyte.runtime.backend import BoundNode, Slot

T = TypeVar("T")


def floats(*slots: Slot | None) -> bool:
    """Whether all slots are there and hold float32 arrays."""
    return all(s is not None and s.array is not None and s.dtype == "float32" for s in slots)


def arrays(bound: BoundNode, count: int) -> list[Any]:
    """Return the arrays of the first `count` inputs; None for omitted ones."""
    slots = [*bound.inputs, *[None] * count][:count]
    return [None if slot is None else slot.array for slot in slots]


def slot_at(bound: BoundNode, index: int) -> Slot | None:
    """Return an input's slot, None where it is omitted."""
    return bound.inputs[index] if index < len(bound.inputs) else None


def constant_at(bound: BoundNode, index: int) -> Any:
    """Return the values of a constant input, None where it is omitted or computed."""
    slot = slot_at(bound, index)
    if slot is None or not slot.constant:
        return None
    return slot.array if slot.tensor is None else slot.tensor.numpy()


def kernel_activation(activation: Activation) -> cpu_nets.Activation:
    """Return an activation as the kernels take it."""
    return cpu_nets.Activation(*activation)


class Packed:
    """Packed forms of weights, each made once for all plans of a session."""

    def __init__(self) -> None:
        """Start empty."""
        self._held: dict[tuple[int, Hashable], tuple[Any, Any]] = {}

    def get(self, source: Any, form: Hashable, make: Callable[[], T]) -> T:
        """Return the form of an array or tensor, made on first use."""
        key = (id(source), form)
        if key not in self._held:
            self._held[key] = (source, make())
        made: T = self._held[key][1]
        return made


def contiguous(array: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return an array as C-contiguous, aligned float32; mapped files are often not aligned."""
    return np.require(array, np.float32, ["C", "ALIGNED"])
