"""How a quantized weight lies in ONNX constants, and how its own parts come back from them.

Every grid encoding is unsigned codes of some bits, scales per group, and perhaps what places zero.
The stored numbers keep their own width (float16 scales stay float16, the integers of composed
scales stay integers), so that files stay small and `pack` gives back the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.onnx import nbits
from halfbyte.ir.dtypes import numpy_dtype
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.encoding import Array, Encoding, PartSpec, Scales, Unpacked
from halfbyte.ir.encodings.grid import group_count
from halfbyte.ir.encodings.transcode import Verdict
from halfbyte.ir.streamed_parts import computed_parts, naming, row_step
from halfbyte.ir.tensor import ComputedPart, Part, Tensor

Style = Literal["nibbles", "signed"]
NIBBLES: Style = "nibbles"
SIGNED: Style = "signed"
PAIRS = "pairs"  # two integers of 4 bits, that of the scale in the low half of a byte
HALF_BYTE = 15


@dataclass(frozen=True)
class WeightForm:
    """The form of one encoding for rows of one length.

    bits: of a stored code. low: the encoding's smallest code, stored as 0. group: columns of a
    scale. zero: as in `Grid`. fields: dtype and row length of every stored number but the codes.
    """

    encoding: Encoding
    columns: int
    bits: int
    low: int
    group: int
    zero: str
    zero_point: int
    fields: Mapping[str, tuple[str, int]]
    act_order: bool

    @property
    def center(self) -> int:
        """Return the stored code in the middle of the range."""
        return 1 << (self.bits - 1)

    @property
    def unit(self) -> int:
        """Return the columns of the largest piece that lies in one group and divides the row."""
        return math.gcd(self.group, self.columns)

    @property
    def groups(self) -> int:
        """Return the pieces of a row."""
        return self.columns // self.unit

    @property
    def group_of_piece(self) -> NDArray[np.int64] | None:
        """Return the group of each piece where groups are no pieces: the last group is short."""
        if self.unit == self.group:
            return None
        return np.arange(self.groups, dtype=np.int64) * self.unit // self.group

    @property
    def is_composed(self) -> bool:
        """Whether scales are products of stored numbers."""
        return "d" in self.fields

    @property
    def is_centered(self) -> bool:
        """Whether the middle code is zero in every group."""
        return self.zero == "fixed" and self.zero_point - self.low == self.center

    @property
    def block_size(self) -> int:
        """Return the block of MatMulNBits, 0 where the groups fit none."""
        return nbits.block_size(self.columns, self.unit)

    def plane_specs(self, rows: int, style: Style) -> dict[str, PartSpec]:
        """Return type and shape of the arrays that hold codes."""
        if style == SIGNED:
            dtype = numpy_dtype(nbits.signed_dtype(self.bits))
            return {nbits.CODES: PartSpec(dtype, (rows, self.columns))}
        return {
            plane.name: PartSpec(np.dtype(np.uint8), (rows, plane.width(self.columns)))
            for plane in nbits.planes(self.bits)
        }

    def specs(self, rows: int, style: Style) -> dict[str, PartSpec]:
        """Return type and shape of every stored array."""
        found = self.plane_specs(rows, style)
        for name, (dtype, width) in self.fields.items():
            found[name] = PartSpec(numpy_dtype(dtype), (rows, width))
        return found

    def codes(self, unpacked: Unpacked, style: Style, name: str) -> Array:
        """Return one array of codes for a range of rows."""
        stored = unpacked.codes - self.low
        if style == SIGNED:
            dtype = numpy_dtype(nbits.signed_dtype(self.bits))
            return (stored - self.center).astype(np.int8).astype(dtype)
        plane = next(p for p in nbits.planes(self.bits) if p.name == name)
        return nbits.pack_plane(stored, self.bits, plane)

    def numbers(self, scales: Scales) -> dict[str, Array]:
        """Return the arrays that are no codes for a range of rows."""
        found: dict[str, Any] = {"scale": scales.scale, "offset": scales.offset}
        found["zero"] = scales.zero_point
        if self.is_composed:
            assert scales.fields is not None
            found = dict(scales.fields)
            if PAIRS in self.fields:
                found[PAIRS] = found["sc"] | (found["mn"] << 4)
        return {
            name: np.asarray(found[name]).astype(numpy_dtype(dtype))
            for name, (dtype, _) in self.fields.items()
        }

    def join(self, stored: Mapping[str, Array], style: Style) -> Unpacked:
        """Return codes and scales from the stored arrays of a range of rows."""
        if style == SIGNED:
            codes = np.asarray(stored[nbits.CODES]).astype(np.int32) + self.center
        else:
            held = {p.name: np.asarray(stored[p.name]) for p in nbits.planes(self.bits)}
            codes = nbits.join_planes(held, self.bits, self.columns)
        return Unpacked(codes + self.low, self._scales(stored))

    def _scales(self, stored: Mapping[str, Array]) -> Scales:
        if self.is_composed:
            return self._composed(stored)
        scale = np.asarray(stored["scale"]).astype(np.float32)
        zero: Any = None
        if "zero" in stored:
            kind = np.int32 if self.zero == "integer" else np.float32
            zero = np.asarray(stored["zero"]).astype(kind)
        elif self.zero == "fixed":
            zero = np.full(scale.shape, self.zero_point, np.int32)
        offset = None
        if "offset" in stored:
            offset = np.asarray(stored["offset"]).astype(np.float32)
        return Scales(scale, self.group, zero, offset)

    def _composed(self, stored: Mapping[str, Array]) -> Scales:
        given = dict(stored)
        if PAIRS in self.fields:
            pairs = np.asarray(given.pop(PAIRS))
            given |= {"sc": pairs & HALF_BYTE, "mn": pairs >> 4}
        fields: dict[str, Array] = {}
        for name in ("d", "sc", "dmin", "mn"):
            if name in given:
                kind = np.int32 if name in ("sc", "mn") else np.float32
                fields[name] = np.asarray(given[name]).astype(kind)
        scale: NDArray[np.float32] = np.repeat(
            fields["d"], fields["sc"].shape[1] // fields["d"].shape[1], 1
        )
        scale = scale * fields["sc"].astype(np.float32)
        return Scales(scale, self.group, None, None, fields=fields)


def form_of(encoding: Encoding, columns: int) -> WeightForm | None:
    """Return the form of an encoding for rows of a length, or None where it has none here."""
    grid = encoding.grid
    if grid is None or not columns or isinstance(encoding, Dense):
        return None
    group = grid.group_size or columns
    bits = (grid.high - grid.low).bit_length()
    ragged = columns % group != 0
    if not 2 <= bits <= 8 or columns % 8 or (ragged and grid.act_order):
        return None
    groups = group_count(columns, group)
    fields: dict[str, tuple[str, int]] = {}
    if getattr(grid, "composed_scales", False):
        blocks = columns // encoding.block_shape[1]
        fields = {"d": ("float16", blocks)}
        most = getattr(encoding, "SCALE_RANGE", (0, 0x7F))[1]
        if grid.zero != "offset":
            fields["sc"] = ("int8", groups)
        elif most <= HALF_BYTE:
            fields |= {"dmin": ("float16", blocks), PAIRS: ("uint8", groups)}
        else:
            fields |= {"dmin": ("float16", blocks), "sc": ("int8", groups), "mn": ("int8", groups)}
    else:
        fields["scale"] = (grid.scale_dtype, groups)
        if grid.zero == "integer":
            fields["zero"] = ("uint8", groups)
        elif grid.zero == "float":
            fields["zero"] = (grid.scale_dtype, groups)
        elif grid.zero == "offset":
            fields["offset"] = (grid.scale_dtype, groups)
    return WeightForm(
        encoding, columns, bits, grid.low, group, grid.zero, grid.zero_point, fields, grid.act_order
    )


def verdict_of(encoding: Encoding, columns: int) -> Verdict:
    """Return how exactly a graph computes values from the stored numbers, in float32."""
    form = form_of(encoding, columns)
    if form is None:
        return Verdict.EXACT
    if form.zero in ("offset", "float"):
        return Verdict.EXACT_TO_ROUNDING
    return Verdict.EXACT if form.group in nbits.BLOCK_SIZES else Verdict.REGROUPED


def stored_parts(tensor: Tensor, form: WeightForm, style: Style) -> dict[str, Part]:
    """Return the arrays that hold a weight, computed by ranges of rows when they are read."""
    order = column_order(tensor) if form.act_order else None

    def unpacked(start: int, stop: int) -> Unpacked:
        with naming(tensor.name):
            found = tensor.encoding.unpack(tensor.read(start, stop), tensor.columns)
        return found if order is None else replace(found, codes=found.codes[:, order])

    def small(start: int, stop: int) -> dict[str, Array]:
        return form.numbers(unpacked(start, stop).scales)

    def large(start: int, stop: int, known: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        found = unpacked(start, stop)
        return form.codes(found, style, nbits.CODES), form.numbers(found.scales)

    specs = form.specs(tensor.rows, style)
    shared = {name: spec for name, spec in specs.items() if name != nbits.HIGH}
    parts = computed_parts(shared, tensor.columns, small, large)
    if nbits.HIGH in specs:
        parts[nbits.HIGH] = _streamed(
            specs[nbits.HIGH],
            row_step(tensor.columns),
            lambda start, stop: form.codes(unpacked(start, stop), style, nbits.HIGH),
        )
    return parts


def _streamed(spec: PartSpec, step: int, function: Any) -> ComputedPart:
    from halfbyte.ir.streamed_parts import computed_part

    return computed_part(spec, step, function)


def column_order(tensor: Tensor) -> Array | None:
    """Return the columns sorted by group, where every group is full; None where one is not."""
    group_of_column = np.asarray(tensor.parts["g_idx"].read()).astype(np.int64)
    order = np.argsort(group_of_column, kind="stable")
    size = tensor.encoding.grid.group_size if tensor.encoding.grid is not None else 0
    wanted = np.arange(tensor.columns) // (size or tensor.columns)
    return order if np.array_equal(group_of_column[order], wanted) else None


def restored(tensor: Tensor, form: WeightForm, style: Style, stored: Mapping[str, Part]) -> Tensor:
    """Return a weight in its own encoding over stored arrays; the inverse of `stored_parts`.

    tensor: name, shape, encoding and identity; its parts are replaced. stored: every array of
    `form.specs`, and `order` or its inverse `places` [columns] where columns were sorted by group.
    """
    specs = form.encoding.part_specs(tensor.rows, tensor.columns)
    main = next(iter(specs))
    places = inverse = None
    numbers = [name for name in stored if name not in ("order", "places")]
    if form.act_order:
        index = stored.get("order", stored.get("places"))
        assert index is not None
        inverse = np.argsort(np.asarray(index.read()).reshape(-1).astype(np.int64), kind="stable")
        if "order" not in stored:
            inverse = np.argsort(inverse)
        places = (inverse // form.group).astype(np.int32)

    def compute(start: int, stop: int) -> dict[str, Array]:
        arrays = {n: p.read(start, stop) for n, p in stored.items() if n in numbers}
        found = form.join(arrays, style)
        if inverse is not None:
            scales = replace(found.scales, group_of_column=places)
            found = Unpacked(np.ascontiguousarray(found.codes[:, inverse]), scales)
        with naming(tensor.name):
            return form.encoding.pack(found)

    def large(start: int, stop: int, known: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        parts = compute(start, stop)
        return parts.pop(main), parts

    def small(start: int, stop: int) -> dict[str, Array]:
        return large(start, stop, {})[1]

    return replace(tensor, parts=computed_parts(specs, tensor.columns, small, large))
