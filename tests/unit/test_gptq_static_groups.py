"""Scales up front: they do not depend on what was rounded before, with act-order or without."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from halfbyte.ir.encodings import encoding_from_name
from halfbyte.quant.algorithms.gptq import solve
from halfbyte.quant.calibration.statistics import InputStatistics
from halfbyte.quant.method import ActOrder, MethodOptions
from halfbyte.quant.solver import get_solver

PLAIN = MethodOptions(trials=False, refine=0, tail_damping=False)
COLUMNS, GROUP = 128, 32


def statistics() -> InputStatistics:
    """Return those of correlated inputs, whose last group has the largest ones."""
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 16)) @ random.normal(size=(16, COLUMNS))
    x += 0.1 * random.normal(size=x.shape)
    x[:, -GROUP:] *= 10
    low, high = x.min(axis=0).astype(np.float32), x.max(axis=0).astype(np.float32)
    return InputStatistics(
        x.T @ x, None, np.square(x).sum(axis=0), np.abs(x).sum(axis=0), low, high, len(x)
    )


def scales(weight: NDArray[np.float32], name: str, options: MethodOptions) -> NDArray[np.float32]:
    encoding = encoding_from_name(name)
    solved = solve(weight, encoding, statistics(), options, get_solver())
    assert solved.error < 0.6 * solved.rtn_error
    found = encoding.unpack(solved.parts, COLUMNS).scales.scale
    return np.asarray(found, np.float32)


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym", "Q4_0"])
@pytest.mark.parametrize(("order", "changed"), [("none", 0), ("static", 3)])
def test_scales_are_those_of_the_given_weights(name: str, order: ActOrder, changed: int) -> None:
    """A group that is rounded first moves the others; their scales see it only where they wait."""
    weight = np.random.default_rng(1).normal(0, 0.05, (8, COLUMNS)).astype(np.float32)
    other = weight.copy()
    other[:, changed * GROUP : (changed + 1) * GROUP] *= 1.7
    rest = np.arange(COLUMNS // GROUP) != changed
    static = replace(PLAIN, act_order=order, static_groups=True)
    first, second = scales(weight, name, static), scales(other, name, static)
    np.testing.assert_array_equal(first[:, rest], second[:, rest])
    assert (first[:, changed] != second[:, changed]).any()
    if order == "none":
        first, second = (scales(given, name, PLAIN) for given in (weight, other))
        assert (first[:, rest] != second[:, rest]).any()
