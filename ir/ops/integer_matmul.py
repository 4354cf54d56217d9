"""Matrix products of integers: MatMulInteger and QLinearMatMul."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.ir.dtypes import dtype_of
from halfbyte.ir.graph import Node, Value
from halfbyte.ir.ops.matmul import infer_matmul
from halfbyte.ir.ops.numerics import quiet
from halfbyte.ir.ops.quantization import rounded_to
from halfbyte.ir.ops.spec import (
    Array,
    Case,
    Context,
    Operand,
    OpSpec,
    ValueType,
    common_dtype,
    generator,
    required_input,
)


def of_rows(values: Any) -> Array:
    """Return one number, or one per row of the first matrix as a column, in float64."""
    values = np.asarray(values).astype(np.float64)
    return values[:, None] if values.ndim == 1 and values.size > 1 else _single(values)


def of_columns(values: Any) -> Array:
    """Return one number, or one per column of the second matrix, in float64."""
    return _single(np.asarray(values).astype(np.float64))


def _single(values: Array) -> Array:
    return values.reshape(()) if values.size == 1 else values


def centred(values: Any, zero: Array | None) -> Array:
    """Return values minus their zero point, in float64, where sums of products are exact."""
    wide = np.asarray(values).astype(np.float64)
    return wide if zero is None else wide - zero


@quiet
def evaluate_integer(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate MatMulInteger."""
    a_zero, b_zero = (*inputs[2:], None, None)[:2]
    left = centred(inputs[0], None if a_zero is None else of_rows(a_zero))
    right = centred(inputs[1], None if b_zero is None else of_columns(b_zero))
    return [np.asarray(np.matmul(left, right)).astype(np.int64).astype(np.int32)]


@quiet
def evaluate_quantized(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate QLinearMatMul."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = inputs
    product = np.matmul(centred(a, of_rows(a_zero)), centred(b, of_columns(b_zero)))
    steps = of_rows(a_scale) * of_columns(b_scale) / of_rows(y_scale)
    zero = np.asarray(y_zero)
    shaped = zero[:, None] if zero.ndim == 1 and zero.size > 1 else _single(zero)
    return [rounded_to(np.asarray(product * steps), shaped, dtype_of(zero))]


def infer_integer(node: Node) -> list[ValueType]:
    """Infer: as MatMul, int32; both matrices may differ in sign."""
    return [ValueType("int32", product_shape(node, 0, 1))]


def infer_quantized(node: Node) -> list[ValueType]:
    """Infer: as MatMul, in the dtype of the result's zero point."""
    return [ValueType(common_dtype(node, [7]), product_shape(node, 0, 3))]


def product_shape(node: Node, left: int, right: int) -> Any:
    """Return the shape of the product of two inputs, whatever their dtypes."""
    a, b = required_input(node, left), required_input(node, right)
    plain = Node("MatMul", [Value("a", None, a.shape), Value("b", None, b.shape)], node.outputs)
    return infer_matmul(plain)[0].shape


def bytes_of(seed: int, *shape: int) -> Array:
    """Return uint8 numbers."""
    return generator(seed).integers(0, 256, shape, dtype=np.uint8)


def integer_cases() -> list[Case]:
    """Return no, one and many zero points."""
    a, b = bytes_of(142, 3, 5), bytes_of(143, 5, 4).view(np.int8)
    rows, columns = np.asarray([1, 2, 3], np.uint8), np.asarray([4, -3, 2, -1], np.int8)
    return [
        Case("plain", [a, b]),
        Case("one", [a, b, np.asarray(128, np.uint8), np.asarray(3, np.int8)]),
        Case("many", [a, b, rows, columns]),
    ]


def quantized_cases() -> list[Case]:
    """Return scales of tensors and of columns."""
    a, b = bytes_of(144, 3, 5), bytes_of(145, 5, 4)
    scale, zero = np.asarray(0.01, np.float32), np.asarray(120, np.uint8)
    columns = np.asarray([0.01, 0.02, 0.03, 0.04], np.float32)
    last: list[Operand] = [np.asarray(0.05, np.float32), zero]
    return [
        Case("tensor", [a, scale, zero, b, scale, zero, *last]),
        Case("columns", [a, scale, zero, b, columns, np.full(4, 120, np.uint8), *last]),
    ]


SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "MatMulInteger",
        (10,),
        ("A", "B", "a_zero_point?", "b_zero_point?"),
        ("Y",),
        infer=infer_integer,
        evaluate=evaluate_integer,
        cases=integer_cases,
    ),
    OpSpec(
        "QLinearMatMul",
        (10, 21),
        (
            *("a", "a_scale", "a_zero_point", "b", "b_scale", "b_zero_point"),
            *("y_scale", "y_zero_point"),
        ),
        ("y",),
        infer=infer_quantized,
        evaluate=evaluate_quantized,
        cases=quantized_cases,
    ),
)
