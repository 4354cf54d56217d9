"""Operators over any number of broadcast inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np

from halfbyte.ir.ops.elementwise import elementwise, infer_broadcast, pair_cases
from halfbyte.ir.ops.numerics import doubled
from halfbyte.ir.ops.older_forms import consuming, to_version
from halfbyte.ir.ops.spec import Array, Case, OpSpec, normal


def folded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of one or more arrays from one of two."""
    return lambda *arrays: reduce(function, arrays)


def total(*arrays: Array) -> Array:
    """Return the sum; more than two floats are added in float64."""
    if len(arrays) < 3:
        return np.asarray(reduce(np.add, arrays))
    return np.asarray(reduce(np.add, (doubled(a) for a in arrays)))


def mean(*arrays: Array) -> Array:
    """Return the mean, computed in float64."""
    return np.asarray(reduce(np.add, (doubled(a) for a in arrays)) / len(arrays))


def variadic_cases() -> list[Case]:
    """Return one, three and broadcast inputs."""
    arrays = [normal(24 + i, 3, 4) for i in range(3)]
    return [*pair_cases(), Case("one", arrays[:1]), Case("three", [*arrays[:2], arrays[2][0]])]


def float_cases() -> list[Case]:
    """Return the cases of floats."""
    return [case for case in variadic_cases() if case.name != "integers"]


def variadic(op: str, function: Callable[..., Any], *types: int, cases: Any) -> Sequence[OpSpec]:
    """Return the forms: with `consumed_inputs`, without broadcasting, and with it."""
    newest = OpSpec(
        op,
        (8, *types),
        ("data_0*",),
        (op.lower(),),
        infer=infer_broadcast,
        evaluate=elementwise(function),
        cases=cases,
    )
    same_shape = replace(newest, versions=(6,), upgrade=to_version(newest.versions[-1]), cases=list)
    return consuming(newest), same_shape, newest


SPECS: tuple[OpSpec, ...] = (
    *variadic("Min", folded(np.minimum), 12, 13, cases=variadic_cases),
    *variadic("Max", folded(np.maximum), 12, 13, cases=variadic_cases),
    *variadic("Sum", total, 13, cases=float_cases),
    *variadic("Mean", mean, 13, cases=float_cases),
)
