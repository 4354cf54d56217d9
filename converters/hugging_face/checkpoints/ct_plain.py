"""compressed-tensors' weights of one byte for each code: int8 and float8, read and written.

`weight` [out, in]; `weight_scale` [out, 1] or [out] by channel, [out, groups], [1] for the matrix,
or for blocks of rows and columns [out / rows, in / columns], rounded up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from halfbyte.converters.hugging_face.checkpoints.checkpoint import StoredArray
from halfbyte.converters.hugging_face.checkpoints.ct_config import Group
from halfbyte.converters.hugging_face.checkpoints.float8_parts import block_arrays
from halfbyte.converters.hugging_face.checkpoints.schemes import module_of
from halfbyte.converters.hugging_face.checkpoints.stored_weights import (
    StoredWeight,
    part_of,
    scale_dtype,
)
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.encoding import Array, Encoding
from halfbyte.ir.encodings.float8 import E4M3, Float8
from halfbyte.ir.stored_codes import CodeRows, ScaleRows, ZeroRows
from halfbyte.ir.tensor import ArrayPart, Part, Tensor

SCALES = ("float16", "bfloat16", "float32")
INTEGERS, FLOATS8 = ("int8",), ("float8_e4m3fn",)
SINGLE = np.dtype(np.float32)


@dataclass(frozen=True)
class BlockScales:
    """Scales [row blocks, groups] as [rows, groups]: one row for each row of the weight."""

    source: Part
    rows: int
    height: int
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (rows, groups)."""
        return self.rows, self.source.shape[1]

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop)."""
        stop = self.rows if stop is None else min(stop, self.rows)
        held = np.asarray(self.source.read())
        return np.ascontiguousarray(held[np.arange(start, stop) // self.height]).astype(self.dtype)


def plain_weight(stored: StoredWeight, group: Group) -> Tensor:
    """Return the weight [out, in] of a module whose codes lie one to a byte; integers as 8 bits.

    Raises:
        FormatError: its arrays do not fit each other or the config.
    """
    codes = stored.array("weight", INTEGERS + FLOATS8)
    out, columns = codes.shape
    parts: dict[str, Part]
    if part_of(codes).dtype == E4M3:
        encoding, scales = _float_scales(stored, group.weights, (out, columns))
        parts = {"codes": part_of(codes), "scales": scales}
        return Tensor(f"{stored.module}.weight", (out, columns), encoding, parts)
    groups, size, scales = row_scales(stored, group, (out, columns))
    parts = {"codes": CodeRows(codes, False, 8, 0x80), "scales": scales}
    zero: Any = "none"
    said = group.weights.get("symmetric")
    if said is False or ("weight_zero_point" in stored and not said):
        held = stored.held.get("weight_zero_point")
        zeros = stored.array("weight_zero_point", INTEGERS, 2 if held is None else len(held.shape))
        stored.require_shape("weight_zero_point", stored.held["weight_scale"].shape, "the scales")
        parts["zero_points"] = ZeroRows(zeros, (out, groups), False, np.dtype(np.uint8), 0x80)
        zero = "uint8"
    dtype = scale_dtype(stored.held["weight_scale"])
    return Tensor(f"{stored.module}.weight", (out, columns), Affine(8, size, zero, dtype), parts)


def row_scales(
    stored: StoredWeight, group: Group, shape: tuple[int, int]
) -> tuple[int, int, ScaleRows]:
    """Return groups, columns of a group (0: the row), and the scales [out, groups].

    Raises:
        FormatError: the scales do not fit the outputs or the config.
    """
    out, columns = shape
    held = stored.held.get("weight_scale")
    dims = 1 if held is not None and len(held.shape) < 2 else 2
    scales = stored.array("weight_scale", SCALES, dims)
    groups = 1 if dims == 1 else scales.shape[1]
    if dims == 1:
        stored.require_shape("weight_scale", (1,) if scales.size == 1 else (out,), "the outputs")
    elif scales.size != 1:
        stored.require_shape("weight_scale", (out, groups), "the outputs")
    size = stored.group_size(group.weights.get("group_size"), columns, groups, "weight_scale")
    return groups, size, ScaleRows(scales, (out, groups), False, part_of(scales).dtype)


def _float_scales(
    stored: StoredWeight, said: Mapping[str, Any], shape: tuple[int, int]
) -> tuple[Float8, Part]:
    """Return the encoding of float8 codes and its scales [out, groups]."""
    out, columns = shape
    held = stored.held["weight_scale"]
    scales = stored.array("weight_scale", SCALES, len(held.shape))
    name = "bfloat16" if scale_dtype(scales) == "bfloat16" else "float32"
    dtype = part_of(scales).dtype if name == "bfloat16" else SINGLE
    block = said.get("block_structure")
    if said.get("strategy") == "block" and isinstance(block, list) and len(block) == 2:
        height, width = block
        if height != width or not isinstance(height, int) or height < 1:
            rule = f"has blocks of {block}, square ones were required; correct the config"
            raise stored.found.error(f"{stored.module}.weight_scale", rule)
        wanted = -(-out // height), -(-columns // height)
        stored.require_shape("weight_scale", wanted, f"blocks of {block}")
        return Float8(height, height, name), BlockScales(part_of(scales), out, height, dtype)
    if scales.size == 1:
        value = np.asarray(part_of(scales).read()).reshape(1, 1)
        return Float8(0, 0, name), BlockScales(ArrayPart(value), out, max(out, 1), dtype)
    if len(scales.shape) == 1:
        stored.require_shape("weight_scale", (out,), "the outputs")
        column = ArrayPart(np.asarray(part_of(scales).read()).reshape(-1, 1))
        return Float8(0, 1, name), BlockScales(column, out, 1, dtype)
    stored.require_shape("weight_scale", (out, scales.shape[-1]), "the outputs")
    groups = scales.shape[1]
    size = stored.group_size(said.get("group_size"), columns, groups, "weight_scale")
    return Float8(size, 1, name), BlockScales(part_of(scales), out, 1, dtype)


def holds_bytes(encoding: Encoding, tensor: Tensor) -> bool:
    """Whether a weight can have an encoding of float8 here."""
    if not isinstance(encoding, Float8) or encoding.scale_dtype not in SCALES:
        return False
    return (
        not encoding.group_size or encoding.shared > 1 or not tensor.columns % encoding.group_size
    )


def integer_arrays(tensor: Tensor) -> list[StoredArray]:
    """Return the arrays of a symmetric int8 weight with a scale for each row."""
    module = module_of(tensor)
    return [
        StoredArray(f"{module}.weight", _SignedBytes(tensor)),
        StoredArray(f"{module}.weight_scale", tensor.parts["scales"]),
    ]


def float_arrays(tensor: Tensor) -> list[StoredArray]:
    """Return the arrays of a float8 weight; rows that share scales must have the same ones."""
    return block_arrays(tensor, "weight_scale", SINGLE)


class _SignedBytes:
    """Unsigned codes, of which 128 stands for 0, as int8."""

    def __init__(self, tensor: Tensor) -> None:
        self._codes = tensor.parts["codes"]
        self.dtype, self.shape = np.dtype(np.int8), tuple(tensor.shape)

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return rows [start, stop)."""
        codes = np.ascontiguousarray(self._codes.read(start, stop))
        shifted: Array = (codes ^ np.uint8(0x80)).view(np.int8)
        return shifted
