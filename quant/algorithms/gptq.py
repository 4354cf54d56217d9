"""GPTQ and GPTAQ into any encoding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.quant.algorithms import Solved
from halfbyte.quant.calibration.statistics import InputStatistics
from halfbyte.quant.method import MethodOptions
from halfbyte.quant.solver import Solver


def solve(
    weight: NDArray[np.float32],
    encoding: Encoding,
    statistics: InputStatistics,
    options: MethodOptions,
    solver: Solver,
) -> Solved:
    """Return the weight [rows, columns] in `encoding`, by GPTQ."""
    raise NotImplementedError


def solve_asymmetric(
    weight: NDArray[np.float32],
    encoding: Encoding,
    statistics: InputStatistics,
    options: MethodOptions,
    solver: Solver,
) -> Solved:
    """Return the weight [rows, columns] in `encoding`, by GPTAQ."""
    raise NotImplementedError
