"""Attention as a recurrence over a matrix state, and the convolution that precedes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Dim, Node
from halfbyte.ir.ops.recurrent_cells import sigmoid
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    common_dtype,
    input_at,
    normal,
    required_input,
)

RULES = ("linear", "gated", "delta", "gated_delta")
ACTIVATIONS = ("none", "silu", "swish")


def head_size(node: Node, index: int, heads: int) -> Dim:
    """Return the size of a head of a packed input.

    Raises:
        GraphError: the rank is not 3, or the heads do not divide the width.
    """
    shape = required_input(node, index).shape
    if shape is None:
        return UNKNOWN
    width = shape[-1]
    if len(shape) != 3 or (isinstance(width, int) and width % heads):
        raise GraphError(node.label, f"shape {list(shape)} is no [b, t, {heads} * d]")
    return width // heads if isinstance(width, int) else UNKNOWN


def infer_linear_attention(node: Node) -> list[ValueType]:
    """Infer: [batch, steps, heads * size] and the state [batch, kv heads, key size, value size].

    Raises:
        GraphError: heads do not fit, or the rule wants other inputs.
    """
    rule = node.attributes.get("update_rule") or "gated_delta"
    heads, groups = node.attributes["q_num_heads"], node.attributes["kv_num_heads"]
    if rule not in RULES:
        raise GraphError(node.label, f"update_rule is {rule!r}; give one of {', '.join(RULES)}")
    if heads < 1 or groups < 1 or heads % groups:
        raise GraphError(
            node.label, f"q_num_heads {heads} must be a multiple of kv_num_heads {groups}"
        )
    for index, name, word in ((4, "decay", "gated"), (5, "beta", "delta")):
        if (input_at(node, index) is not None) != (word in rule):
            what = "requires" if word in rule else "takes no"
            raise GraphError(node.label, f"update_rule {rule!r} {what} input {name}")
    query, past = required_input(node, 0), input_at(node, 3)
    key_size, value_size = head_size(node, 0, heads), head_size(node, 2, groups)
    head_size(node, 1, groups)
    dtype = common_dtype(node, [0, 1, 2])
    batch: Dim = query.shape[0] if query.shape else UNKNOWN
    steps: Dim = query.shape[1] if query.shape else UNKNOWN
    width = heads * value_size if isinstance(value_size, int) else UNKNOWN
    held = dtype if past is None else common_dtype(node, [3])
    state = ValueType(held, (batch, groups, key_size, value_size))
    return [ValueType(dtype, (batch, steps, width)), state][: max(1, len(node.outputs))]


def unpacked(data: Any, heads: int) -> NDArray[np.float64]:
    """Return [b, t, heads * d] as [t, b, heads, d] in float64."""
    array = np.asarray(data).astype(np.float64)
    size = array.shape[2] // heads
    return np.asarray(array.reshape(*array.shape[:2], heads, size).swapaxes(0, 1))


def evaluate_linear_attention(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate LinearAttention step by step in float64."""
    query, key, value, past, decay, beta = (*inputs, None, None, None)[:6]
    heads, groups = attributes["q_num_heads"], attributes["kv_num_heads"]
    q, k, v = unpacked(query, heads), unpacked(key, groups), unpacked(value, groups)
    steps, batch, _, size = q.shape
    dtype = np.asarray(query).dtype
    scale = attributes["scale"] or 1 / np.sqrt(size)
    q = q.reshape(steps, batch, groups, heads // groups, size) * scale
    state = np.zeros((batch, groups, size, v.shape[-1]))
    if past is not None:
        state = np.asarray(past).astype(np.float64)
    kept = None if decay is None else np.exp(unpacked(decay, groups))
    rate = None if beta is None else unpacked(beta, np.asarray(beta).shape[-1])
    result = np.zeros((steps, batch, groups, heads // groups, v.shape[-1]))
    for t in range(steps):
        new = v[t]
        if kept is not None:
            state = state * kept[t][..., None]
        if rate is not None:
            new = rate[t] * (new - np.einsum("bhkv,bhk->bhv", state, k[t]))
        state = state + k[t][..., :, None] * new[..., None, :]
        result[t] = q[t] @ state
    output = result.swapaxes(0, 1).reshape(batch, steps, -1).astype(dtype)
    held = dtype if past is None else np.asarray(past).dtype
    return [output, state.astype(held)][: max(1, context.outputs)]


def infer_causal_conv(node: Node) -> list[ValueType]:
    """Infer: like the input, and the last positions that the kernel looks back to.

    Raises:
        GraphError: input and weight do not fit each other, or the activation is unknown.
    """
    activation = node.attributes.get("activation") or "none"
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise GraphError(node.label, f"activation is {activation!r}; give one of {known}")
    data, weight = required_input(node, 0).shape, required_input(node, 1).shape
    dtype = common_dtype(node)
    if weight is not None and (len(weight) != 3 or weight[1] not in (1, UNKNOWN)):
        raise GraphError(node.label, f"weight is {list(weight)}, [channels, 1, k] was required")
    if data is None:
        return [ValueType(dtype, None)] * max(1, len(node.outputs))
    if len(data) != 3:
        raise GraphError(node.label, f"input has rank {len(data)}, [b, channels, t] was required")
    kernel = weight[2] if weight else UNKNOWN
    back = kernel - 1 if isinstance(kernel, int) else UNKNOWN
    state = ValueType(dtype, (*data[:2], back))
    return [ValueType(dtype, data), state][: max(1, len(node.outputs))]


def evaluate_causal_conv(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate CausalConvWithState in float64: each channel by its own kernel."""
    data, weight, bias, past = (*inputs, None, None)[:4]
    data, weight = np.asarray(data), np.asarray(weight)
    kernel, length = weight.shape[2], data.shape[2]
    if past is None:
        past = np.zeros((*data.shape[:2], kernel - 1), data.dtype)
    whole = np.concatenate([np.asarray(past), data], axis=2)
    wide, taps = whole.astype(np.float64), weight[:, 0].astype(np.float64)
    result = np.zeros(data.shape)
    for tap in range(kernel):
        result += wide[:, :, tap : tap + length] * taps[:, tap, None]
    if bias is not None:
        result += np.asarray(bias).astype(np.float64)[:, None]
    if attributes["activation"] != "none":
        result = result * sigmoid(result)
    state = whole[:, :, whole.shape[2] - (kernel - 1) :]
    return [result.astype(data.dtype), np.ascontiguousarray(state)][: max(1, context.outputs)]


def linear_attention_cases() -> list[Case]:
    """Return the plain rule over a state, and both gates with shared heads."""
    q, k, v = normal(380, 2, 3, 16), normal(381, 2, 3, 8) * 0.3, normal(382, 2, 3, 12)
    decay, beta = -np.abs(normal(383, 2, 3, 2)), np.abs(normal(384, 2, 3, 2))
    heads = {"q_num_heads": 4, "kv_num_heads": 2}
    held = [q, k, v, normal(385, 2, 2, 4, 6)]
    return [
        Case("gated_delta", [q, k, v, None, decay, beta], heads, outputs=2),
        Case("linear", held, heads | {"update_rule": "linear"}, outputs=2),
    ]


def causal_conv_cases() -> list[Case]:
    """Return the start of a sequence, and a step with a state and an activation."""
    weight, bias = normal(386, 3, 1, 4), normal(387, 3)
    step = [normal(388, 2, 3, 1), weight, bias, normal(389, 2, 3, 3)]
    return [
        Case("start", [normal(390, 2, 3, 5), weight], outputs=2),
        Case("step", step, {"activation": "silu"}, outputs=2),
    ]


SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "LinearAttention",
        (27,),
        ("query", "key", "value", "past_state?", "decay?", "beta?"),
        ("output", "present_state"),
        infer=infer_linear_attention,
        evaluate=evaluate_linear_attention,
        attributes={
            "chunk_size": Attribute("int", 64),
            "kv_num_heads": Attribute("int", required=True),
            "q_num_heads": Attribute("int", required=True),
            "scale": Attribute("float", 0.0),
            "update_rule": Attribute("string", "gated_delta"),
        },
        cases=linear_attention_cases,
    ),
    OpSpec(
        "CausalConvWithState",
        (27,),
        ("input", "weight", "bias?", "past_state?"),
        ("output", "present_state"),
        infer=infer_causal_conv,
        evaluate=evaluate_causal_conv,
        attributes={"activation": Attribute("string", "none")},
        cases=causal_conv_cases,
    ),
)
