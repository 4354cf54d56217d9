"""Weights whose own layout the kernels do not read, in one that they do, made by a session.

mxfp4, and nvfp4 whose scales fit, become ggml's blocks: the same values, bytes in another order.
Offsets become fractional zero points, -offset / scale, so that values round once more in float32.
All others are decoded to float32.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from halfbyte.errors import HalfbyteError
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.affine_offset import AffineOffset
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.encodings.fp4 import MicroFloat4, ScaledFloat4
from halfbyte.ir.encodings.ggml_fp4 import MXFP4, NVFP4
from halfbyte.ir.encodings.transcode import transcode
from halfbyte.ir.tensor import ArrayPart, Part, Tensor, tensor_from_array

_BLOCKS: dict[type[Encoding], Encoding] = {MicroFloat4: MXFP4(), ScaledFloat4: NVFP4()}


def kernel_form(tensor: Tensor) -> Tensor:
    """Return the same values in an encoding that the kernels read, held in memory."""
    blocks = _BLOCKS.get(type(tensor.encoding))
    if blocks is not None:
        try:
            return _held(transcode(tensor, blocks))
        except HalfbyteError:
            pass
    if isinstance(tensor.encoding, AffineOffset):
        fractions = _with_fractions(tensor, tensor.encoding)
        if fractions is not None:
            return fractions
    values = np.empty((tensor.rows, tensor.columns), np.float32)
    for start, stop in tensor.row_ranges():
        values[start:stop] = tensor.float32(start, stop)
    return replace(tensor_from_array(tensor.name, values), shape=tensor.shape)


def _with_fractions(tensor: Tensor, encoding: AffineOffset) -> Tensor | None:
    """Return the codes with zero points for offsets; None where a scale is 0."""
    parts = tensor.read()
    scale, offset = (np.asarray(parts[n]).astype(np.float32) for n in ("scales", "biases"))
    if not scale.all():
        return None
    zero: Part = ArrayPart(-offset / scale)
    form = Affine(encoding.bits, encoding.group_size, "float", "float32")
    codes = ArrayPart(np.asarray(parts["codes"]))
    found = {"codes": codes, "scales": ArrayPart(scale), "zero_points": zero}
    return replace(tensor, encoding=form, parts=found)


def _held(tensor: Tensor) -> Tensor:
    parts: dict[str, Part] = {n: ArrayPart(part.read()) for n, part in tensor.parts.items()}
    return replace(tensor, parts=parts)
