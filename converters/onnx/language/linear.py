"""Linear layers and lookups over weights of any encoding, in both flavours."""

from __future__ import annotations

from halfbyte.converters.onnx import nbits
from halfbyte.converters.onnx.language.builder import FLOAT32, MICROSOFT, OnnxBuilder
from halfbyte.converters.onnx.language.quantized import QuantizedWeight, quantized_weight
from halfbyte.converters.onnx.language.weight_form import NIBBLES, SIGNED, form_of
from halfbyte.ir.dtypes import BITS
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.graph import Dim, Value
from halfbyte.ir.tensor import Tensor


def linear(builder: OnnxBuilder, x: Value, tensor: Tensor, name: str, contrib: bool) -> Value:
    """Return x W^T: x [..., columns], W [rows, columns] of any encoding.

    contrib: whether MatMulNBits may be used.
    """
    if isinstance(tensor.encoding, Dense):
        return _matmul(builder, x, builder.read(tensor), name)
    weight = _weight(builder, tensor, contrib)
    contrib = weight.style == NIBBLES
    order = weight.order()
    if order is not None:
        x = builder.op("Gather", x, order, name=f"{name}/ordered", shape=x.shape, axis=-1)
    parts = [
        _product(builder, x, weight, name) if contrib else _dequantized(builder, x, weight, name)
    ]
    if contrib and weight.has_high:
        parts.append(_nbits(builder, x, weight, nbits.HIGH, f"{name}/high"))
    extra = weight.extra()
    if extra is not None:
        sums = group_sums(builder, x, weight.form.unit)
        parts.append(_matmul(builder, sums, extra, f"{name}/extra"))
    return _sum(builder, parts, name)


def _weight(builder: OnnxBuilder, tensor: Tensor, contrib: bool) -> QuantizedWeight:
    """Return a weight as nibbles where its groups allow that, else as signed codes."""
    form = form_of(tensor.encoding, tensor.columns)
    blocks = contrib and form is not None and form.block_size
    return quantized_weight(builder, tensor, NIBBLES if blocks else SIGNED)


def _sum(builder: OnnxBuilder, parts: list[Value], name: str) -> Value:
    whole = parts[0]
    for index, part in enumerate(parts[1:]):
        whole = builder.op("Add", whole, part, name=f"{name}/sum_{index}", shape=whole.shape)
    return whole


def _width(x: Value, last: Dim) -> tuple[Dim, ...] | None:
    return None if x.shape is None else (*x.shape[:-1], last)


def _matmul(builder: OnnxBuilder, x: Value, weight: Value, name: str) -> Value:
    """Multiply by a matrix stored [rows, columns]; runtimes fuse or fold the transpose."""
    rows, columns = weight.shape or (0, 0)
    turned = builder.once(
        ("transposed", id(weight)),
        lambda: builder.op(
            "Transpose",
            weight,
            name=f"{weight.name}/transposed",
            shape=(columns, rows),
            perm=[1, 0],
        ),
    )
    return builder.op("MatMul", x, turned, name=f"{name}/MatMul", shape=_width(x, rows))


def _product(builder: OnnxBuilder, x: Value, weight: QuantizedWeight, name: str) -> Value:
    return _nbits(builder, x, weight, nbits.CODES, name)


def _nbits(builder: OnnxBuilder, x: Value, weight: QuantizedWeight, which: str, name: str) -> Value:
    rows, columns, block = weight.rows, weight.form.columns, weight.form.block_size
    codes = weight.matrix(which, (rows, columns // block, block // 2))
    scale = weight.scale(block) if which == nbits.CODES else weight.high_scale(block)
    return builder.op(
        "MatMulNBits",
        x,
        codes,
        scale,
        name=f"{name}/MatMulNBits",
        shape=_width(x, rows),
        domain=MICROSOFT,
        K=columns,
        N=rows,
        bits=4,
        block_size=block,
    )


def group_sums(builder: OnnxBuilder, x: Value, group: int) -> Value:
    """Return the sums of x [batch, sequence, columns] over each group of columns."""

    def make() -> Value:
        columns = int((x.shape or (0,))[-1])
        stem, groups = f"{x.name}/sums_{group}", columns // group
        leading = [0] * (len(x.shape or ()) - 1)
        split = builder.op(
            "Reshape",
            x,
            builder.ints(*leading, groups, group),
            name=f"{stem}/groups",
            shape=(*(x.shape or ())[:-1], groups, group),
            allowzero=0,
        )
        return builder.op(
            "ReduceSum", split, builder.ints(-1), name=stem, shape=_width(x, groups), keepdims=0
        )

    return builder.once(("sums", id(x), group), make)


def _whole(builder: OnnxBuilder, weight: QuantizedWeight) -> Value:
    """Return the centered values [rows, columns] of a weight by a blocked DequantizeLinear."""
    form = weight.form

    def make() -> Value:
        return builder.op(
            "DequantizeLinear",
            weight.constant(nbits.CODES),
            weight.group_scale(),
            name=f"{weight.name}/dequantized",
            shape=(weight.rows, form.columns),
            axis=1,
            block_size=form.unit,
        )

    return builder.once(("dequantized", id(weight)), make)


def _dequantized(builder: OnnxBuilder, x: Value, weight: QuantizedWeight, name: str) -> Value:
    return _matmul(builder, x, _whole(builder, weight), name)


def lookup(builder: OnnxBuilder, tensor: Tensor, ids: Value, name: str, contrib: bool) -> Value:
    """Return rows of a table of any encoding: ids [...] to float32 [..., columns]."""
    shape = (*(ids.shape or ()), tensor.columns)
    if isinstance(tensor.encoding, Dense):
        stored = builder.stored(tensor)
        rows = builder.op(
            "Gather", stored, ids, name=f"{name}/Gather", dtype=stored.dtype, shape=shape, axis=0
        )
        return builder.float32(rows)
    weight = _weight(builder, tensor, contrib)
    rows = _looked_up(builder, weight, ids, name, shape)
    places = weight.places()
    if places is None:
        return rows
    return builder.op("Gather", rows, places, name=f"{name}/placed", shape=shape, axis=-1)


def _looked_up(
    builder: OnnxBuilder, weight: QuantizedWeight, ids: Value, name: str, shape: tuple[Dim, ...]
) -> Value:
    """Return rows of a quantized table, columns as they are stored."""
    if weight.style == NIBBLES:
        rows = _gathered_blocks(builder, weight, ids, nbits.CODES, name, shape)
        if weight.has_high:
            high = _gathered_blocks(builder, weight, ids, nbits.HIGH, f"{name}/high", shape)
            rows = builder.op("Add", rows, high, name=f"{name}/nibbles", shape=shape)
        return _with_extra(builder, weight, ids, rows, name)
    if BITS[nbits.signed_dtype(weight.form.bits)] < 8:
        # Gather takes no types of 4 bits.
        whole = _whole(builder, weight)
        rows = builder.op("Gather", whole, ids, name=f"{name}/Gather", shape=shape, axis=0)
        return _with_extra(builder, weight, ids, rows, name)
    return _with_extra(builder, weight, ids, _gathered_codes(builder, weight, ids, name), name)


def _gathered_blocks(
    builder: OnnxBuilder,
    weight: QuantizedWeight,
    ids: Value,
    which: str,
    name: str,
    shape: tuple[Dim, ...],
) -> Value:
    block, columns = weight.form.block_size, weight.form.columns
    scale = weight.scale(block) if which == nbits.CODES else weight.high_scale(block)
    return builder.op(
        "GatherBlockQuantized",
        weight.matrix(which, (weight.rows, columns // 2)),
        ids,
        scale,
        name=f"{name}/GatherBlockQuantized",
        shape=shape,
        domain=MICROSOFT,
        bits=4,
        block_size=block,
        gather_axis=0,
        quantize_axis=1,
    )


def _grouped(builder: OnnxBuilder, x: Value, weight: QuantizedWeight, name: str) -> Value:
    leading = (x.shape or ())[:-1]
    size = (weight.form.groups, weight.form.unit)
    return builder.op(
        "Reshape",
        x,
        builder.ints(*[0] * len(leading), *size),
        name=f"{name}/groups",
        dtype=x.dtype,
        shape=(*leading, *size),
        allowzero=0,
    )


def _per_group(
    builder: OnnxBuilder, table: Value, ids: Value, weight: QuantizedWeight, name: str
) -> Value:
    """Return entries of table [rows, groups] as [..., groups, 1] float32."""
    leading = ids.shape or ()
    groups = weight.form.groups
    rows = builder.op(
        "Gather", table, ids, name=name, dtype=table.dtype, shape=(*leading, groups), axis=0
    )
    return builder.op(
        "Unsqueeze", builder.float32(rows), builder.ints(-1), name=f"{name}/column",
        shape=(*leading, groups, 1),
    )  # fmt: skip


def _joined(builder: OnnxBuilder, x: Value, columns: int, name: str) -> Value:
    leading = (x.shape or ())[:-2]
    wanted = builder.ints(*[0] * len(leading), columns)
    return builder.op(
        "Reshape", x, wanted, name=f"{name}/joined", shape=(*leading, columns), allowzero=0
    )


def _with_extra(
    builder: OnnxBuilder, weight: QuantizedWeight, ids: Value, rows: Value, name: str
) -> Value:
    extra = weight.extra()
    if extra is None:
        return rows
    grouped = _grouped(builder, rows, weight, f"{name}/extra")
    added = _per_group(builder, extra, ids, weight, f"{name}/extra/Gather")
    whole = builder.op("Add", grouped, added, name=f"{name}/extra/Add", shape=grouped.shape)
    return _joined(builder, whole, weight.form.columns, f"{name}/extra")


def _gathered_codes(builder: OnnxBuilder, weight: QuantizedWeight, ids: Value, name: str) -> Value:
    """Look up codes of 8 bits and scales, then multiply: only the rows asked for are touched."""
    shape = (*(ids.shape or ()), weight.form.columns)
    codes = builder.op(
        "Gather", weight.constant(nbits.CODES), ids, name=f"{name}/Gather", dtype="int8",
        shape=shape, axis=0,
    )  # fmt: skip
    grouped = _grouped(builder, builder.cast(codes, FLOAT32), weight, name)
    scale = _per_group(builder, weight.group_scale(), ids, weight, f"{name}/scale")
    product = builder.op("Mul", grouped, scale, name=f"{name}/Mul", shape=grouped.shape)
    return _joined(builder, product, weight.form.columns, name)
