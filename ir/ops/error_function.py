"""The error function of arrays: exact from Python's math, or by polynomials within 1e-12."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.ops.numerics import by_chunks
from halfbyte.ir.ops.spec import Array

Wide = NDArray[np.float64]
SPLIT, END = 1.0, 6.0
NEAR_DEGREE, FAR_DEGREE = 10, 12
T_END, T_SPLIT = 1 / (1 + END / 2), 1 / (1 + SPLIT / 2)

_each = np.frompyfunc(math.erf, 1, 1)


def _near(u: Wide) -> Wide:
    """Return erf(x) / x, where u runs from -1 to 1 as x squared does from 0 to SPLIT."""
    roots = np.sqrt((u + 1) / 2)
    return np.asarray([math.erf(x) / x if x > 0 else 2 / math.sqrt(math.pi) for x in roots])


def _far(u: Wide) -> Wide:
    """Return erfc(x) exp(x^2), where u runs from -1 to 1 as 1 / (1 + x / 2) does from END."""
    points = 2 * (1 / ((u + 1) / 2 * (T_SPLIT - T_END) + T_END) - 1)
    return np.asarray([math.erfc(x) * math.exp(x * x) for x in points])


@cache
def _polynomials() -> tuple[list[float], list[float]]:
    from numpy.polynomial import chebyshev

    interpolate: Any = chebyshev.chebinterpolate
    fits = (interpolate(_near, NEAR_DEGREE), interpolate(_far, FAR_DEGREE))
    near, far = (np.asarray(chebyshev.cheb2poly(fit)).tolist() for fit in fits)
    return near, far


def _horner(u: Wide, coefficients: list[float]) -> Wide:
    result = np.full_like(u, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result *= u
        result += coefficient
    return result


def _polynomial(x: Wide) -> Wide:
    near, far = _polynomials()
    size = np.abs(x)
    inner = np.clip(x, -SPLIT, SPLIT)
    low = inner * _horner(2 * inner * inner - 1, near)
    outer = np.clip(size, SPLIT, END)
    u = (1 / (1 + outer / 2) - T_END) * (2 / (T_SPLIT - T_END)) - 1
    high = np.copysign(1 - np.exp(-outer * outer) * _horner(u, far), x)
    # comparisons with NaN are false, so that it takes the branch that keeps it
    return np.where(size > SPLIT, high, low)


def fast_erf(values: Array) -> Wide:
    """Return the error function in float64 within 1e-12, relative to it."""
    return np.asarray(by_chunks(_polynomial, np.asarray(values, np.float64)))


def erf(values: Array) -> Wide:
    """Return the error function of each element, in float64; of float64, to its last digit."""
    if np.asarray(values).dtype != np.float64:
        return fast_erf(values)
    return np.asarray(_each(values), np.float64).reshape(np.shape(values))
