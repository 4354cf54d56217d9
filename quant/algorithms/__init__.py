"""The table of algorithms: how a tensor's values are chosen in a given encoding."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Protocol

from halfbyte.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from halfbyte.ir.encodings.encoding import Encoding
    from halfbyte.ir.tensor import Tensor

ALGORITHMS: dict[str, str] = {
    "rtn": "halfbyte.quant.algorithms.rtn:requantize",
    "exhaustive": "halfbyte.quant.algorithms.exhaustive:requantize",
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


# How wide each block's scales are searched: the method that `--search` stands for.
SEARCHES = {"default": "rtn", "exhaustive": "exhaustive"}


def get_algorithm(name: str) -> Algorithm:
    """Return the algorithm called `name`.

    Raises:
        UnsupportedError: there is none.
    """
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name, ALGORITHMS) or list(ALGORITHMS)
        raise UnsupportedError(f"method {name!r}", "quantize", near)
    module, function = ALGORITHMS[name].split(":")
    found: Algorithm = getattr(importlib.import_module(module), function)
    return found
