"""Linear attention against its update rules, the causal convolution, FlexAttention."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.ops import op_spec
from halfbyte.ir.ops.spec import UNKNOWN, Context, normal
from support.op_evaluation import evaluated, evaluated_one, inferred

STEPS, HEADS, GROUPS, KEY, VALUE = 4, 4, 2, 3, 5
PACKED = [normal(1, 2, STEPS, HEADS * KEY), normal(2, 2, STEPS, GROUPS * KEY) * 0.4]
PACKED.append(normal(3, 2, STEPS, GROUPS * VALUE))
PAST = normal(4, 2, GROUPS, KEY, VALUE)
SIZES = {"q_num_heads": HEADS, "kv_num_heads": GROUPS}


def recurrent(rule: str, decay, beta, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs and last state, one head and one step at a time."""
    q, k, v = (a.astype(np.float64) for a in PACKED)
    q, k, v = (
        a.reshape(2, STEPS, n, -1) for a, n in zip((q, k, v), (HEADS, GROUPS, GROUPS), strict=True)
    )
    out, last = np.zeros((2, STEPS, HEADS, VALUE)), np.zeros(PAST.shape)
    for b, h in np.ndindex(2, HEADS):
        group = h // (HEADS // GROUPS)
        state = PAST[b, group].astype(np.float64)
        for t in range(STEPS):
            kept = (
                np.exp(decay[b, t].reshape(GROUPS, -1)[group])[:, None] if decay is not None else 1
            )
            rate = beta[b, t, group % beta.shape[2]] if beta is not None else 1
            state = kept * state
            seen = state.T @ k[b, t, group] if "delta" in rule else 0
            state = state + rate * np.outer(k[b, t, group], v[b, t, group] - seen)
            out[b, t, h] = scale * (state.T @ q[b, t, h])
        last[b, group] = state
    return out.reshape(2, STEPS, -1), last


@pytest.mark.parametrize("scale", [0.0, 0.7])
@pytest.mark.parametrize(
    ("rule", "width", "rates"),
    [
        ("linear", 0, 0),
        ("gated", GROUPS, 0),
        ("gated", GROUPS * KEY, 0),
        ("delta", 0, GROUPS),
        ("delta", 0, 1),
        ("gated_delta", GROUPS, GROUPS),
        ("gated_delta", GROUPS * KEY, 1),
    ],
)
def test_linear_attention_follows_its_rule(rule: str, width: int, rates: int, scale: float) -> None:
    decay = -np.abs(normal(5, 2, STEPS, width)) if width else None
    beta = np.abs(normal(6, 2, STEPS, rates)) if rates else None
    given = SIZES | {"update_rule": rule, "scale": scale}
    found = evaluated("LinearAttention", *PACKED, PAST, decay, beta, outputs=2, **given)
    wanted = recurrent(rule, decay, beta, scale or 1 / np.sqrt(KEY))
    for result, value in zip(found, wanted, strict=True):
        np.testing.assert_allclose(result, value, rtol=1e-5, atol=1e-5)


def test_steps_one_by_one_are_all_steps_at_once() -> None:
    given = SIZES | {"update_rule": "linear"}
    whole, last = evaluated("LinearAttention", *PACKED, outputs=2, **given)
    state = np.zeros(PAST.shape, np.float32)
    for t in range(STEPS):
        step = [a[:, t : t + 1] for a in PACKED]
        out, state = evaluated("LinearAttention", *step, state, outputs=2, **given)
        np.testing.assert_allclose(out, whole[:, t : t + 1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state, last, rtol=1e-4, atol=1e-5)


def test_the_state_keeps_its_own_dtype() -> None:
    half = [a.astype(np.float16) for a in PACKED]
    found = evaluated("LinearAttention", *half, PAST, outputs=2, **SIZES, update_rule="linear")
    assert [a.dtype.name for a in found] == ["float16", "float32"]
    alone = evaluated("LinearAttention", *half, outputs=2, **SIZES, update_rule="linear")
    assert [a.dtype.name for a in alone] == ["float16", "float16"]


@pytest.mark.parametrize(
    ("inputs", "attributes", "rule"),
    [
        (PACKED, {}, "requires input decay"),
        ([*PACKED, None, PACKED[0]], {"update_rule": "linear"}, "takes no input decay"),
        (PACKED, {"update_rule": "delta"}, "requires input beta"),
        (PACKED, {"update_rule": "hebb"}, "update_rule is 'hebb'"),
        (PACKED, {"q_num_heads": 3, "update_rule": "linear"}, "multiple of kv_num_heads 2"),
        (PACKED, {"kv_num_heads": 4, "update_rule": "linear"}, r"is no \[b, t, 4 \* d\]"),
    ],
)
def test_broken_rules(inputs: list, attributes: dict, rule: str) -> None:
    with pytest.raises(GraphError, match=rule):
        inferred("LinearAttention", *inputs, outputs=2, **(SIZES | attributes))


@pytest.mark.parametrize("activation", ["none", "silu", "swish"])
@pytest.mark.parametrize("length", [6, 1])
def test_causal_convolution_carries_on(activation: str, length: int) -> None:
    data, weight, bias = normal(7, 2, 3, 6), normal(8, 3, 1, 4), normal(9, 3)
    wanted = evaluated_one("Conv", data, weight, bias, group=3, pads=[3, 0]).astype(np.float64)
    if activation != "none":
        wanted = wanted / (1 + np.exp(-wanted))
    state = None
    for start in range(0, 6, length):
        part = data[:, :, start : start + length]
        inputs = [part, weight, bias, state]
        result, state = evaluated("CausalConvWithState", *inputs, outputs=2, activation=activation)
        np.testing.assert_allclose(
            result, wanted[:, :, start : start + length], rtol=1e-5, atol=1e-6
        )
    np.testing.assert_array_equal(state, data[:, :, -3:])


def test_causal_convolution_shapes_and_rules() -> None:
    x, w = Value("x", "float32", ("b", 3, "t")), Value("w", "float32", (3, 1, "k"))
    kinds = inferred("CausalConvWithState", x, w, outputs=2)
    assert [k.shape for k in kinds] == [("b", 3, "t"), ("b", 3, UNKNOWN)]
    assert inferred("CausalConvWithState", Value("x", "float32"), w)[0].shape is None
    with pytest.raises(GraphError, match="activation is 'relu'"):
        inferred("CausalConvWithState", x, w, activation="relu")
    with pytest.raises(GraphError, match=r"\[channels, 1, k\] was required"):
        inferred("CausalConvWithState", x, Value("w", "float32", (3, 2, 4)))
    with pytest.raises(GraphError, match="input has rank 2"):
        inferred("CausalConvWithState", Value("x", "float32", (3, 2)), w)


FLEX = "ai.onnx.preview.FlexAttention"
Q, K, V = normal(10, 2, 4, 3, 8), normal(11, 2, 2, 5, 8), normal(12, 2, 2, 5, 6)


def test_flex_attention_without_graphs_is_attention() -> None:
    result = evaluated_one(FLEX, Q, K, V, scale=0.4)
    np.testing.assert_allclose(
        result, evaluated_one("Attention", Q, K, V, scale=0.4), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("precision", [None, "float16"])
def test_graphs_see_scores_and_weights_with_what_they_capture(precision: str | None) -> None:
    seen = []

    def run(graph: Graph, inputs: list) -> list:
        seen.append((graph.name, inputs[0].dtype.name, inputs[0].shape))
        return [inputs[0] + inputs[1] if graph.name == "score" else inputs[0] * 2]

    spec = op_spec(FLEX)
    given = {"score_mod": Graph("score"), "prob_mod": Graph("prob"), "softmax_precision": precision}
    bias = np.zeros(5, precision or np.float32)
    bias[3:] = -np.inf
    context = Context(run=run)
    (result,) = spec.evaluate([Q, K, V, bias], spec.with_defaults(given), context)
    shape, dtype = (2, 4, 3, 5), precision or "float32"
    assert seen == [("score", dtype, shape), ("prob", dtype, shape)]
    wanted = 2 * evaluated_one("Attention", Q, K[:, :, :3], V[:, :, :3])
    bound = 1e-5 if precision is None else 1e-2
    np.testing.assert_allclose(result, wanted, rtol=bound, atol=bound)


def test_flex_attention_rules() -> None:
    with pytest.raises(GraphError, match="input 1 has rank 3"):
        inferred(FLEX, Q, K[0], V)
    with pytest.raises(GraphError, match="3 query heads are no multiple of 2"):
        inferred(FLEX, Q[:, :3], K, V)
    assert inferred(FLEX, Value("q", "float32"), K, V)[0].shape is None
