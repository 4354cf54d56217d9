"""What our own measurements rank first: GPTQ that aims at the float model's output.

The driver calibrates a language model also on text that it writes itself
(`calibration/own_text.py`), which brings more than all else; docs/best.md has the figures.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.encodings.grid import require_finite
from halfbyte.quant.algorithms import Solved, gptq
from halfbyte.quant.algorithms.gptq_problem import prepare
from halfbyte.quant.calibration.statistics import InputStatistics
from halfbyte.quant.method import MethodOptions
from halfbyte.quant.solver import Solver

ALPHA = 1.0  # of what the inputs have lost so far, how much this weight is to make up for
REFINE = 3  # rounds of refitting, which pay on varied text


def solve(
    weight: NDArray[np.float32],
    encoding: Encoding,
    statistics: InputStatistics,
    options: MethodOptions,
    solver: Solver,
) -> Solved:
    """Return the weight [rows, columns] in `encoding`.

    GPTQ rounds the weight that comes nearest to the float model's output on the inputs that there
    are. Without the float model's inputs it rounds the weight itself.

    Raises:
        QuantizationError: weights or statistics are not finite, or rows of this length cannot be
            encoded.
    """
    weight = np.ascontiguousarray(weight, np.float32)
    require_finite(weight)
    if statistics.cross is not None:
        plain = replace(options, act_order="none", alpha=ALPHA)
        problem = prepare(encoding, statistics, plain, solver, asymmetric=True)
        if problem is not None and problem.shift is not None:
            aimed = gptq.target_of(weight, problem, solver)
            weight = aimed[:, np.argsort(problem.order)]  # an encoding may sort its columns
    searches = options.group_search is not False
    refined = replace(options, refine=max(options.refine, REFINE), group_search=searches)
    return gptq.solve(weight, encoding, statistics, refined, solver)
