"""Stands in for calibrated algorithms: rounds plainly and remembers what it was given."""

from __future__ import annotations

from typing import Any

import numpy as np

from halfbyte.quant import algorithms
from halfbyte.quant.algorithms import Solved

CALLS: list[dict[str, Any]] = []


def solve(weight: Any, encoding: Any, statistics: Any, options: Any, solver: Any) -> Solved:
    """Round to nearest, with true figures."""
    assert statistics.hessian is not None and statistics.count > 0
    CALLS.append({"weight": weight.copy(), "statistics": statistics, "options": options})
    parts = encoding.encode(weight)
    wrong = (weight - np.asarray(encoding.decode(parts, weight.shape[1]))).astype(np.float64)
    error = float(((wrong @ statistics.hessian) * wrong).sum() / statistics.count)
    return Solved(parts, error, error)


def install(monkeypatch: Any) -> list[dict[str, Any]]:
    """Put it in the place of `gptq` and `gptaq`; return the list that calls are added to."""
    for name in ("gptq", "gptaq"):
        place = "support.rounding_by_rtn:solve"
        monkeypatch.setitem(algorithms.CALIBRATED, name, place)
    CALLS.clear()
    return CALLS
