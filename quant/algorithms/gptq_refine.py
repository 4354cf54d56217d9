"""After GPTQ: scales fitted again to the codes, then codes to the scales, while the error falls."""

from __future__ import annotations

from halfbyte.quant.algorithms.gptq_problem import Float, Problem
from halfbyte.quant.method import MethodOptions
from halfbyte.quant.rounding_grid import Codes, GridState
from halfbyte.quant.rounding_scales import Search
from halfbyte.quant.solver import Solver

PASSES = 2  # of descent on codes in a round


def refine(
    target: Float,
    problem: Problem,
    state: GridState,
    search: Search | None,
    codes: Codes,
    options: MethodOptions,
    solver: Solver,
) -> None:
    """Improve grid and codes [columns, rows] in place; target: [rows, columns]."""
    raise NotImplementedError
