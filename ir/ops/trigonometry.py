"""Circular and hyperbolic functions and their inverses."""

from __future__ import annotations

from typing import Any

import numpy as np

from halfbyte.ir.ops.elementwise import unary
from halfbyte.ir.ops.spec import Case, OpSpec, normal
from halfbyte.ir.ops.unary import IN_OUT, rounded


def unit_cases() -> list[Case]:
    """Return values between -1 and 1."""
    return [Case("unit", [np.tanh(normal(16, 2, 5))])]


def above_one_cases() -> list[Case]:
    """Return values above 1."""
    return [Case("above_one", [1 + np.abs(normal(17, 2, 5))])]


def plain_cases() -> list[Case]:
    """Return a plain sample."""
    return [Case("plain", [normal(18, 2, 5)])]


def circular(op: str, function: Any, first: int, cases: Any = plain_cases) -> OpSpec:
    """Return the spec of one function."""
    versions = (first, 22)
    return unary(op, function, versions, evaluate=rounded(function), cases=cases, **IN_OUT)


SPECS: tuple[OpSpec, ...] = (
    circular("Sin", np.sin, 7),
    circular("Cos", np.cos, 7),
    circular("Tan", np.tan, 7),
    circular("Asin", np.arcsin, 7, unit_cases),
    circular("Acos", np.arccos, 7, unit_cases),
    circular("Atan", np.arctan, 7),
    circular("Sinh", np.sinh, 9),
    circular("Cosh", np.cosh, 9),
    circular("Asinh", np.arcsinh, 9),
    circular("Acosh", np.arccosh, 9, above_one_cases),
    circular("Atanh", np.arctanh, 9, lambda: [Case("unit", [np.tanh(normal(19, 2, 5))])]),
)
