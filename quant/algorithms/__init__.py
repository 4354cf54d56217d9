"""The table of algorithms: how a tensor's values are chosen in a given encoding."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from halfbyte.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from halfbyte.ir.encodings.encoding import Array, Encoding
    from halfbyte.ir.tensor import Tensor
    from halfbyte.quant.calibration.statistics import InputStatistics
    from halfbyte.quant.method import MethodOptions
    from halfbyte.quant.solver import Solver

ALGORITHMS: dict[str, str] = {
    "rtn": "halfbyte.quant.algorithms.rtn:requantize",
    "exhaustive": "halfbyte.quant.algorithms.exhaustive:requantize",
    "hqq": "halfbyte.quant.algorithms.hqq:requantize",
}
# Those that need the statistics of a weight's inputs.
CALIBRATED: dict[str, str] = {
    "gptq": "halfbyte.quant.algorithms.gptq:solve",
    "gptaq": "halfbyte.quant.algorithms.gptq:solve_asymmetric",
    "best": "halfbyte.quant.algorithms.best:solve",
}


class Algorithm(Protocol):
    """A function that gives a tensor another encoding, lazily."""

    def __call__(
        self,
        tensor: Tensor,
        encoding: Encoding,
        importance: NDArray[np.float32] | None = None,
        compat: bool = False,
    ) -> Tensor:
        """Return the tensor in `encoding`.

        importance: [columns] float32, or [matrices, columns] for stacked matrices. compat: the
        bytes of llama.cpp's encoder also where it has a fault.
        """


@dataclass(frozen=True)
class Solved:
    """A weight in its encoding.

    parts: as `Encoding.encode` returns. error: trace of dW H dW^T over the count of inputs, the
    mean square of the output's error summed over rows; rtn_error: that of the encoding's own
    `encode`. note: what was done otherwise than asked, in words, or an empty text.
    """

    parts: Mapping[str, Array]
    error: float
    rtn_error: float
    note: str = ""


class Calibrated(Protocol):
    """A function that rounds one weight so that its output changes little."""

    def __call__(
        self,
        weight: NDArray[np.float32],
        encoding: Encoding,
        statistics: InputStatistics,
        options: MethodOptions,
        solver: Solver,
    ) -> Solved:
        """Return the weight [rows, columns] in `encoding`.

        Raises:
            QuantizationError: weights or statistics are not finite, or the encoding cannot hold
                rows of this length.
        """


# How wide each block's scales are searched: the method that `--search` stands for.
SEARCHES = {"default": "rtn", "exhaustive": "exhaustive"}


def get_algorithm(name: str) -> Algorithm:
    """Return the algorithm called `name`.

    Raises:
        UnsupportedError: there is none.
    """
    found: Algorithm = _loaded(ALGORITHMS, name)
    return found


def get_calibrated(name: str) -> Calibrated:
    """Return the calibrated algorithm called `name`.

    Raises:
        UnsupportedError: there is none.
    """
    found: Calibrated = _loaded(CALIBRATED, name)
    return found


def _loaded(table: Mapping[str, str], name: str) -> Any:
    if name not in table:
        near = difflib.get_close_matches(name, table) or list(table)
        raise UnsupportedError(f"method {name!r}", "quantize", near)
    module, function = table[name].split(":")
    return getattr(importlib.import_module(module), function)
