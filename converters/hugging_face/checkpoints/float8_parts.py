"""Float8 weights with scales beside them, as several kinds of checkpoint store them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from halfbyte.converters.hugging_face.checkpoints.checkpoint import StoredArray
from halfbyte.converters.hugging_face.checkpoints.part_forms import (
    cast,
    folded,
    repeated,
    viewed,
)
from halfbyte.converters.hugging_face.checkpoints.schemes import module_of
from halfbyte.converters.hugging_face.checkpoints.stored_weights import StoredWeight, part_of
from halfbyte.ir.encodings.encoding import Array, Encoding
from halfbyte.ir.encodings.float8 import E8M0, Float8
from halfbyte.ir.encodings.power_scales import power_scales
from halfbyte.ir.part_views import ReshapedPart
from halfbyte.ir.tensor import ComputedPart, Part, Tensor

BLOCK, _LARGEST_BLOCK = 128, 1 << 31
SCALES = ("float32", "bfloat16", "float16", "uint8", "float8_e8m0fnu")
CODES = ("float8_e4m3fn",)
_POWERS = np.dtype(ml_dtypes.float8_e8m0fnu)
_BYTE, _SINGLE = np.dtype(np.uint8), np.dtype(np.float32)


def nothing(encoding: Encoding, tensor: Tensor) -> bool:
    """Return False: such a checkpoint is not written."""
    return False


def float8_weight(stored: StoredWeight, ending: str, block: Any) -> Tensor:
    """Return the weight [out, in] of arrays `weight` and `ending`.

    block: [rows, columns] of a block where the scales are two-dimensional and not one per row.

    Raises:
        FormatError: the arrays do not fit each other or the block.
    """
    codes = stored.array("weight", CODES)
    rows, columns = codes.shape
    dims = len(stored.held[ending].shape) if ending in stored else 2
    scales = stored.array(ending, SCALES, dims)
    source, dtype = _source(scales)
    if scales.size == 1 and (dims < 2 or (rows, columns) != (1, 1)) and not _is_one(block, codes):
        place = Float8(0, 0, dtype)
        own: Part = repeated(ReshapedPart(source, (1, 1)), rows, max(rows, 1))
    elif dims == 1 or (dims == 2 and scales.shape[1] == 1 and scales.shape[0] == rows):
        stored.require_shape(ending, (rows,) if dims == 1 else (rows, 1), "the outputs")
        place, own = Float8(0, 1, dtype), ReshapedPart(source, (rows, 1))
    else:
        height, width = _block(stored, ending, block)
        wanted = (-(-rows // height), -(-columns // width))
        stored.require_shape(ending, wanted, f"blocks of {height} x {width}")
        place = Float8(width, height if height == width else 1, dtype)
        own = repeated(source, rows, height)
    parts: dict[str, Part] = {"codes": part_of(codes), "scales": _checked(stored, ending, own)}
    return Tensor(f"{stored.module}.weight", (rows, columns), place, parts)


def _is_one(block: Any, codes: Tensor) -> bool:
    """Whether one scale is that of the only block of a small weight."""
    if not isinstance(block, list) or len(block) != 2:
        return False
    return all(isinstance(b, int) and size <= b for b, size in zip(block, codes.shape, strict=True))


def _block(stored: StoredWeight, ending: str, block: Any) -> tuple[int, int]:
    whole = isinstance(block, list | tuple) and len(block) == 2
    if not whole or not all(isinstance(b, int) and 0 < b <= _LARGEST_BLOCK for b in block):
        rule = f"has scales {list(stored.held[ending].shape)}, but the config's block is {block!r}"
        raise stored.found.error(f"{stored.module}.{ending}", f"{rule}; correct the config")
    return int(block[0]), int(block[1])


def _source(scales: Tensor) -> tuple[Part, str]:
    part = part_of(scales)
    if part.dtype in (_POWERS, _BYTE):
        return (viewed(part, _BYTE) if part.dtype == _POWERS else part), E8M0
    if part.dtype.name == "bfloat16":
        return part, "bfloat16"
    return cast(part, _SINGLE), "float32"


def _checked(stored: StoredWeight, ending: str, source: Part) -> Part:
    """Return a part whose values are checked when they are read."""

    def read(start: int, stop: int) -> Array:
        found = source.read(start, stop)
        values = power_scales(found) if found.dtype == _BYTE else found.astype(np.float32)
        if not np.isfinite(values).all():
            rule = "holds a scale that is NaN or infinite; download it again"
            raise stored.found.error(f"{stored.module}.{ending}", rule)
        return found

    return ComputedPart(source.dtype, source.shape, read)


def block_arrays(tensor: Tensor, ending: str, dtype: np.dtype[Any]) -> list[StoredArray]:
    """Return codes and scales of a weight, each scale once, in a float type that holds it."""
    encoding = tensor.encoding
    assert isinstance(encoding, Float8)
    scales = tensor.parts["scales"]
    if encoding.scale_dtype == E8M0:
        scales = _as_floats(scales, dtype)
    shape: tuple[int, ...] | None = None
    if encoding.shared == 0:
        scales, shape = folded(tensor.name, scales, max(tensor.rows, 1)), (1,)
    elif encoding.shared > 1:
        scales = folded(tensor.name, scales, encoding.shared)
    module = module_of(tensor)
    return [
        StoredArray(f"{module}.weight", tensor.parts["codes"]),
        StoredArray(f"{module}.{ending}", scales, shape),
    ]


def _as_floats(source: Part, dtype: np.dtype[Any]) -> Part:
    return ComputedPart(
        dtype,
        source.shape,
        lambda start, stop: power_scales(source.read(start, stop)).astype(dtype),
    )
