"""The interface of a device: memory for values, weights on the device, nodes bound to kernels.

A plan owns slots, one per value. The slot of a tensor is `static`: its array stays the same object
for the life of the plan, and a bound step may capture it. Sequences, optionals and strings are
not: a step reads `slot.array` when it runs and stores a new object there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.dtypes import FIXED_SIZE
from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.ops.spec import OpSpec
from halfbyte.ir.tensor import Tensor
from halfbyte.runtime.kv_cache import KvCache

Array = NDArray[Any]
Step = Callable[[], object]
RunGraph = Callable[[Graph, Sequence[Any]], list[Any]]


@dataclass(eq=False)
class Slot:
    """Where a value lies while a plan runs. `tensor` is set for constants that stay encoded.

    constant: `array` holds its final values when the node is bound, so a binder may repack them.
    """

    name: str
    dtype: str | None
    shape: tuple[int, ...] | None
    array: Any = None
    tensor: Tensor | None = None
    constant: bool = False

    @property
    def static(self) -> bool:
        """Whether the array object never changes."""
        return self.shape is not None and self.dtype in FIXED_SIZE

    def value(self) -> Any:
        """Return the array, list or None; the plan guarantees that it is there for a step."""
        return self.array

    def fill(self, value: Any) -> None:
        """Put a value there: copied where the array must stay the same object."""
        if self.static:
            np.copyto(self.array, value)
        else:
            self.array = value


@dataclass(frozen=True, eq=False)
class BoundNode:
    """A node with its slots, attributes with defaults, and what it may use."""

    node: Node
    spec: OpSpec
    attributes: Mapping[str, Any]
    inputs: Sequence[Slot | None]
    outputs: Sequence[Slot]
    weights: WeightStore
    cache: KvCache | None
    run: RunGraph | None = None

    @property
    def static(self) -> bool:
        """Whether all slots are static."""
        slots = [*self.inputs, *self.outputs]
        return all(slot is None or slot.static for slot in slots)


class Backend(Protocol):
    """A device."""

    @property
    def name(self) -> str:
        """Return the name in BACKENDS."""

    @property
    def compute(self) -> str:
        """Return `exact` or `int8`."""

    def empty(self, nbytes: int) -> NDArray[np.uint8]:
        """Return device memory, aligned for every kernel."""

    def upload(self, tensor: Tensor) -> Any:
        """Return a weight as the device's kernels take it, still encoded."""

    def bind(self, bound: BoundNode) -> Step | None:
        """Return a step that runs the node, or None where no kernel takes it."""

    def begin(self) -> None:
        """Prepare the device for a run (thread count)."""


class WeightStore:
    """Weights of one session on its device; each tensor is uploaded once."""

    def __init__(self, backend: Backend) -> None:
        """Start empty."""
        self._backend = backend
        self._uploaded: dict[int, tuple[Tensor, Any]] = {}
        self._arrays: dict[tuple[int, str], tuple[Tensor, Array]] = {}

    def uploaded(self, tensor: Tensor) -> Any:
        """Return the device's form of a weight."""
        if id(tensor) not in self._uploaded:
            self._uploaded[id(tensor)] = (tensor, self._backend.upload(tensor))
        return self._uploaded[id(tensor)][1]

    def array(self, tensor: Tensor, dtype: np.dtype[Any]) -> Array:
        """Return a weight decoded whole, in its logical shape, as `dtype`."""
        key = (id(tensor), dtype.name)
        if key not in self._arrays:
            # Inside a file a tensor may start at any byte; kernels take whole elements.
            values = np.require(tensor.numpy().astype(dtype, copy=False), None, ["C", "ALIGNED"])
            self._arrays[key] = (tensor, values)
        return self._arrays[key][1]
