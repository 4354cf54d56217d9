"""Normalizations of channels and groups of channels: data is [batch, channels, ...]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.numerics import quiet
from halfbyte.ir.ops.older_forms import constant, consuming, insert_before, renewed, set_inputs
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    normal,
    required_input,
    same_as_first,
)

EPSILON = {"epsilon": Attribute("float", 1e-5)}


def channelwise(values: Any, rank: int) -> Array:
    """Return one float64 number per channel in a shape that broadcasts to the data."""
    return np.asarray(values, np.float64).reshape(1, -1, *(1,) * (rank - 2))


def standardized(data: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    """Return data with mean 0 and variance 1 over axes, in float64."""
    wide = data.astype(np.float64)
    centered = wide - wide.mean(axis=axes, keepdims=True)
    return np.asarray(
        centered / np.sqrt((centered * centered).mean(axis=axes, keepdims=True) + epsilon)
    )


@quiet
def evaluate_instance(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate InstanceNormalization."""
    data, scale, bias = (np.asarray(v) for v in inputs)
    result = standardized(data, tuple(range(2, data.ndim)), attributes["epsilon"])
    result = result * channelwise(scale, data.ndim) + channelwise(bias, data.ndim)
    return [result.astype(data.dtype)]


def grouped(data: Array, attributes: Mapping[str, Any]) -> Array:
    """Return data with mean 0 and variance 1 in every group, [batch, groups, -1] in float64.

    Raises:
        GraphError: the channels do not divide into the groups.
    """
    groups, channels = attributes["num_groups"], data.shape[1]
    if channels % groups:
        found = f"{channels} channels in {groups} groups"
        raise GraphError("GroupNormalization", f"{found}; give a divisor")
    rows = data.reshape(data.shape[0], groups, data[0].size // groups if len(data) else 0)
    return standardized(rows, (2,), attributes["epsilon"])


@quiet
def evaluate_group(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate GroupNormalization; 16-bit data is rounded before the scale is applied."""
    data, scale, bias = (np.asarray(v) for v in inputs)
    result = grouped(data, attributes).reshape(data.shape)
    if data.dtype.itemsize < 4:
        result = result.astype(data.dtype).astype(np.float64)
    result = result * channelwise(scale, data.ndim) + channelwise(bias, data.ndim)
    return [result.astype(data.dtype)]


@quiet
def evaluate_scaled_groups(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate GroupNormalization with one scale and bias per group."""
    data, scale, bias = (np.asarray(v) for v in inputs)
    result = grouped(data, attributes) * channelwise(scale, 3) + channelwise(bias, 3)
    return [result.reshape(data.shape).astype(data.dtype)]


def upgrade_group(graph: Graph, node: Node) -> bool:
    """Repeat the scale and the bias of each group for its channels."""
    data, groups = required_input(node, 0), node.attributes["num_groups"]
    channels = data.shape[1] if data.shape is not None else None
    if not isinstance(channels, int) or channels % groups:
        return False
    shapes = {
        "Reshape": constant(graph, node, "column", np.asarray([groups, 1], np.int64)),
        "Expand": constant(graph, node, "table", np.asarray([groups, channels // groups])),
        "": constant(graph, node, "channels", np.asarray([channels], np.int64)),
    }
    values: list[Value | None] = [data]
    for index in (1, 2):
        value = required_input(node, index)
        for op, shape in shapes.items():
            version = 13 if op == "Expand" else 25
            kind = {"dtype": value.dtype}
            value = insert_before(graph, node, op or "Reshape", [value, shape], version, **kind)
        values.append(value)
    set_inputs(graph, node, values)
    return renewed(node, 21)


@quiet
def evaluate_mean_variance(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate MeanVarianceNormalization; the deviation is never below 1e-9."""
    data = np.asarray(inputs[0])
    wide, axes = data.astype(np.float64), tuple(attributes["axes"])
    centered = wide - wide.mean(axis=axes, keepdims=True)
    deviation = np.sqrt((centered * centered).mean(axis=axes, keepdims=True))
    return [(centered / (deviation + 1e-9)).astype(data.dtype)]


@quiet
def evaluate_lp(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate LpNormalization; zeros stay zeros."""
    data = np.asarray(inputs[0])
    wide, p = np.abs(data.astype(np.float64)), attributes["p"]
    norm = np.sum(wide**p, axis=attributes["axis"], keepdims=True) ** (1 / p)
    return [(data.astype(np.float64) / np.where(norm == 0, 1, norm)).astype(data.dtype)]


@quiet
def evaluate_local_response(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate LRN: squares are summed over neighbouring channels."""
    data, size = np.asarray(inputs[0]), attributes["size"]
    wide = data.astype(np.float64)
    before = (size - 1) // 2
    pads = [(0, 0), (before, size - 1 - before)] + [(0, 0)] * (data.ndim - 2)
    padded = np.pad(wide * wide, pads)
    windows = [padded[:, first : first + data.shape[1]] for first in range(size)]
    scale = attributes["bias"] + attributes["alpha"] / size * sum(windows)
    return [(wide / scale ** attributes["beta"]).astype(data.dtype)]


def infer_local_response(node: Node) -> list[ValueType]:
    """Infer: like the input, which has channels."""
    shape = required_input(node, 0).shape
    if shape is not None and len(shape) < 2:
        raise GraphError(node.label, f"data of rank {len(shape)} has no channels; give [N, C, ...]")
    return same_as_first(node)


def channel_cases() -> list[Case]:
    """Return images and series of four channels."""
    scale, bias = normal(125, 4), normal(126, 4)
    return [
        Case("image", [normal(127, 2, 4, 3, 5), scale, bias]),
        Case("series", [normal(128, 2, 4, 6) * 9 + 3, scale, bias], {"epsilon": 0.01}),
    ]


INSTANCE = OpSpec(
    "InstanceNormalization",
    (6, 22),
    ("input", "scale", "B"),
    ("output",),
    infer=same_as_first,
    evaluate=evaluate_instance,
    attributes=EPSILON,
    cases=channel_cases,
)
GROUP = OpSpec(
    "GroupNormalization",
    (21,),
    ("X", "scale", "bias"),
    ("Y",),
    infer=same_as_first,
    evaluate=evaluate_group,
    attributes={
        **EPSILON,
        "num_groups": Attribute("int", required=True),
        "stash_type": Attribute("int", 1),
    },
    cases=lambda: [
        Case(c.name, c.inputs, {**c.attributes, "num_groups": 2}) for c in channel_cases()
    ],
)
SPECS: tuple[OpSpec, ...] = (
    consuming(INSTANCE),
    INSTANCE,
    replace(
        GROUP,
        versions=(18,),
        evaluate=evaluate_scaled_groups,
        attributes={**EPSILON, "num_groups": Attribute("int", required=True)},
        upgrade=upgrade_group,
        cases=list,
    ),
    GROUP,
    OpSpec(
        "MeanVarianceNormalization",
        (9, 13),
        ("X",),
        ("Y",),
        infer=same_as_first,
        evaluate=evaluate_mean_variance,
        attributes={"axes": Attribute("ints", [0, 2, 3])},
        cases=lambda: [
            Case("image", [normal(129, 2, 4, 3, 5)]),
            Case("rows", [normal(130, 3, 7)], {"axes": [-1]}),
        ],
    ),
    OpSpec(
        "LpNormalization",
        (1, 22),
        ("input",),
        ("output",),
        infer=same_as_first,
        evaluate=evaluate_lp,
        attributes={"axis": Attribute("int", -1), "p": Attribute("int", 2)},
        cases=lambda: [
            Case("euclidean", [normal(131, 3, 7)]),
            Case("magnitudes", [normal(132, 3, 7)], {"p": 1, "axis": 0}),
        ],
    ),
    OpSpec(
        "LRN",
        (1, 13),
        ("X",),
        ("Y",),
        infer=infer_local_response,
        evaluate=evaluate_local_response,
        attributes={
            "size": Attribute("int", required=True),
            "alpha": Attribute("float", 1e-4),
            "beta": Attribute("float", 0.75),
            "bias": Attribute("float", 1.0),
        },
        cases=lambda: [
            Case("odd", [normal(133, 2, 6, 3, 3) * 9], {"size": 3, "alpha": 0.1}),
            Case("even", [normal(134, 2, 6, 4) * 9], {"size": 4, "alpha": 0.1, "bias": 2.0}),
        ],
    ),
)
