"""Weights as standard nodes read them: in the dtype of the values they meet.

A dense weight of another dtype keeps its bytes and gets a Cast. An encoded weight becomes its
codes and scales with a DequantizeLinear: per row (group size 0) or blocked. Runtimes fold both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.converters.onnx.opset_choice import schema_at
from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.dtypes import numpy_dtype
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.dense import FLOATS, Dense
from halfbyte.ir.encodings.encoding import Array, Encoding, PartSpec, Scales
from halfbyte.ir.graph import Graph, Node, Value
from halfbyte.ir.ops.spec import adapts
from halfbyte.ir.part_views import TransposedPart
from halfbyte.ir.streamed_parts import computed_part, row_step
from halfbyte.ir.tensor import ComputedPart, Part, Tensor

PER_AXIS_OPSET, NARROW_OPSET, TWO_BIT_OPSET = 13, 21, 25


def adapt_constants(rewriter: Rewriter, node: Node) -> None:
    """Let every stored weight that a standard node reads have the dtype it is read in."""
    schema = schema_at(node.op, rewriter.opset)
    if schema is None or any(isinstance(a, Graph) for a in node.attributes.values()):
        return
    formal = [schema.inputs[min(i, len(schema.inputs) - 1)] for i in range(len(node.inputs))]
    for index, value in enumerate(node.inputs):
        if value is None or not adapts(value):
            continue
        kind = formal[index].type_str
        wanted = _common(node, [f.type_str == kind for f in formal]) or _result(node, schema, kind)
        read = plain_value(rewriter, value, wanted or "float32")
        if read is not value:
            rewriter.graph.set_input(node, index, read)
            rewriter.drop_unused(value)


def _common(node: Node, same: list[bool]) -> str | None:
    for value, alike in zip(node.inputs, same, strict=True):
        if alike and value is not None and not adapts(value) and value.dtype is not None:
            return value.dtype
    return None


def _result(node: Node, schema: Any, kind: str) -> str | None:
    for value, formal in zip(node.outputs, schema.outputs, strict=False):
        if formal.type_str == kind and value.dtype is not None:
            return value.dtype
    return None


def plain_value(rewriter: Rewriter, value: Value, dtype: str) -> Value:
    """Return a constant's values in its shape, in `dtype`, whatever its encoding."""
    tensor = value.constant
    if tensor is None or isinstance(tensor.encoding, Dense):
        return rewriter.cast(value, dtype)
    held = tensor

    def make() -> Value:
        found = dequantized(rewriter, held, value.name, dtype, transposed=False)
        if len(held.shape) == 2:
            return found
        shape = rewriter.constant(f"{value.name}.shape", held.shape)
        return rewriter.add("Reshape", found, shape, name=value.name)

    return rewriter.once(("plain", rewriter.hold(held), dtype), make)


@dataclass(frozen=True)
class Container:
    """The ONNX type that holds the codes: code - `shift` is stored."""

    dtype: str
    shift: int
    has_zero_points: bool


def needed_opset(tensor: Tensor) -> int:
    """Return the opset that a weight's codes and scales take; 1 for a dense one.

    Raises:
        UnsupportedError: DequantizeLinear cannot say them.
    """
    if isinstance(tensor.encoding, Dense):
        return 1
    container = container_of(tensor)
    if container.dtype in ("int2", "uint2"):
        return TWO_BIT_OPSET
    grid = tensor.encoding.grid
    assert grid is not None
    blocked = bool(grid.group_size) and grid.group_size < tensor.columns
    narrow = container.dtype in ("int4", "uint4")
    return NARROW_OPSET if blocked or narrow else PER_AXIS_OPSET


def can_dequantize(encoding: Encoding) -> bool:
    """Whether DequantizeLinear gives exactly the values: whole zero points, groups in order."""
    grid = encoding.grid
    return grid is not None and grid.zero in ("fixed", "integer") and not grid.act_order


def container_of(tensor: Tensor, opset: int | None = None) -> Container:
    """Return the type for a weight's codes; without 2-bit types below their opset.

    Raises:
        UnsupportedError: its grid is not one of DequantizeLinear.
    """
    encoding, grid = tensor.encoding, tensor.encoding.grid
    if grid is None or not can_dequantize(encoding):
        where = f"tensor {tensor.name!r}"
        raise UnsupportedError(f"{encoding} in standard ONNX", where, advice="choose another type")
    span = grid.high - grid.low
    widths = (4, 8) if opset is not None and opset < TWO_BIT_OPSET else (2, 4, 8)
    if grid.zero == "integer" and _largest_zero(tensor) > span:
        widths = (8,)
    if opset is not None and opset < NARROW_OPSET:
        widths = (8,)
    bits = next(width for width in widths if span < 1 << width)
    if grid.zero == "integer":
        return Container(f"uint{bits}", grid.low, True)
    return Container(f"int{bits}", grid.zero_point, False)


def _largest_zero(tensor: Tensor) -> int:
    """Return the largest stored zero point, 0 where looking would mean quantizing."""
    part = tensor.parts.get("zero_points")
    if part is None or isinstance(part, ComputedPart):
        return 0
    return int(part.read().max(initial=0))


def dequantized(
    rewriter: Rewriter, tensor: Tensor, name: str, dtype: str, transposed: bool
) -> Value:
    """Return DequantizeLinear over a weight [rows, columns], or its transpose, in `dtype`.

    Raises:
        UnsupportedError: the opset has no such DequantizeLinear.
    """
    needed = min(needed_opset(tensor), NARROW_OPSET)
    if rewriter.opset < needed:
        raise UnsupportedError(
            f"{tensor.encoding} at opset {rewriter.opset}",
            f"tensor {tensor.name!r}",
            [f"opset {needed} and later"],
        )
    grid = tensor.encoding.grid
    assert grid is not None
    container = container_of(tensor, rewriter.opset)
    blocked = bool(grid.group_size) and grid.group_size < tensor.columns
    parts = _parts(tensor, container, blocked)
    scale_type = grid.scale_dtype
    inputs: list[Value | None] = []
    for suffix, part, part_type in (
        ("codes", parts["codes"], container.dtype),
        ("scales", parts["scales"], scale_type),
        ("zero_points", parts.get("zero_points"), container.dtype),
    ):
        if part is not None:
            held = _constant(part, part_type, f"{name}.{suffix}", transposed)
            inputs.append(rewriter.weight(held, held.name, tensor.name))
    inputs[1] = rewriter.cast(inputs[1], dtype) if inputs[1] is not None else None
    axis = (0 if transposed else 1) if blocked else (1 if transposed else 0)
    extra = {"block_size": grid.group_size} if blocked else {}
    return rewriter.add("DequantizeLinear", *inputs, name=name, axis=axis, **extra)


def _constant(part: Part, dtype: str, name: str, transposed: bool) -> Tensor:
    """Return the tensor of a part [rows, n] or [rows], maybe transposed."""
    if len(part.shape) == 1:
        flat = ComputedPart(part.dtype, (1, part.shape[0]), lambda a, b: part.read()[None][a:b])
        return Tensor(name, part.shape, Dense(dtype), {"data": flat})
    turned: Part = TransposedPart(part) if transposed else part
    return Tensor(name, turned.shape, Dense(dtype), {"data": turned})


def _parts(tensor: Tensor, container: Container, blocked: bool) -> dict[str, Part]:
    """Return lazy parts: codes [rows, columns], scales and zero points [rows, groups] or [rows]."""
    rows, columns, encoding = tensor.rows, tensor.columns, tensor.encoding
    step = row_step(columns, encoding.block_shape[0])
    dtype, grid = numpy_dtype(container.dtype), encoding.grid
    assert grid is not None
    groups = -(-columns // grid.group_size) if blocked else 1
    table: dict[str, tuple[np.dtype[Any], int, Callable[[int, int], Array]]] = {
        "codes": (dtype, columns, lambda a, b: _codes(tensor, container, a, b)),
        "scales": (
            FLOATS[grid.scale_dtype],
            groups,
            lambda a, b: _scales(tensor, a, b).scale.astype(FLOATS[grid.scale_dtype]),
        ),
    }
    if container.has_zero_points:
        table["zero_points"] = (dtype, groups, lambda a, b: _zeros(tensor, container, a, b))
    parts: dict[str, Part] = {}
    for name, (kind, width, function) in table.items():
        part = computed_part(PartSpec(kind, (rows, width)), step, function)
        parts[name] = part if blocked or name == "codes" else _flat(part)
    return parts


def _flat(part: ComputedPart) -> ComputedPart:
    return ComputedPart(part.dtype, part.shape[:1], lambda a, b: part.read(a, b).reshape(-1))


def _codes(tensor: Tensor, container: Container, start: int, stop: int) -> Array:
    unpacked = tensor.encoding.unpack(tensor.read(start, stop), tensor.columns)
    return (unpacked.codes - container.shift).astype(np.int16).astype(numpy_dtype(container.dtype))


def _scales(tensor: Tensor, start: int, stop: int) -> Scales:
    """Return the scales of some rows, without their codes where they are a part of their own."""
    if isinstance(tensor.encoding, Affine):
        specs = tensor.encoding.part_specs(tensor.rows, tensor.columns)
        names = [name for name in specs if name != "codes"]
        parts = {n: tensor.parts[n].read(start, stop) for n in names}
        return tensor.encoding.unpack_scales(parts, tensor.columns)
    return tensor.encoding.unpack(tensor.read(start, stop), tensor.columns).scales


def _zeros(tensor: Tensor, container: Container, start: int, stop: int) -> Array:
    zero = _scales(tensor, start, stop).zero_point
    assert zero is not None
    shifted = np.asarray(zero).astype(np.int32) - container.shift
    limit = (1 << int(container.dtype.removeprefix("uint"))) - 1
    if shifted.size and shifted.max() > limit:
        raise QuantizationError(tensor.name, f"has zero points above {limit}")
    return shifted.astype(np.int16).astype(numpy_dtype(container.dtype))
