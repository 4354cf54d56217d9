"""Recurrent operators against loops over samples and steps written from the equations."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Value
from halfbyte.ir.ops.spec import UNKNOWN, normal
from support.op_evaluation import evaluate_graph, evaluated, inferred, node_graph, upgrade_fully

STEPS, BATCH, INPUT, HIDDEN = 5, 3, 4, 6
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rnn_step(x, states, w, r, wb, rb, peephole, options):
    return [np.tanh(w @ x + r @ states[0] + wb + rb)]


def gru_step(x, states, w, r, wb, rb, peephole, options):
    (h,) = states
    wz, wr, wh = np.split(w, 3)
    rz, rr, rh = np.split(r, 3)
    (bz, br, bh), (cz, cr, ch) = np.split(wb, 3), np.split(rb, 3)
    z = sigmoid(wz @ x + rz @ h + bz + cz)
    reset = sigmoid(wr @ x + rr @ h + br + cr)
    inner = reset * (rh @ h + ch) if options.get("linear_before_reset") else rh @ (reset * h) + ch
    return [(1 - z) * np.tanh(wh @ x + inner + bh) + z * h]


def lstm_step(x, states, w, r, wb, rb, peephole, options):
    h, c = states
    i, o, f, g = np.split(w @ x + r @ h + wb + rb, 4)
    pi, po, pf = np.zeros((3, len(c))) if peephole is None else np.split(peephole, 3)
    i = sigmoid(i + pi * c)
    f = 1 - i if options.get("input_forget") else sigmoid(f + pf * c)
    new = f * c + i * np.tanh(g)
    return [sigmoid(o + po * new) * np.tanh(new), new]


STEP = {"RNN": rnn_step, "GRU": gru_step, "LSTM": lstm_step}


def looped(op, x, w, r, b, lengths, states, peephole, direction, options):
    """Return the hidden states and the last states, one sample and one step at a time."""
    turns = w.shape[0]
    whole = np.zeros((STEPS, turns, BATCH, HIDDEN))
    lasts = np.zeros((len(states), turns, BATCH, HIDDEN))
    for turn in range(turns):
        backward = direction == "reverse" or turn == 1
        wb, rb = np.split(b[turn], 2)
        peep = None if peephole is None else peephole[turn]
        for sample in range(BATCH):
            held = [s[turn, sample] for s in states]
            order = range(lengths[sample])
            for t in reversed(order) if backward else order:
                held = STEP[op](x[t, sample], held, w[turn], r[turn], wb, rb, peep, options)
                whole[t, turn, sample] = held[0]
            lasts[:, turn, sample] = held
    return [whole, *lasts]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("lengths", [None, [5, 2, 0]])
@pytest.mark.parametrize(
    ("op", "options"),
    [
        ("RNN", {}),
        ("GRU", {}),
        ("GRU", {"linear_before_reset": 1}),
        ("LSTM", {}),
        ("LSTM", {"input_forget": 1}),
    ],
)
def test_recurrence_is_the_loop(
    op: str, options: dict, direction: str, layout: int, lengths: list | None
) -> None:
    turns, gates = 2 if direction == "bidirectional" else 1, GATES[op]
    x = normal(1, STEPS, BATCH, INPUT).astype(np.float64)
    w = normal(2, turns, gates * HIDDEN, INPUT).astype(np.float64)
    r = normal(3, turns, gates * HIDDEN, HIDDEN).astype(np.float64) * 0.5
    b = normal(4, turns, 2 * gates * HIDDEN).astype(np.float64)
    count = 2 if op == "LSTM" else 1
    states = [normal(5 + i, turns, BATCH, HIDDEN).astype(np.float64) for i in range(count)]
    peephole = normal(7, turns, 3 * HIDDEN).astype(np.float64) if op == "LSTM" else None
    real = [STEPS] * BATCH if lengths is None else lengths
    wanted = looped(op, x, w, r, b, real, states, peephole, direction, options)
    given = states
    if layout:
        x, given = x.swapaxes(0, 1), [s.swapaxes(0, 1) for s in states]
    lens = None if lengths is None else np.int32(lengths)
    inputs = [x, w, r, b, lens, *given, *([] if peephole is None else [peephole])]
    extra = {"direction": direction, "hidden_size": HIDDEN, "layout": layout} | options
    whole, *lasts = evaluated(op, *inputs, outputs=1 + count, **extra)
    if layout:
        whole, lasts = whole.transpose(1, 2, 0, 3), [v.swapaxes(0, 1) for v in lasts]
    for found, value in zip([whole, *lasts], wanted, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-12)


ONE = np.ones((1, 1, 1), np.float32)


@pytest.mark.parametrize(
    ("name", "alpha", "beta", "wanted"),
    [
        ("Relu", [], [], 0.0),
        ("Affine", [2.0], [0.5], -3.5),
        ("LeakyRelu", [0.1], [], -0.2),
        ("LeakyRelu", [], [], -0.02),
        ("ThresholdedRelu", [-3.0], [], -2.0),
        ("ScaledTanh", [2.0], [0.5], 2 * np.tanh(-1.0)),
        ("HardSigmoid", [], [], 0.1),
        ("Elu", [2.0], [], 2 * np.expm1(-2.0)),
        ("softsign", [], [], -2 / 3),
        ("Softplus", [], [], np.log1p(np.exp(-2.0))),
    ],
)
def test_activations(name: str, alpha: list, beta: list, wanted: float) -> None:
    given = {"activations": [name], "activation_alpha": alpha, "activation_beta": beta}
    (whole,) = evaluated("RNN", -2 * ONE, ONE, ONE, hidden_size=1, **given)
    np.testing.assert_allclose(whole.reshape(()), wanted, rtol=1e-6)


def test_alphas_go_in_order_to_those_that_take_one() -> None:
    given = {"activations": ["Tanh", "LeakyRelu"], "activation_alpha": [0.5]}
    x = np.concatenate([-ONE, -ONE])
    both = np.ones((2, 1, 1), np.float32)
    (whole,) = evaluated("RNN", x[:1], both, both, direction="bidirectional", **given)
    np.testing.assert_allclose(whole.reshape(-1), [np.tanh(-1), -0.5], rtol=1e-6)


def test_clip_bounds_what_goes_into_activations() -> None:
    given = {"activations": ["Affine"], "clip": 1.5}
    (whole,) = evaluated("RNN", 4 * ONE, ONE, ONE, hidden_size=1, **given)
    assert whole.reshape(-1).tolist() == [1.5]


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_first_form_says_whether_the_sequence_is_wanted(op: str) -> None:
    gates = GATES[op]
    inputs = [normal(1, 3, 2, 4), normal(2, 1, gates * 5, 4), normal(3, 1, gates * 5, 5)]
    graph, node = node_graph(op, 1, inputs, {"output_sequence": 1, "hidden_size": 5}, outputs=2)
    before = evaluate_graph(graph, inputs)
    assert upgrade_fully(graph)
    assert "output_sequence" not in node.attributes
    for first, second in zip(before, evaluate_graph(graph, inputs), strict=True):
        np.testing.assert_array_equal(first, second)


def test_shapes_with_symbols() -> None:
    x = Value("x", "float32", ("t", "n", 4))
    w, r = Value("w", "float32", (2, 20, 4)), Value("r", "float32", (2, 20, 5))
    kinds = inferred("LSTM", x, w, r, outputs=3, direction="bidirectional")
    assert [k.shape for k in kinds] == [("t", 2, "n", 5), (2, "n", 5), (2, "n", 5)]
    assert inferred("LSTM", x, w, r, direction="bidirectional", layout=1)[0].shape == (
        *("t", "n", 2, 5),
    )
    unknown = Value("x", "float32")
    assert inferred("RNN", unknown, unknown, unknown)[0].shape == (UNKNOWN, 1, UNKNOWN, UNKNOWN)


@pytest.mark.parametrize(
    ("attributes", "rule"),
    [
        ({"direction": "both"}, "direction is 'both'"),
        ({"activations": ["Sine"]}, "activation 'Sine' is unknown"),
        ({"hidden_size": 3}, r"W is \[1, 1, 1\]; give \[1, 3, input\]"),
        ({"direction": "bidirectional"}, r"give \[2, 1, input\]"),
    ],
)
def test_broken_rules(attributes: dict, rule: str) -> None:
    with pytest.raises(GraphError, match=rule):
        evaluated("RNN", ONE, ONE, ONE, **attributes)
