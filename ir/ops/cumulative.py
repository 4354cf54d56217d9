"""Running sums and products along an axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.ir.ops.numerics import doubled, quiet
from halfbyte.ir.ops.spec import Array, Attribute, Case, Context, OpSpec, normal, same_as_first


def running(function: Callable[..., Any], start: int) -> Callable[..., list[Array]]:
    """Return an evaluate that accumulates floats in float64, from `start` if exclusive."""

    @quiet
    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        data, axis = np.asarray(inputs[0]), int(np.asarray(inputs[1]).reshape(()))
        wide = doubled(data)
        if attributes["reverse"]:
            wide = np.flip(wide, axis)
        result = function(wide, axis=axis)
        if attributes["exclusive"] and data.shape[axis]:
            first = np.full_like(np.take(result, [0], axis), start)
            rest = np.take(result, np.arange(data.shape[axis] - 1), axis)
            result = np.concatenate([first, rest], axis)
        if attributes["reverse"]:
            result = np.flip(result, axis)
        return [result.astype(data.dtype)]

    return evaluate


def running_cases() -> list[Case]:
    """Return both axes, exclusive, reversed."""
    a = normal(27, 3, 4)
    return [
        Case("rows", [a, np.asarray(0, np.int64)]),
        Case("exclusive", [a, np.asarray(-1, np.int64)], {"exclusive": 1}),
        Case("reverse", [a, np.asarray(1, np.int64)], {"reverse": 1, "exclusive": 1}),
    ]


def running_spec(op: str, versions: tuple[int, ...], evaluate: Any) -> OpSpec:
    """Return the spec of one running operator."""
    return OpSpec(
        op,
        versions,
        ("x", "axis"),
        ("y",),
        infer=same_as_first,
        evaluate=evaluate,
        attributes={"exclusive": Attribute("int", 0), "reverse": Attribute("int", 0)},
        cases=running_cases,
    )


SPECS: tuple[OpSpec, ...] = (
    running_spec("CumSum", (11, 14), running(np.cumsum, 0)),
    running_spec("CumProd", (26,), running(np.cumprod, 1)),
)
