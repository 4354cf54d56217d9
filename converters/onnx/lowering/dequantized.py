"""Encoded weights as DequantizeLinear over their codes: per row (group size 0) or blocked.

Codes lie in the narrowest ONNX type that holds them, float8 in its own; scales keep their own dtype
and are cast to the one that is computed in. Where a group has an offset or a fractional zero point,
what it adds to every value of the group is added after.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.dtypes import numpy_dtype
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.dense import FLOATS, Dense
from halfbyte.ir.encodings.encoding import Array, Encoding, Grid, PartSpec, Scales
from halfbyte.ir.encodings.float8 import UNIT, Float8
from halfbyte.ir.graph import Value
from halfbyte.ir.streamed_parts import computed_part, row_step
from halfbyte.ir.tensor import ComputedPart, Part, Tensor
from halfbyte.ir.transposed import TransposedPart

PER_AXIS_OPSET, FLOAT8_OPSET, NARROW_OPSET, TWO_BIT_OPSET = 13, 19, 21, 25
FLOAT8 = "float8_e4m3fn"


@dataclass(frozen=True)
class Container:
    """The ONNX type that holds the codes: code - `shift` is stored."""

    dtype: str
    shift: int
    has_zero_points: bool = False


def can_dequantize(encoding: Encoding, columns: int) -> bool:
    """Whether graphs can say the values of rows of this length: groups in order, codes on a grid.

    Offsets need whole groups.
    """
    grid = encoding.span
    if grid is None or grid.act_order:
        return False
    return grid.zero in ("fixed", "integer") or columns % (grid.group_size or columns) == 0


def _grid(tensor: Tensor) -> Grid:
    grid = tensor.encoding.span
    if grid is None or not can_dequantize(tensor.encoding, tensor.columns):
        what, where = f"{tensor.encoding} in this graph", f"tensor {tensor.name!r}"
        raise UnsupportedError(what, where, advice="choose another type with --type")
    return grid


def _is_blocked(tensor: Tensor, grid: Grid) -> bool:
    return bool(grid.group_size) and grid.group_size < tensor.columns


def _scale_dtype(grid: Grid) -> str:
    return "float32" if grid.composed_scales else grid.scale_dtype


def _offset_dtype(grid: Grid) -> str:
    """Return the dtype of what a group adds; products of zero points and scales need float32."""
    return _scale_dtype(grid) if grid.zero == "offset" else "float32"


def needed_opset(tensor: Tensor) -> int:
    """Return the opset that a weight's codes and scales take; 1 for a dense one.

    Raises:
        UnsupportedError: DequantizeLinear cannot say them.
    """
    if isinstance(tensor.encoding, Dense):
        return 1
    grid = _grid(tensor)
    dtype = _container(tensor, grid, TWO_BIT_OPSET).dtype
    if dtype in ("int2", "uint2"):
        return TWO_BIT_OPSET
    if dtype in ("int4", "uint4") or _is_blocked(tensor, grid):
        return NARROW_OPSET
    return FLOAT8_OPSET if dtype == FLOAT8 else PER_AXIS_OPSET


def _container(tensor: Tensor, grid: Grid, opset: int) -> Container:
    """Return the type for a weight's codes that an opset has."""
    if isinstance(tensor.encoding, Float8):
        return Container(FLOAT8, 0)
    widths = (2, 4, 8) if opset >= TWO_BIT_OPSET else (4, 8) if opset >= NARROW_OPSET else (8,)
    span = grid.high - grid.low
    if grid.zero == "fixed":
        low, high = grid.low - grid.zero_point, grid.high - grid.zero_point
        fitting = [w for w in widths if -(1 << (w - 1)) <= low and high < 1 << (w - 1)]
        if fitting:
            return Container(f"int{fitting[0]}", grid.zero_point)
    if grid.zero == "integer" and _largest_zero(tensor) > span:
        widths = (8,)
    bits = next(width for width in widths if span < 1 << width)
    return Container(f"uint{bits}", grid.low, grid.zero in ("fixed", "integer"))


def _largest_zero(tensor: Tensor) -> int:
    """Return the largest stored zero point, 0 where looking would mean quantizing."""
    part = tensor.parts.get("zero_points")
    if part is None or isinstance(part, ComputedPart):
        return 0
    return int(part.read().max(initial=0))


def dequantized(
    rewriter: Rewriter, tensor: Tensor, name: str, dtype: str, transposed: bool
) -> Value:
    """Return a weight [rows, columns], or its transpose, in `dtype`.

    Raises:
        UnsupportedError: the opset has no DequantizeLinear of this kind.
    """
    grid = _grid(tensor)
    blocked = _is_blocked(tensor, grid)
    whole = FLOAT8_OPSET if isinstance(tensor.encoding, Float8) else PER_AXIS_OPSET
    needed = NARROW_OPSET if blocked else whole
    if rewriter.opset < needed:
        what, where = f"{tensor.encoding} at opset {rewriter.opset}", f"tensor {tensor.name!r}"
        raise UnsupportedError(what, where, [f"opset {needed} and later"])
    container = _container(tensor, grid, rewriter.opset)
    types = {"codes": container.dtype, "zero_points": container.dtype}
    numbers = {"scales": _scale_dtype(grid), "offsets": _offset_dtype(grid)}
    values: dict[str, Value] = {}
    for suffix, part in _parts(tensor, grid, container, blocked).items():
        part_type = types.get(suffix) or numbers[suffix]
        held = _constant(part, part_type, f"{name}.{suffix}", transposed)
        value = rewriter.weight(held, held.name, tensor.name)
        values[suffix] = value if suffix in types else rewriter.cast(value, dtype)
    axis = int(blocked != transposed)
    extra = {"block_size": grid.group_size} if blocked else {}
    inputs = [values[n] for n in ("codes", "scales", "zero_points") if n in values]
    product = rewriter.add("DequantizeLinear", *inputs, name=name, axis=axis, **extra)
    if "offsets" not in values:
        return product
    return _with_offsets(rewriter, tensor, grid, product, values["offsets"], transposed)


def _with_offsets(
    rewriter: Rewriter, tensor: Tensor, grid: Grid, product: Value, offsets: Value, transposed: bool
) -> Value:
    """Add offsets [rows, groups], or their transpose, to every value of their group."""
    size = grid.group_size or tensor.columns
    groups, rows = tensor.columns // size, tensor.rows
    split = [groups, size, rows] if transposed else [rows, groups, size]
    spread = [groups, 1, rows] if transposed else [rows, groups, 1]
    whole = [tensor.columns, rows] if transposed else [rows, tensor.columns]
    grouped = rewriter.add("Reshape", product, rewriter.constant("groups", split))
    added = rewriter.add("Reshape", offsets, rewriter.constant("group", spread))
    total = rewriter.add("Add", grouped, added)
    return rewriter.add("Reshape", total, rewriter.constant("matrix", whole))


def _constant(part: Part, dtype: str, name: str, transposed: bool) -> Tensor:
    """Return the tensor of a part [rows, n] or [rows], maybe transposed."""
    if len(part.shape) == 1:
        flat = ComputedPart(part.dtype, (1, part.shape[0]), lambda a, b: part.read()[None][a:b])
        return Tensor(name, part.shape, Dense(dtype), {"data": flat})
    turned: Part = TransposedPart(part) if transposed else part
    return Tensor(name, turned.shape, Dense(dtype), {"data": turned})


def _parts(tensor: Tensor, grid: Grid, container: Container, blocked: bool) -> dict[str, Part]:
    """Return lazy parts: codes [rows, columns], the others [rows, groups], or [rows] per row."""
    rows, columns = tensor.rows, tensor.columns
    step = row_step(columns, tensor.encoding.block_shape[0])
    codes, scales = numpy_dtype(container.dtype), FLOATS[_scale_dtype(grid)]
    groups = -(-columns // grid.group_size) if blocked else 1
    unit = 1 / UNIT if container.dtype == FLOAT8 else np.float32(1)
    table: dict[str, tuple[np.dtype[Any], int, Callable[[int, int], Array]]] = {
        "codes": (codes, columns, lambda a, b: _codes(tensor, container, a, b)),
        "scales": (
            scales,
            groups,
            lambda a, b: (scales_of(tensor, a, b).scale * unit).astype(scales),
        ),
    }
    if container.has_zero_points:
        table["zero_points"] = (codes, groups, lambda a, b: _zeros(tensor, container, a, b))
    elif grid.zero in ("float", "offset"):
        offsets = FLOATS[_offset_dtype(grid)]
        table["offsets"] = (offsets, groups, lambda a, b: _offsets(tensor, a, b).astype(offsets))
    parts: dict[str, Part] = {}
    for name, (dtype, width, function) in table.items():
        part = computed_part(PartSpec(dtype, (rows, width)), step, function)
        parts[name] = part if blocked or name == "codes" else _flat(part)
    return parts


def _flat(part: ComputedPart) -> ComputedPart:
    return ComputedPart(part.dtype, part.shape[:1], lambda a, b: part.read(a, b).reshape(-1))


def _codes(tensor: Tensor, container: Container, start: int, stop: int) -> Array:
    unpacked = tensor.encoding.unpack(tensor.read(start, stop), tensor.columns)
    return _stored(unpacked.codes - container.shift, container)


def _stored(codes: NDArray[np.int32], container: Container) -> Array:
    """Return codes that fit a container in its type; those below 8 bits take a byte each."""
    if container.dtype == FLOAT8:
        floats: Array = (codes.astype(np.float32) * UNIT).astype(numpy_dtype(FLOAT8))
        return floats
    byte = np.uint8 if container.dtype.startswith("u") else np.int8
    return codes.astype(byte).view(numpy_dtype(container.dtype))


def scales_of(tensor: Tensor, start: int, stop: int) -> Scales:
    """Return the scales of some rows, without their codes where they are a part of their own."""
    if isinstance(tensor.encoding, Affine):
        names = [name for name in tensor.parts if name != "codes"]
        parts = {n: tensor.parts[n].read(start, stop) for n in names}
        return tensor.encoding.unpack_scales(parts, tensor.columns)
    return tensor.encoding.unpack(tensor.read(start, stop), tensor.columns).scales


def _zeros(tensor: Tensor, container: Container, start: int, stop: int) -> Array:
    zero = scales_of(tensor, start, stop).zero_point
    assert zero is not None
    shifted = np.asarray(zero).astype(np.int32) - container.shift
    limit = (1 << int(container.dtype.removeprefix("uint"))) - 1
    if shifted.size and shifted.max() > limit:
        raise QuantizationError(tensor.name, f"has zero points above {limit}; choose more bits")
    return _stored(shifted, container)


def _offsets(tensor: Tensor, start: int, stop: int) -> Array:
    scales = scales_of(tensor, start, stop)
    if scales.offset is not None:
        return scales.offset
    assert scales.zero_point is not None
    return -(scales.zero_point.astype(np.float32) * scales.scale)
