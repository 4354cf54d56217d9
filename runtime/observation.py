"""Watching what meets the weights of linear layers while a plan runs; calibration collects it.

Fused operators hide no input: all weights of a LinearGroup or a LinearSwiGLU read the same rows, so
one call of the observer tells them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.graph import Value
from halfbyte.runtime.backend import BoundNode, Slot, Step


class Observer(Protocol):
    """What sees the inputs of linear layers."""

    def wants(self, weight: str) -> bool:
        """Whether the constant of this name is to be observed."""

    def observe(
        self,
        weights: Sequence[str],
        x: NDArray[np.float32],
        experts: NDArray[np.int64] | None,
    ) -> None:
        """Take rows that meet each of `weights`.

        x: [rows, columns], valid during the call only. experts: [rows, used], which matrices of a
        stacked weight each row meets; None where the weight is one matrix.
        """


@dataclass(frozen=True)
class _Places:
    """Which inputs of an operator hold the rows and the chosen experts."""

    x: int = 0
    experts: int | None = None


# Operators over weights [..., out, in]; their weights are the inputs that may stay encoded.
OBSERVED: dict[str, _Places] = {
    "halfbyte.Linear": _Places(),
    "halfbyte.LinearGroup": _Places(),
    "halfbyte.LinearSwiGLU": _Places(),
    "halfbyte.FusedLinear": _Places(),
    "halfbyte.ExpertLinear": _Places(experts=2),
}


def observed_step(bound: BoundNode, step: Step, observer: Observer | None) -> Step:
    """Return the step, after showing its rows to the observer if that wants one of its weights."""
    places = OBSERVED.get(bound.spec.key)
    if observer is None or places is None:
        return step
    read = [v for i, v in enumerate(bound.node.inputs) if v is not None and i in bound.spec.encoded]
    names = [v.name for v in read if _is_matrix(v) and observer.wants(v.name)]
    x = bound.inputs[places.x]
    chosen = None if places.experts is None else bound.inputs[places.experts]
    if not names or x is None:
        return step
    return Watched(step, observer, names, x, chosen)


def _is_matrix(value: Value) -> bool:
    return value.constant is not None and len(value.constant.shape) > 1


@dataclass(eq=False)
class Watched:
    """A step whose rows are shown before it runs: it may write over them."""

    step: Step
    observer: Observer
    names: Sequence[str]
    x: Slot
    chosen: Slot | None

    def __call__(self) -> Any:
        """Show the rows, run the step."""
        data = np.asarray(self.x.value())
        experts = None
        if self.chosen is not None:
            experts = np.asarray(self.chosen.value())
            # Rows meet several experts each, or (inputs of the second product) one row each.
            own = data.shape[:-1] == experts.shape
            experts = experts.reshape(-1, 1 if own else experts.shape[-1])
        self.observer.observe(self.names, data.reshape(-1, data.shape[-1]), experts)
        return self.step()
