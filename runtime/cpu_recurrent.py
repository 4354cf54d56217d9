"""LSTM and GRU with their default activations, bound to the compiled kernels.

The products of all inputs are one matrix product; the kernels go on step by step from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.kernels import cpu_nets
from halfbyte.runtime.backend import BoundNode, Step
from halfbyte.runtime.cpu_slots import arrays, constant_at, contiguous, floats, slot_at

if TYPE_CHECKING:
    from halfbyte.runtime.cpu import CpuBackend

GATES = {"LSTM": 4, "GRU": 3}
DEFAULTS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}


@dataclass
class Direction:
    """One direction: the product of the inputs, recurrent weights, and where results go."""

    product: cpu_nets.Product
    weights: cpu_nets.RecurrentWeights
    gates: NDArray[np.float32]
    reverse: bool
    index: int


def plain(bound: BoundNode) -> bool:
    """Whether activations are the default ones, nothing is clipped and all steps count."""
    given, op = bound.attributes, bound.node.op
    count = 2 if given["direction"] == "bidirectional" else 1
    names = [name.lower() for name in given["activations"] or DEFAULTS[op] * count]
    odd = given["clip"] or given["layout"] or given.get("input_forget")
    lengths = slot_at(bound, 4)
    return not odd and names == DEFAULTS[op] * count and lengths is None


def bind_recurrent(backend: CpuBackend, bound: BoundNode) -> Step | None:
    """LSTM and GRU over constant weights."""
    x, weight, recurrence, bias = (slot_at(bound, index) for index in range(4))
    outs = [slot for slot in bound.outputs if slot is not None]
    held = [slot for slot in bound.inputs if slot is not None]
    if not plain(bound) or not floats(*held, *outs) or x is None or 0 in (x.shape or ()):
        return None
    constants = [slot for slot in (weight, recurrence, bias, slot_at(bound, 7)) if slot is not None]
    if not all(slot.constant for slot in constants):
        return None
    count = 2 if bound.attributes["direction"] == "bidirectional" else 1
    directions = [make_direction(backend, bound, index) for index in range(count)]
    return recurrent_step(bound, directions)


def make_direction(backend: CpuBackend, bound: BoundNode, index: int) -> Direction:
    """Return one direction with its weights packed."""
    op, (x, weight, recurrence, bias) = bound.node.op, arrays(bound, 4)
    steps, batch, width = x.shape
    hidden = recurrence.shape[2]
    rows = GATES[op] * hidden
    after = op == "GRU" and bool(bound.attributes["linear_before_reset"])
    both = np.zeros(2 * rows, np.float32) if bias is None else contiguous(bias)[index]
    total = both[:rows] + both[rows:]
    if after:
        total[2 * hidden :] = both[2 * hidden : rows]
    first = backend.packed.get(
        weight, ("inputs", index), lambda: cpu_nets.PackedMatrix(contiguous(weight[index]), True)
    )
    product = cpu_nets.Product(steps * batch, rows, width, packed=first, bias=contiguous(total))
    split = rows if op == "LSTM" else 2 * hidden
    matrices = [
        backend.packed.get(
            recurrence,
            (index, start),
            partial(cpu_nets.PackedMatrix, contiguous(recurrence[index, start:stop]), True),
        )
        for start, stop in ((0, split), (split, rows))
        if stop > start
    ]
    holes = constant_at(bound, 7) if op == "LSTM" else None
    weights = cpu_nets.RecurrentWeights(
        matrices[0],
        matrices[1] if op == "GRU" else None,
        None if holes is None else contiguous(holes[index]),
        contiguous(both[rows + 2 * hidden :]) if after else None,
    )
    reverse = index == 1 or bound.attributes["direction"] == "reverse"
    gates = np.empty((steps, batch, rows), np.float32)
    return Direction(product, weights, gates, reverse, index)


def recurrent_step(bound: BoundNode, directions: list[Direction]) -> Step:
    """Return the step that runs all directions."""
    x, _, recurrence = arrays(bound, 3)
    _, _, _, _, _, first_h, first_c = arrays(bound, 7)
    lstm, size = bound.node.op == "LSTM", x.shape[1] * recurrence.shape[2]
    shape = (len(directions), x.shape[1], recurrence.shape[2])
    h = np.empty(shape, np.float32)
    c = np.empty(shape, np.float32)
    results = [None if not slot.name else slot.value() for slot in bound.outputs]
    y, last_h, last_c = [*results, None, None, None][:3]
    after = bool(bound.attributes.get("linear_before_reset"))

    def step() -> None:
        h[...] = 0 if first_h is None else first_h
        c[...] = 0 if first_c is None else first_c
        for one in directions:
            one.product(x, None, one.gates)
            cpu_nets.recurrent(
                one.weights,
                one.gates,
                h[one.index],
                c[one.index] if lstm else None,
                y,
                y_offset=one.index * size,
                y_step=len(directions) * size,
                reverse=one.reverse,
                linear_before_reset=after,
            )
        if last_h is not None:
            np.copyto(last_h, h)
        if last_c is not None:
            np.copyto(last_c, c)

    return step


BINDERS: dict[str, Callable[[Any, BoundNode], Step | None]] = {
    "GRU": bind_recurrent,
    "LSTM": bind_recurrent,
}
