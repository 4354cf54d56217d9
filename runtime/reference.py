"""The reference device: every node by its numpy meaning in ir/ops.

Sums run in float64 in whatever order numpy's matrix product takes, then round once to float32: a
row's result is the same for any batch but for the rare value that lies at a rounding boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError
from halfbyte.ir.ops.spec import Context
from halfbyte.ir.tensor import Tensor
from halfbyte.runtime.backend import BoundNode, Slot, Step

ALIGNMENT = 64
# What numpy raises where an operator's inputs contradict each other.
FAULTS = (ValueError, IndexError, TypeError, ArithmeticError, KeyError, AttributeError)


def aligned_empty(nbytes: int) -> NDArray[np.uint8]:
    """Return uninitialized bytes that start at a multiple of 64."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    skip = -raw.ctypes.data % ALIGNMENT
    return raw[skip : skip + nbytes]


def operand(bound: BoundNode, index: int, slot: Slot | None) -> Any:
    """Return what `evaluate` takes for one input: an encoded tensor, a slot or None."""
    encoded = slot is not None and slot.tensor is not None and index in bound.spec.encoded
    return slot.tensor if encoded and slot is not None else slot


def owned(value: Any, operands: Sequence[Any]) -> Any:
    """Return a result that shares no memory with a buffer of the plan, which will be reused."""
    if isinstance(value, list):
        return [owned(element, operands) for element in value]
    if value is None:
        return None
    array = np.asarray(value)
    shared = not array.flags.owndata or any(array is v for v in operands)
    return np.array(array, order="C") if shared else array


def evaluated(bound: BoundNode, values: Sequence[Any]) -> list[Any]:
    """Return the outputs of a node by its numpy meaning.

    Raises:
        HalfbyteError: inputs contradict each other, or the memory does not suffice.
    """
    context = Context(bound.cache, len(bound.outputs), bound.run)
    try:
        return list(bound.spec.evaluate(values, bound.attributes, context))
    except MemoryError as error:
        raise HalfbyteError(f"session: {bound.node.label}: {error}; free some memory") from error
    except FAULTS as error:
        shapes = ", ".join(str(list(getattr(v, "shape", ()))) for v in values)
        raise HalfbyteError(
            f"session: {bound.node.label} over shapes {shapes}: {error}; give inputs that fit"
        ) from error


def reference_step(bound: BoundNode) -> Step:
    """Return a step that evaluates a node in numpy."""
    operands = [operand(bound, i, slot) for i, slot in enumerate(bound.inputs)]
    outputs = bound.outputs

    def step() -> None:
        values = [o.value() if isinstance(o, Slot) else o for o in operands]
        results = evaluated(bound, values)
        for slot, result in zip(outputs, results, strict=False):
            if not slot.static:
                slot.array = owned(result, values)
            elif result.shape == slot.shape:
                np.copyto(slot.value(), result, casting="unsafe")
            else:
                raise HalfbyteError(
                    f"session: {bound.node.label}: result has shape {list(result.shape)}, "
                    f"{list(slot.shape or ())} was required; declare its true shape"
                )

    return step


class ReferenceBackend:
    """Numpy only: the yardstick of the other devices."""

    name = "reference"

    def __init__(self, compute: str = "exact", threads: int | None = None) -> None:
        """Take the common options; computation is exact whatever `compute` says."""
        self.compute = "exact"

    def empty(self, nbytes: int) -> NDArray[np.uint8]:
        """Return host memory."""
        return aligned_empty(nbytes)

    def upload(self, tensor: Tensor) -> Tensor:
        """Return the tensor itself."""
        return tensor

    def bind(self, bound: BoundNode) -> Step | None:
        """Return the reference step."""
        return reference_step(bound)

    def begin(self) -> None:
        """Do nothing."""
