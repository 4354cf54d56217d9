"""Matrix products: ai.onnx MatMul and Gemm, halfbyte Linear and LinearGroup.

The reference sums in float64 and rounds once, so that it is the yardstick for every device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Dim, Node, Value
from halfbyte.ir.ops.activation import swish
from halfbyte.ir.ops.numerics import quiet
from halfbyte.ir.ops.older_forms import to_version
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    broadcast,
    common_dtype,
    float_rows,
    input_at,
    normal,
    required_input,
)
from halfbyte.ir.tensor import Tensor, rows_and_columns

DECODE_BYTES = 8 << 20


def same_length(node: Node, left: Dim, right: Dim) -> None:
    """Check that two summed dimensions can be equal.

    Raises:
        GraphError: both are known and differ.
    """
    if isinstance(left, int) and isinstance(right, int) and left != right:
        raise GraphError(node.label, f"sums over {left} and {right} elements; make them equal")


def infer_matmul(node: Node) -> list[ValueType]:
    """Infer: as numpy.matmul."""
    a, b = required_input(node, 0).shape, required_input(node, 1).shape
    dtype = common_dtype(node)
    if a is None or b is None:
        return [ValueType(dtype, None)]
    if not a or not b:
        raise GraphError(node.label, "MatMul takes no scalars; give at least vectors")
    left = a if len(a) > 1 else (1, *a)
    right = b if len(b) > 1 else (*b, 1)
    same_length(node, left[-1], right[-2])
    batch = broadcast(node, [left[:-2], right[:-2]]) or ()
    rows: tuple[Dim, ...] = (left[-2],) if len(a) > 1 else ()
    columns: tuple[Dim, ...] = (right[-1],) if len(b) > 1 else ()
    return [ValueType(dtype, (*batch, *rows, *columns))]


def evaluate_matmul(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Multiply matrices."""
    a, b = (np.asarray(v) for v in inputs)
    if a.dtype.kind in "iu":
        return [np.asarray(np.matmul(a, b))]
    return [np.asarray(np.matmul(a.astype(np.float64), b.astype(np.float64))).astype(a.dtype)]


def infer_gemm(node: Node) -> list[ValueType]:
    """Infer: [M, N] after the transpositions."""
    a, b = required_input(node, 0).shape, required_input(node, 1).shape
    dtype = common_dtype(node)
    if a is None or b is None:
        return [ValueType(dtype, None)]
    if len(a) != 2 or len(b) != 2:
        raise GraphError(node.label, "Gemm takes matrices; reshape first")
    left = a[::-1] if node.attributes.get("transA") else a
    right = b[::-1] if node.attributes.get("transB") else b
    same_length(node, left[1], right[0])
    return [ValueType(dtype, (left[0], right[1]))]


def evaluate_gemm(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return alpha * A @ B + beta * C."""
    a, b = (np.asarray(v) for v in inputs[:2])
    if a.dtype.kind in "iu" and not whole(attributes):
        a, b = a.astype(np.float64), b.astype(np.float64)
    wide = a.dtype if a.dtype.kind in "iu" else np.dtype(np.float64)
    left = (a.T if attributes["transA"] else a).astype(wide)
    right = (b.T if attributes["transB"] else b).astype(wide)
    result = wide.type(attributes["alpha"]) * (left @ right)
    if len(inputs) > 2 and inputs[2] is not None:
        result = result + wide.type(attributes["beta"]) * np.asarray(inputs[2]).astype(wide)
    return [np.asarray(result).astype(np.asarray(inputs[0]).dtype)]


def whole(attributes: Mapping[str, Any]) -> bool:
    """Whether Gemm's factors are non-negative integers, so that integers stay exact."""
    factors = (attributes["alpha"], attributes["beta"])
    return all(f >= 0 and float(f).is_integer() for f in factors)


def _linear_type(node: Node, data: Value, weight: Value, bias: Value | None) -> ValueType:
    if weight.shape is not None and len(weight.shape) != 2:
        raise GraphError(node.label, f"weight has shape {list(weight.shape)}, [out, in] required")
    out: Dim = UNKNOWN
    if weight.shape is not None:
        out = weight.shape[0]
        if data.shape:
            same_length(node, data.shape[-1], weight.shape[1])
        if bias is not None and bias.shape is not None and len(bias.shape) == 1:
            same_length(node, bias.shape[0], out)
    dtype = common_dtype(node, [0])
    return ValueType(dtype, None if data.shape is None else (*data.shape[:-1], out))


def infer_linear(node: Node) -> list[ValueType]:
    """Infer: the last dimension becomes the weight's rows."""
    data, weight = required_input(node, 0), required_input(node, 1)
    return [_linear_type(node, data, weight, input_at(node, 2))]


def linear(data: Array, weight: Tensor | Array, bias: Array | None) -> Array:
    """Return data @ weight.T + bias, decoding a few rows of the weight at a time.

    data: [..., columns]; weight: [rows, columns]; returns [..., rows] in the dtype of `data`.
    """
    rows, columns = rows_and_columns(weight.shape)
    flat = np.asarray(data).reshape(-1, columns).astype(np.float64)
    result = np.empty((len(flat), rows), np.float64)
    step = max(1, DECODE_BYTES // (8 * max(1, columns)))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        part = float_rows(weight, start, stop).astype(np.float64)
        np.matmul(flat, part.T, out=result[:, start:stop])
    if bias is not None:
        result += np.asarray(bias, np.float64).reshape(-1)
    return result.astype(data.dtype).reshape(*data.shape[:-1], rows)


def evaluate_linear(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Linear."""
    bias = inputs[2] if len(inputs) > 2 else None
    return [linear(inputs[0], inputs[1], bias)]


def infer_linear_group(node: Node) -> list[ValueType]:
    """Infer: one Linear per weight."""
    count = node.attributes["count"]
    if len(node.inputs) not in (1 + count, 1 + 2 * count) or len(node.outputs) != count:
        raise GraphError(node.label, f"a group of {count} needs {count} weights and outputs")
    data = required_input(node, 0)
    return [
        _linear_type(node, data, required_input(node, 1 + i), input_at(node, 1 + count + i))
        for i in range(count)
    ]


def evaluate_linear_group(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate every Linear of the group."""
    count = attributes["count"]
    biases = list(inputs[1 + count :]) or [None] * count
    return [linear(inputs[0], inputs[1 + i], biases[i]) for i in range(count)]


def infer_linear_swiglu(node: Node) -> list[ValueType]:
    """Infer: as Linear; both weights have one shape."""
    data, gate, up = (required_input(node, i) for i in range(3))
    if gate.shape != up.shape:
        raise GraphError(node.label, f"gate is {gate.shape}, up is {up.shape}; make them equal")
    return [_linear_type(node, data, gate, input_at(node, 3))]


def evaluate_linear_swiglu(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return swish(gate(x)) * up(x)."""
    data, gate, up = inputs[:3]
    biases = list(inputs[3:]) or [None, None]
    opened = swish(linear(data, gate, biases[0]))
    return [np.asarray(opened * linear(data, up, biases[1]))]


def linear_cases() -> list[Case]:
    """Return one row, many rows, a bias, long sums."""
    return [
        Case("row", [normal(60, 1, 1, 32), normal(61, 5, 32)]),
        Case("rows", [normal(62, 2, 7, 64), normal(63, 24, 64)]),
        Case("bias", [normal(64, 3, 32), normal(65, 8, 32), normal(66, 8)]),
        Case("long", [normal(67, 9, 1024), normal(68, 33, 1024)]),
        Case("odd", [normal(69, 3, 37), normal(70, 11, 37)]),
    ]


def swiglu_cases() -> list[Case]:
    """Return one and many rows, with and without biases."""
    weights = [normal(91, 24, 64), normal(92, 24, 64)]
    biases = [normal(93, 24), normal(94, 24)]
    return [
        Case("row", [normal(95, 1, 1, 64), *weights]),
        Case("rows", [normal(96, 2, 7, 64), *weights]),
        Case("bias", [normal(97, 3, 64), *weights, *biases]),
    ]


def group_cases() -> list[Case]:
    """Return query, key, value widths, with and without biases, for one and many rows."""
    weights = [normal(71 + i, n, 32) for i, n in enumerate((32, 8, 8))]
    biases = [normal(75 + i, n) for i, n in enumerate((32, 8, 8))]
    return [
        Case(f"{name}_{rows}", [normal(79, 1, rows, 32), *weights, *extra], {"count": 3}, outputs=3)
        for rows in (1, 5)
        for name, extra in (("plain", []), ("bias", biases))
    ]


GEMM = OpSpec(
    "Gemm",
    (7, 9, 11, 13),
    ("A", "B", "C?"),
    ("Y",),
    infer=infer_gemm,
    evaluate=quiet(evaluate_gemm),
    attributes={
        "alpha": Attribute("float", 1.0),
        "beta": Attribute("float", 1.0),
        "transA": Attribute("int", 0),
        "transB": Attribute("int", 0),
    },
    cases=lambda: [
        Case("plain", [normal(86, 3, 4), normal(87, 4, 5)]),
        Case(
            "transposed",
            [normal(88, 4, 3), normal(89, 5, 4), normal(90, 5)],
            {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
        ),
    ],
)
SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "MatMul",
        (1, 9, 13),
        ("A", "B"),
        ("Y",),
        infer=infer_matmul,
        evaluate=quiet(evaluate_matmul),
        cases=lambda: [
            Case("matrices", [normal(80, 3, 4), normal(81, 4, 5)]),
            Case("batch", [normal(82, 2, 3, 4), normal(83, 4, 5)]),
            Case("vector", [normal(84, 4), normal(85, 4)]),
        ],
    ),
    replace(
        GEMM,
        versions=(1, 6),
        inputs=("A", "B", "C"),
        attributes={**GEMM.attributes, "broadcast": Attribute("int", 0)},
        upgrade=to_version(13, "broadcast"),
        cases=list,
    ),
    GEMM,
    OpSpec(
        "Linear",
        (1,),
        ("X", "W", "bias?"),
        ("Y",),
        infer=infer_linear,
        evaluate=evaluate_linear,
        domain="halfbyte",
        encoded=frozenset({1}),
        cases=linear_cases,
    ),
    OpSpec(
        "LinearGroup",
        (1,),
        ("X", "weights_and_biases*"),
        ("outputs*",),
        infer=infer_linear_group,
        evaluate=evaluate_linear_group,
        attributes={"count": Attribute("int", required=True)},
        domain="halfbyte",
        encoded=frozenset(range(1, 9)),
        cases=group_cases,
    ),
    OpSpec(
        "LinearSwiGLU",
        (1,),
        ("X", "gate", "up", "gate_bias?", "up_bias?"),
        ("Y",),
        infer=infer_linear_swiglu,
        evaluate=evaluate_linear_swiglu,
        domain="halfbyte",
        encoded=frozenset({1, 2}),
        cases=swiglu_cases,
    ),
)
