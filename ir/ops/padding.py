"""Pad: every mode over every dtype; negative counts cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Dim, Node
from halfbyte.ir.ops.older_forms import Lift, older, renumbered
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    as_array,
    axis_of,
    common_dtype,
    input_at,
    integers,
    ints,
    known_ints,
    normal,
    operator,
    required_input,
)

MODES = ("constant", "reflect", "edge", "wrap")


def pairs(counts: Sequence[int], axes: Sequence[int], rank: int) -> list[tuple[int, int]]:
    """Return (before, after) for each axis of a tensor.

    Raises:
        ValueError: there are not two counts for each axis.
    """
    if len(counts) != 2 * len(axes):
        raise ValueError(f"{len(counts)} pads for {len(axes)} axes; give two for each")
    result = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        result[axis] = (counts[place], counts[place + len(axes)])
    return result


def infer_pad(node: Node) -> list[ValueType]:
    """Infer: lengths grown by the constant counts."""
    data, counts = required_input(node, 0), known_ints(required_input(node, 1))
    axes_value, dtype = input_at(node, 3), common_dtype(node, [0])
    if node.attributes.get("mode", "constant") not in MODES:
        raise GraphError(node.label, f"mode {node.attributes['mode']!r}; give one of {MODES}")
    if data.shape is None:
        return [ValueType(dtype, None)]
    rank, axes = len(data.shape), known_ints(axes_value)
    if counts is None or (axes_value is not None and axes is None):
        return [ValueType(dtype, (UNKNOWN,) * rank)]
    places = range(rank) if axes is None else [axis_of(node, axis, rank) for axis in axes]
    try:
        grown = pairs(counts, list(places), rank)
    except ValueError as error:
        raise GraphError(node.label, str(error)) from error
    return [ValueType(dtype, tuple(_grown(d, *p) for d, p in zip(data.shape, grown, strict=True)))]


def _grown(dim: Dim, before: int, after: int) -> Dim:
    if isinstance(dim, int):
        return max(0, dim + before + after)
    return dim if before == after == 0 else UNKNOWN


def cut(data: Array, counts: Sequence[tuple[int, int]]) -> Array:
    """Remove what negative counts say."""
    index = tuple(
        slice(max(0, -before), length - max(0, -after))
        for length, (before, after) in zip(data.shape, counts, strict=True)
    )
    return data[index]


def padded(
    data: Array, counts: Sequence[tuple[int, int]], mode: str, value: Any | None = None
) -> Array:
    """Return an array grown by (before, after) along each axis.

    value: what `constant` fills with; zero, or the empty string, if None.
    """
    held = cut(data, counts)
    grow = [(max(0, before), max(0, after)) for before, after in counts]
    if mode == "constant":
        shape = [n + b + a for n, (b, a) in zip(held.shape, grow, strict=True)]
        out = np.empty(shape, data.dtype)
        out[...] = ("" if data.dtype.kind == "O" else 0) if value is None else value
        inner = tuple(slice(b, b + n) for n, (b, _) in zip(held.shape, grow, strict=True))
        out[inner] = held
        return out
    for axis, pair in enumerate(grow):
        if pair != (0, 0):
            order = np.pad(np.arange(held.shape[axis]), pair, mode=mode)  # type: ignore[call-overload]
            held = np.take(held, order, axis)
    return held


def evaluate_pad(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Grow axes by a value, reflections, the edge, or around."""
    data, given = as_array(inputs[0]), [*inputs, None, None]
    axes = range(data.ndim) if given[3] is None else [a % data.ndim for a in integers(given[3])]
    counts = pairs(integers(given[1]), list(axes), data.ndim)
    value = None if given[2] is None else np.asarray(given[2]).reshape(-1)[0]
    return [padded(data, counts, attributes["mode"], value)]


PAD = operator(
    "Pad",
    (19, 21, 23, 24, 25),
    "data pads constant_value? axes? -> output",
    infer=infer_pad,
    evaluate=evaluate_pad,
    attributes={"mode": Attribute("string", "constant")},
    cases=lambda: [
        Case("value", [normal(50, 2, 3), ints(1, 0, 0, 2), np.float32(7).reshape(())]),
        Case("axes", [normal(50, 2, 3), ints(2, -1), None, ints(-1)]),
        Case("reflect", [normal(50, 2, 4), ints(0, 3, 1, 1)], {"mode": "reflect"}),
        Case("wrap", [normal(50, 2, 4), ints(0, 3, 1, 5)], {"mode": "wrap"}),
        Case("edge", [normal(50, 2, 4), ints(0, 3, 1, 5)], {"mode": "edge"}),
    ],
)
COUNTS = Attribute("ints", required=True)
VALUE = {"value": Lift(2, None, scalar=True)}
SPECS: tuple[OpSpec, ...] = (
    PAD,
    renumbered(PAD, (18,)),
    renumbered(PAD, (11, 13), inputs=PAD.inputs[:3]),
    older(PAD, (2,), {"pads": Lift(1)} | VALUE, {"pads": COUNTS, "value": Attribute("float", 0.0)}),
    older(
        PAD,
        (1,),
        {"paddings": Lift(1)} | VALUE,
        {"paddings": COUNTS, "value": Attribute("float", 0.0)},
    ),
)
