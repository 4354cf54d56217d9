"""RNN, GRU and LSTM: one product over all steps, then one product of the state per step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Dim, Node
from halfbyte.ir.ops.convolution import work_dtype
from halfbyte.ir.ops.older_forms import older
from halfbyte.ir.ops.recurrent_cells import Activation, Step, activation_functions, gru, lstm, rnn
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    Evaluate,
    Infer,
    OpSpec,
    ValueType,
    common_dtype,
    normal,
    required_input,
)

DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
Cell = Callable[[Mapping[str, Any], Array, Array, Array | None, list[Activation]], Step]


def infer_states(count: int, gates: int) -> Infer:
    """Return an infer: the sequence of hidden states, then `count` last states."""

    def infer(node: Node) -> list[ValueType]:
        direction = node.attributes.get("direction") or "forward"
        if direction not in DIRECTIONS:
            raise GraphError(
                node.label, f"direction is {direction!r}; give one of {', '.join(DIRECTIONS)}"
            )
        data, weight = required_input(node, 0).shape, required_input(node, 1).shape
        recurrence = required_input(node, 2).shape
        dtype, turns = common_dtype(node, [0, 1, 2, 3]), DIRECTIONS[direction]
        hidden = node.attributes.get("hidden_size") or (recurrence[-1] if recurrence else UNKNOWN)
        if weight is not None and isinstance(hidden, int):
            wanted = (turns, gates * hidden)
            if any(isinstance(d, int) and d != w for d, w in zip(weight, wanted, strict=False)):
                raise GraphError(
                    node.label, f"W is {list(weight)}; give [{wanted[0]}, {wanted[1]}, input]"
                )
        steps: Dim = data[0] if data else UNKNOWN
        batch: Dim = data[1] if data else UNKNOWN
        if node.attributes.get("layout"):
            whole: tuple[Dim, ...] = (steps, batch, turns, hidden)
            last: tuple[Dim, ...] = (steps, turns, hidden)
        else:
            whole, last = (steps, turns, batch, hidden), (turns, batch, hidden)
        kinds = [ValueType(dtype, whole), *[ValueType(dtype, last)] * count]
        return kinds[: max(1, len(node.outputs))]

    return infer


def turned(data: Array, lengths: NDArray[np.int64]) -> Array:
    """Return [steps, batch, ...] with each sequence reversed within its own length."""
    steps = np.arange(data.shape[0])[:, None]
    index = np.where(steps < lengths, lengths - 1 - steps, steps)
    return np.asarray(data[index, np.arange(data.shape[1])])


def run_steps(
    projected: Array, states: list[Array], lengths: NDArray[np.int64], step: Step
) -> tuple[Array, list[Array]]:
    """Return the hidden states of every step, zero past the end, and the last states.

    projected: [steps, batch, gates * hidden]; states: [batch, hidden] each, the hidden one first.
    """
    hidden = np.zeros((*projected.shape[:2], states[0].shape[1]), projected.dtype)
    ragged = bool((lengths < projected.shape[0]).any())
    for place in range(projected.shape[0]):
        new = step(projected[place], states)
        if ragged:
            running = (place < lengths)[:, None]
            hidden[place] = np.where(running, new[0], 0)
            states = [np.where(running, n, s) for n, s in zip(new, states, strict=True)]
        else:
            hidden[place], states = new[0], new
    return hidden, states


def evaluate_with(cell: Cell, gates: int, defaults: tuple[str, ...], count: int) -> Evaluate:
    """Return the evaluate of a recurrent operator with `count` states."""

    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        given = [None if v is None else np.asarray(v) for v in inputs]
        given += [None] * (8 - len(given))
        data, weight, recurrence, bias, lens, *rest = given
        if data is None or weight is None or recurrence is None:
            raise GraphError("recurrent operator", "X, W and R were required; give all of them")
        swapped = bool(attributes.get("layout"))
        x = data.swapaxes(0, 1) if swapped else data
        work = work_dtype(str(data.dtype), x.shape[0] * x.shape[1] * recurrence[0].size)
        x = x.astype(work)
        turns, hidden = recurrence.shape[0], recurrence.shape[2]
        lengths = np.full(x.shape[1], x.shape[0]) if lens is None else lens.astype(np.int64)
        functions = activation_functions(attributes, defaults * turns)
        outputs, finals = [], []
        for turn in range(turns):
            reverse = attributes["direction"] == "reverse" or turn == 1
            both = np.zeros(2 * gates * hidden) if bias is None else bias[turn]
            from_x, from_h = both.astype(work).reshape(2, -1)
            projected = (turned(x, lengths) if reverse else x) @ weight[turn].astype(work).T
            states = [
                first_state(rest[i], turn, x.shape[1], hidden, swapped, work) for i in range(count)
            ]
            peephole = None if rest[2] is None else rest[2][turn].astype(work)
            own = functions[turn * len(defaults) : (turn + 1) * len(defaults)]
            step = cell(attributes, recurrence[turn].astype(work), from_h, peephole, own)
            sequence, last = run_steps(projected + from_x, states, lengths, step)
            outputs.append(turned(sequence, lengths) if reverse else sequence)
            finals.append(last)
        axes = (2, 1) if swapped else (1, 0)
        whole = np.stack(outputs, axis=1)
        whole = whole.transpose(2, 0, 1, 3) if swapped else whole
        lasts = [np.stack([f[i] for f in finals], axis=axes[1]) for i in range(count)]
        results = [whole, *lasts][: max(1, context.outputs)]
        return [np.ascontiguousarray(r.astype(data.dtype, copy=False)) for r in results]

    return evaluate


def first_state(
    given: Array | None, turn: int, batch: int, hidden: int, swapped: bool, work: np.dtype[Any]
) -> Array:
    """Return the state [batch, hidden] before the first step, zeros where none is given."""
    if given is None:
        return np.zeros((batch, hidden), work)
    return (given[:, turn] if swapped else given[turn]).astype(work)


def rnn_cases() -> list[Case]:
    """Return both directions, and unequal lengths in reverse with a state."""
    x, w, r = normal(300, 4, 2, 3), normal(301, 2, 5, 3), normal(302, 2, 5, 5)
    lengths = np.asarray([4, 2], np.int32)
    state = normal(304, 1, 2, 5)
    short = [x, w[:1], r[:1], normal(303, 1, 10), lengths, state]
    return [
        Case("both", [x, w, r], {"direction": "bidirectional", "hidden_size": 5}, outputs=2),
        Case("lengths", short, {"direction": "reverse", "hidden_size": 5}, outputs=2),
    ]


def gru_cases() -> list[Case]:
    """Return the reset before and after the product, batch first."""
    x, w, r = normal(305, 4, 2, 3), normal(306, 1, 15, 3), normal(307, 1, 15, 5) * 0.5
    inputs, size = [x, w, r, normal(308, 1, 30)], {"hidden_size": 5}
    return [
        Case("before", inputs, size, outputs=2),
        Case("after", inputs, size | {"linear_before_reset": 1}, outputs=2),
        Case("batch_first", inputs, size | {"layout": 1}, outputs=2),
    ]


def lstm_cases() -> list[Case]:
    """Return both directions with peepholes and states, and a plain one."""
    x, w, r = normal(309, 4, 2, 3), normal(310, 2, 20, 3), normal(311, 2, 20, 5) * 0.5
    states = [normal(312, 2, 2, 5), normal(313, 2, 2, 5)]
    full = [x, w, r, normal(314, 2, 40), None, *states, normal(315, 2, 15)]
    return [
        Case("both", full, {"direction": "bidirectional", "hidden_size": 5}, outputs=3),
        Case("plain", [x, w[:1], r[:1]], {"hidden_size": 5}, outputs=3),
    ]


ATTRIBUTES = {
    "activation_alpha": Attribute("floats"),
    "activation_beta": Attribute("floats"),
    "activations": Attribute("strings"),
    "clip": Attribute("float"),
    "direction": Attribute("string", "forward"),
    "hidden_size": Attribute("int"),
    "layout": Attribute("int", 0),
}
INPUTS = ("X", "W", "R", "B?", "sequence_lens?", "initial_h?")
RNN = OpSpec(
    "RNN",
    (7, 14, 22),
    INPUTS,
    ("Y?", "Y_h?"),
    infer=infer_states(1, 1),
    evaluate=evaluate_with(rnn, 1, ("Tanh",), 1),
    attributes=ATTRIBUTES | {"activations": Attribute("strings", ("Tanh", "Tanh"))},
    cases=rnn_cases,
)
GRU = OpSpec(
    "GRU",
    (7, 14, 22),
    INPUTS,
    ("Y?", "Y_h?"),
    infer=infer_states(1, 3),
    evaluate=evaluate_with(gru, 3, ("Sigmoid", "Tanh"), 1),
    attributes=ATTRIBUTES | {"linear_before_reset": Attribute("int", 0)},
    cases=gru_cases,
)
LSTM = OpSpec(
    "LSTM",
    (7, 14, 22),
    (*INPUTS, "initial_c?", "P?"),
    ("Y?", "Y_h?", "Y_c?"),
    infer=infer_states(2, 4),
    evaluate=evaluate_with(lstm, 4, ("Sigmoid", "Tanh", "Tanh"), 2),
    attributes=ATTRIBUTES | {"input_forget": Attribute("int", 0)},
    cases=lstm_cases,
)


def first_form(newer: OpSpec, versions: tuple[int, ...]) -> OpSpec:
    """Return the form that had an attribute for whether the sequence is an output."""
    gone = {"output_sequence": Attribute("int", 0)}
    return older(newer, versions, {}, gone, dropped=gone, without=("layout",))


SPECS: tuple[OpSpec, ...] = (
    first_form(RNN, (1,)),
    RNN,
    first_form(GRU, (1, 3)),
    GRU,
    first_form(LSTM, (1,)),
    LSTM,
)
