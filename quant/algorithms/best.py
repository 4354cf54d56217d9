"""What our own measurements rank first for each type: GPTQ with what pays for that type.

docs/calibration.md has the figures. The driver adds random tokens to the text that a language model
is calibrated on (`calibration/random_tokens.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.quant.algorithms import Solved, gptq
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
    """Return the weight [rows, columns] in `encoding`.

    Raises:
        QuantizationError: weights or statistics are not finite, or rows of this length cannot be
            encoded.
    """
    return gptq.solve(weight, encoding, statistics, replace(options, **_choice(encoding)), solver)


def _choice(encoding: Encoding) -> dict[str, Any]:
    return {}
