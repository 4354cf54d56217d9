"""Operators that make values: constants, filled tensors, ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import WIDE_FLOATS, dtype_of
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.older_forms import renumbered
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    as_array,
    integers,
    ints,
    known_array,
    known_ints,
    normal,
    operator,
    required_input,
)

CONSTANT_DTYPES: dict[str, Any] = {
    "value_float": "float32",
    "value_floats": "float32",
    "value_int": "int64",
    "value_ints": "int64",
    "value_string": object,
    "value_strings": object,
}


def constant_array(attributes: Mapping[str, Any]) -> Array:
    """Return the values of a Constant node."""
    for name, dtype in CONSTANT_DTYPES.items():
        if attributes.get(name) is not None:
            return np.asarray(attributes[name], dtype=dtype)
    sparse = attributes.get("sparse_value")
    return as_array(attributes["value"] if sparse is None else sparse)


def infer_constant(node: Node) -> list[ValueType]:
    """Infer: dtype and shape of the attribute."""
    if sum(v is not None for v in node.attributes.values()) != 1:
        raise GraphError(node.label, "Constant must have exactly one value attribute")
    array = constant_array(node.attributes)
    return [ValueType(dtype_of(array), array.shape)]


def evaluate_constant(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return the attribute's values."""
    return [constant_array(attributes)]


def filler(attributes: Mapping[str, Any]) -> Array:
    """Return the value that ConstantOfShape repeats, as a scalar."""
    value = attributes.get("value")
    return np.zeros((), np.float32) if value is None else as_array(value).reshape(())


def infer_constant_of_shape(node: Node) -> list[ValueType]:
    """Infer: the constant shape, the dtype of the value."""
    wanted = required_input(node, 0)
    dims, dtype = known_ints(wanted), dtype_of(filler(node.attributes))
    if dims is None:
        rank = wanted.shape[0] if wanted.shape else None
        return [ValueType(dtype, (UNKNOWN,) * rank if isinstance(rank, int) else None)]
    if any(d < 0 for d in dims):
        raise GraphError(node.label, f"shape {dims} is negative; lengths start at 0")
    return [ValueType(dtype, tuple(dims))]


def evaluate_constant_of_shape(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Repeat one value."""
    value = filler(attributes)
    out = np.empty(tuple(integers(inputs[0])), value.dtype)
    out[...] = value
    return [out]


def range_length(start: Any, limit: Any, delta: Any) -> int:
    """Return the number of elements of a range of Python or numpy numbers.

    Raises:
        ZeroDivisionError: the step is zero.
    """
    if isinstance(start, int):
        return max(0, int(-(-(limit - start) // delta)))
    steps = (float(limit) - float(start)) / float(delta)
    if math.isnan(steps) or math.isinf(steps):
        raise ZeroDivisionError("a range without end")
    return max(0, math.ceil(steps))


def _scalars(arrays: Sequence[Any]) -> list[Any]:
    wide = [np.asarray(v).reshape(()) for v in arrays]
    if str(wide[0].dtype) in WIDE_FLOATS - {"float64"}:
        return [np.float32(v) for v in wide]
    return [v.item() for v in wide]


def infer_range(node: Node) -> list[ValueType]:
    """Infer: the length where start, limit and step are constant."""
    values = [required_input(node, i) for i in range(3)]
    arrays = [known_array(v) for v in values]
    dtype = values[0].dtype
    if any(a is None or a.size != 1 for a in arrays):
        return [ValueType(dtype, (UNKNOWN,))]
    try:
        return [ValueType(dtype, (range_length(*_scalars(arrays)),))]
    except ZeroDivisionError:
        raise GraphError(node.label, "the step of a range must not be zero") from None


def evaluate_range(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Count from start to limit by step: start + i * step, in float32 for shorter floats."""
    start, limit, delta = _scalars(inputs)
    dtype = np.asarray(inputs[0]).dtype
    count = range_length(start, limit, delta)
    wide = np.int64 if isinstance(start, int) else np.float64
    if isinstance(start, np.float32):
        wide = np.float32
    places = np.arange(count, dtype=wide)
    return [(places * wide(delta) + wide(start)).astype(dtype)]


RANGE = operator(
    "Range",
    (27,),
    "start limit delta -> output",
    infer=infer_range,
    evaluate=evaluate_range,
    attributes={"stash_type": Attribute("int", 1)},
    cases=lambda: [
        Case("down", [np.asarray(5), np.asarray(-3), np.asarray(-2)]),
        Case("fractions", [np.float32(v).reshape(()) for v in (1, 3, 0.7)]),
    ],
)
SPECS: tuple[OpSpec, ...] = (
    RANGE,
    renumbered(RANGE, (11,), attributes={}),
    OpSpec(
        "Constant",
        (1, 9, 11, 12, 13, 19, 21, 23, 24, 25),
        (),
        ("output",),
        infer=infer_constant,
        evaluate=evaluate_constant,
        attributes={
            "value": Attribute("tensor"),
            "sparse_value": Attribute("tensor"),
            "value_float": Attribute("float"),
            "value_floats": Attribute("floats"),
            "value_int": Attribute("int"),
            "value_ints": Attribute("ints"),
            "value_string": Attribute("string"),
            "value_strings": Attribute("strings"),
        },
        cases=lambda: [
            Case("ints", [], {"value_ints": [1, 2]}),
            Case("tensor", [], {"value": normal(43, 2)}),
        ],
    ),
    operator(
        "ConstantOfShape",
        (9, 20, 21, 23, 24, 25),
        "input -> output",
        infer=infer_constant_of_shape,
        evaluate=evaluate_constant_of_shape,
        attributes={"value": Attribute("tensor")},
        cases=lambda: [
            Case("zeros", [ints(2, 3)]),
            Case("sevens", [ints(2, 0)], {"value": np.asarray([7], np.int8)}),
        ],
    ),
)
