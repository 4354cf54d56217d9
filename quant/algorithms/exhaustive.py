"""Round to nearest on the best scales that a block can store; see `ir/encodings/exhaustive.py`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.encodings.exhaustive import encode_exhaustive
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.algorithms.rtn import encoded_with


def requantize(
    tensor: Tensor,
    encoding: Encoding,
    importance: NDArray[np.float32] | None = None,
    compat: bool = False,
) -> Tensor:
    """Return the tensor in `encoding`, every block with the least weighted squared error found.

    importance: as for `rtn`. compat changes nothing: the bytes are not llama.cpp's. Encodings whose
    scales are parts of their own search as they do with importance, 1 where there is none.

    Raises:
        QuantizationError: as `rtn`.
    """
    if importance is None and len(encoding.part_specs(1, tensor.columns)) > 1:
        importance = np.ones(tensor.columns, np.float32)
    return encoded_with(encode_exhaustive, tensor, encoding, importance)
