"""The constants of a quantized weight in a graph, and the small subgraphs that make its scales.

A runtime folds these subgraphs (casts, products, sums of constants) when it loads the model. What
no integer product can say, a group's offset, is a second product of small rank:

    x W^T = x (scale * (code - center))^T + sums(x) extra^T

with sums(x) the sums of x over each group and extra = offset + center * scale (or what else places
zero). It needs no division, so a scale of 0 with an offset is nothing special, and onnxruntime runs
it 18 times faster than float zero points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from halfbyte.converters.onnx import nbits
from halfbyte.converters.onnx.language.builder import FLOAT32, OnnxBuilder
from halfbyte.converters.onnx.language.weight_form import (
    HALF_BYTE,
    NIBBLES,
    PAIRS,
    Style,
    WeightForm,
    column_order,
    form_of,
    stored_parts,
)
from halfbyte.errors import UnsupportedError
from halfbyte.ir.dtypes import dtype_of
from halfbyte.ir.graph import Value
from halfbyte.ir.tensor import Part, Tensor


@dataclass
class QuantizedWeight:
    """A weight [rows, columns] as constants; values are made when they are first asked for."""

    builder: OnnxBuilder
    tensor: Tensor
    form: WeightForm
    style: Style
    parts: dict[str, Part]

    @property
    def name(self) -> str:
        """Return the stem of the names."""
        return self.tensor.name

    @property
    def rows(self) -> int:
        """Return the rows of the matrix."""
        return self.tensor.rows

    @property
    def has_high(self) -> bool:
        """Whether there is a second nibble matrix."""
        return self.style == NIBBLES and nbits.has_high_matrix(self.form.bits)

    def _once(self, what: str, make: Any) -> Value:
        return self.builder.once((what, id(self.tensor)), make)

    def constant(self, what: str, shape: tuple[int, ...] | None = None) -> Value:
        """Return one stored array as a constant, whole rows or in another shape."""

        def make() -> Value:
            part = self.parts[what]
            name, dtype = f"{self.name}.{what}", dtype_of(np.empty(0, part.dtype))
            value = self.builder.part(name, dtype, shape or part.shape, part)
            self.builder.holding(self.tensor).constants.setdefault(what, value.name)
            return value

        return self._once(f"{what} {shape}", make)

    def matrix(self, which: str, shape: tuple[int, ...]) -> Value:
        """Return a nibble matrix [rows, columns / 2] in the shape that an operator wants."""
        members = [p for p in nbits.planes(self.form.bits) if p.matrix == which]
        if len(members) == 1 and members[0].is_plain:
            return self.constant(members[0].name, shape)

        wanted, name = self.builder.ints(*shape), f"{self.name}/{which}/{len(shape)}d"

        def make() -> Value:
            whole = [self._expanded(plane, wanted, shape) for plane in members]
            if len(whole) == 1:
                return whole[0]
            return self.builder.op("BitwiseOr", *whole, name=name, dtype="uint8", shape=shape)

        return self._once(f"{which} {shape}", make)

    def _expanded(self, plane: nbits.Plane, wanted: Value, shape: tuple[int, ...]) -> Value:
        """Return a plane of 1 or 2 bits as bytes of nibbles in the shape that `wanted` says."""
        index = self.builder.cast(self.constant(plane.name), "int32")
        table = plane.table()
        width = plane.width(self.form.columns)
        stem = f"{self.name}/{plane.name}/expanded_{len(shape)}d"
        nibbles = self.builder.op(
            "Gather",
            self.builder.array(f"/constants/nibbles/{plane.bits}_{plane.bias}", table),
            index,
            name=f"{stem}/Gather",
            dtype="uint8",
            shape=(self.rows, width, table.shape[1]),
            axis=0,
        )
        return self.builder.op(
            "Reshape", nibbles, wanted, name=stem, dtype="uint8", shape=shape, allowzero=0
        )

    def number(self, what: str) -> Value:
        """Return a stored array that is no code, in float32, one number for each piece."""
        value = self.constant(what)
        if value.dtype != FLOAT32:
            value = self._once(f"{what} float32", lambda: self.builder.cast(value, FLOAT32))
        places = self.form.group_of_piece
        if places is None:
            return value
        index = self.builder.array(f"/constants/pieces/{self.form.columns}", places)
        name, shape = f"{self.name}/{what}/pieces", (self.rows, self.form.groups)
        return self._once(
            f"{what} pieces",
            lambda: self.builder.op("Gather", value, index, name=name, shape=shape, axis=1),
        )

    def _product(self, left: Value, right: Value, name: str) -> Value:
        return self.builder.op(
            "Mul", left, right, name=f"{self.name}/{name}", shape=(self.rows, self.form.groups)
        )

    def _composed(self, block: str, group: str, name: str) -> Value:
        """Return block scale times group integer: [rows, groups]."""
        blocks, groups = self.form.fields[block][1], self.form.groups
        spread = self.repeated(self.number(block), blocks, groups // blocks, block)
        factor = self._half(group) if PAIRS in self.form.fields else self.number(group)
        return self._product(spread, factor, name)

    def _half(self, which: str) -> Value:
        """Return one of two integers that share a byte, in float32."""
        builder, pairs = self.builder, self.constant(PAIRS)
        settings: dict[str, Any] = {}
        operator, other = "BitwiseAnd", HALF_BYTE
        if which != "sc":
            operator, other, settings = "BitShift", 4, {"direction": "RIGHT"}
        half = builder.op(
            operator,
            pairs,
            builder.scalar(other, "uint8"),
            name=f"{self.name}/{which}",
            dtype="uint8",
            shape=pairs.shape,
            **settings,
        )
        return builder.cast(half, FLOAT32)

    def repeated(self, value: Value, width: int, times: int, name: str) -> Value:
        """Return [rows, width * times], every entry of value [rows, width] repeated."""
        if times == 1:
            return value
        builder, stem = self.builder, f"{self.name}/{name}/repeated"
        split = builder.op(
            "Reshape",
            value,
            builder.ints(self.rows, width, 1),
            name=f"{stem}/split",
            shape=(self.rows, width, 1),
            allowzero=0,
        )
        shape = (self.rows, width, times)
        wide = builder.op("Expand", split, builder.ints(*shape), name=f"{stem}/wide", shape=shape)
        joined = (self.rows, width * times)
        return builder.op(
            "Reshape", wide, builder.ints(*joined), name=stem, shape=joined, allowzero=0
        )

    def group_scale(self) -> Value:
        """Return the scale of every piece: [rows, pieces] float32."""
        if self.form.is_composed:
            return self._once("scale", lambda: self._composed("d", "sc", "scale"))
        return self.number("scale")

    def scale(self, block: int) -> Value:
        """Return the scale of every block of `block` columns: [rows, columns / block]."""
        times = self.form.unit // block
        return self._once(
            f"scale {block}",
            lambda: self.repeated(self.group_scale(), self.form.groups, times, "scale"),
        )

    def high_scale(self, block: int) -> Value:
        """Return 16 times the scale of every block."""
        sixteen = self.builder.scalar(16.0, FLOAT32)
        name, shape = f"{self.name}/high_scale", (self.rows, self.form.columns // block)
        return self._once(
            f"high scale {block}",
            lambda: self.builder.op("Mul", self.scale(block), sixteen, name=name, shape=shape),
        )

    def extra(self) -> Value | None:
        """Return what is added to every value of a group: [rows, groups] float32, or None."""
        steps = self._fixed_steps()
        if self.form.zero in ("offset", "integer", "float") or steps:
            return self._once("extra", lambda: self._extra(steps))
        return None

    def _fixed_steps(self) -> int:
        """Return by how many codes the middle of the stored matrices lies off the value zero."""
        form = self.form
        steps = nbits.CENTER if self.has_high else 0
        steps += form.center + form.low
        return steps - (form.zero_point if form.zero == "fixed" else 0)

    def _extra(self, steps: int) -> Value:
        form, builder = self.form, self.builder
        if form.zero in ("integer", "float"):
            middle = builder.scalar(float(steps), FLOAT32)
            name = f"{self.name}/steps"
            distance = builder.op(
                "Sub", middle, self.number("zero"), name=name, shape=(self.rows, form.groups)
            )
            return self._product(distance, self.group_scale(), "extra")
        fixed = self._product(self.group_scale(), builder.scalar(float(steps), FLOAT32), "middle")
        if form.zero == "fixed":
            return fixed
        shape = (self.rows, form.groups)
        if form.is_composed:
            lift = self._composed("dmin", "mn", "minimum")
            return builder.op("Sub", fixed, lift, name=f"{self.name}/extra", shape=shape)
        offset = self.number("offset")
        return builder.op("Add", fixed, offset, name=f"{self.name}/extra", shape=shape)

    def order(self) -> Value | None:
        """Return the order of the columns in the stored codes, or None where it is their own."""
        return self._column_index("order")

    def places(self) -> Value | None:
        """Return where each column stands in the stored codes: the inverse of `order`."""
        return self._column_index("places")

    def _column_index(self, what: str) -> Value | None:
        if not self.form.act_order:
            return None

        def make() -> Value:
            index = column_order(self.tensor)
            assert index is not None
            if what == "places":
                index = np.argsort(index)
            value = self.builder.array(f"{self.name}.{what}", index.astype(np.int64))
            self.builder.holding(self.tensor).constants[what] = value.name
            return value

        return self._once(what, make)


def quantized_weight(builder: OnnxBuilder, tensor: Tensor, style: Style) -> QuantizedWeight:
    """Return a weight as constants; the same weight gives the same constants.

    Raises:
        UnsupportedError: its groups fit none of ONNX's forms.
    """
    form = form_of(tensor.encoding, tensor.columns)
    fits = form is not None and (style != NIBBLES or form.block_size)
    if form is None or not fits or (form.act_order and column_order(tensor) is None):
        raise UnsupportedError(
            f"{tensor.encoding} with rows of {tensor.columns}",
            f"tensor {tensor.name!r}",
            ["groups of a multiple of 16 that divide the row"],
            "or give --type",
        )
    key = ("quantized", id(tensor))
    found: Any = builder.once(
        key,
        lambda: QuantizedWeight(builder, tensor, form, style, stored_parts(tensor, form, style)),
    )
    weight: QuantizedWeight = found
    builder.holding(tensor).style = style
    return weight
