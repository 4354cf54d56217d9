"""Conversion between element types, by value and by bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import (
    BITS,
    DTYPES,
    INTEGERS,
    NARROW_INTEGERS,
    dtype_name,
    dtype_of,
    numpy_dtype,
)
from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.ops.numerics import quiet
from halfbyte.ir.ops.older_forms import renewed
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    common_dtype,
    normal,
    required_input,
)

FLOAT8 = frozenset({"float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"})
POWERS = "float8_e8m0fnu"
OLD_NAMES = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    **{name.upper(): name for name in DTYPES if "_" not in name},
}


def saturated(data: Array, to: str) -> Array:
    """Return values limited to the finite range of an 8-bit float; NaN stays."""
    import ml_dtypes

    finfo: Any = ml_dtypes.finfo
    limit = float(finfo(numpy_dtype(to)).max)
    wide = data if data.dtype == np.float64 else data.astype(np.float32)
    return np.asarray(np.clip(wide, -limit, limit))


def to_powers(data: Array, saturate: bool, mode: str) -> Array:
    """Return the powers of two next to values: `up`, `down`, or `nearest` with halves up.

    NaN for NaN; saturated: 2^127 beyond it and 2^-127 below it, also for 0.
    """
    bits: NDArray[np.uint32] = np.ascontiguousarray(data, np.float32).view(np.uint32)
    bits = bits.reshape(np.shape(data))
    exponent = ((bits >> 23) & 0xFF).astype(np.int32)
    fraction = bits & 0x7FFFFF
    if mode == "up":
        raised = fraction > 0
    elif mode == "nearest":
        raised = (fraction > 0x400000) | ((fraction == 0x400000) & (exponent > 0))
    else:
        raised = np.zeros(exponent.shape, np.bool_)
    result = exponent + (raised & (exponent < 255))
    if saturate:
        result = np.where(exponent < 255, np.minimum(result, 254), result)
        result = np.where(np.isinf(data), 254, result)
    else:
        result = np.where(np.asarray(data) == 0, 255, result)
    return np.where(np.isnan(data), 255, result).astype(np.uint8).view(numpy_dtype(POWERS))


def to_text(data: Array) -> Array:
    """Return numbers as the shortest text that reads back as them."""
    plain = data.astype(np.int8) if dtype_of(data) in NARROW_INTEGERS else data
    if plain.dtype.kind not in "biuf":
        plain = plain.astype(np.float32)
    return plain.astype(np.str_).astype(object)


def from_text(data: Array, to: str) -> Array:
    """Return the numbers that text stands for; integers also from text with a point."""
    if to in INTEGERS or to == "bool":
        try:
            numbers = np.asarray([int(text) for text in data.reshape(-1)], np.int64)
        except (ValueError, OverflowError):
            numbers = data.reshape(-1).astype(np.float64)
        return numbers.reshape(data.shape).astype(numpy_dtype(to))
    return data.astype(np.float64).astype(numpy_dtype(to))


def low_bits(data: Array, to: str) -> Array:
    """Return integers of 2 or 4 bits, from the low bits of wider ones."""
    count = BITS[to]
    whole = data if data.dtype.kind in "biu" else data.astype(np.int64)
    bits = whole.astype(np.int8) & np.int8((1 << count) - 1)
    if to.startswith("int"):
        top = np.int8(1 << (count - 1))
        bits = (bits ^ top) - top
    return np.asarray(bits).astype(numpy_dtype(to))


def cast(data: Any, to: str, saturate: bool = True, mode: str = "up") -> Array:
    """Return an array of another element type, by the rules of ai.onnx Cast."""
    given: Array = np.asarray(data)
    source = dtype_of(given)
    if source == to:
        return given
    if to == "string":
        return to_text(given)
    if source == "string":
        return cast(from_text(given, to if to in NUMBERS else "float32"), to, saturate, mode)
    if to == POWERS:
        return to_powers(given.astype(np.float32), saturate, mode)
    if to in NARROW_INTEGERS:
        return low_bits(given, to)
    if to in FLOAT8 and saturate:
        given = saturated(given, to)
    if given.dtype.kind not in "biufc" and (to in INTEGERS or to == "bool"):
        given = given.astype(np.float32)
    return given.astype(numpy_dtype(to))


NUMBERS = INTEGERS - NARROW_INTEGERS | {"bool", "float64", "float32", "float16"}


@quiet
def evaluate_cast(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Cast."""
    to = dtype_name(attributes["to"])
    return [cast(inputs[0], to, bool(attributes["saturate"]), attributes["round_mode"])]


@quiet
def evaluate_cast_like(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate CastLike."""
    to = dtype_of(np.asarray(inputs[1]))
    return [cast(inputs[0], to, bool(attributes["saturate"]), attributes["round_mode"])]


@quiet
def evaluate_named_cast(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Cast to a type given by its old name."""
    return [cast(inputs[0], OLD_NAMES[attributes["to"].upper()])]


def _target(node: Node, names: bool) -> str:
    given = node.attributes.get("to", "")
    to = OLD_NAMES.get(str(given).upper(), "") if names else dtype_name(given)
    if to not in DTYPES:
        raise GraphError(node.label, f"{node.op} to {given!r}, a numpy dtype name was required")
    return to


def infer_cast(node: Node) -> list[ValueType]:
    """Infer: the dtype that `to` names."""
    return [ValueType(_target(node, False), required_input(node, 0).shape)]


def infer_named_cast(node: Node) -> list[ValueType]:
    """Infer: the dtype that `to` names."""
    return [ValueType(_target(node, True), required_input(node, 0).shape)]


def infer_cast_like(node: Node) -> list[ValueType]:
    """Infer: the dtype of the second input."""
    return [ValueType(common_dtype(node, [1]), required_input(node, 0).shape)]


def infer_bit_cast(node: Node) -> list[ValueType]:
    """Infer: another type of as many bits."""
    data, to = required_input(node, 0), _target(node, False)
    if data.dtype is not None and BITS.get(data.dtype) != BITS.get(to):
        raise GraphError(node.label, f"{data.dtype} as {to} differs in bits; give equal widths")
    return [ValueType(to, data.shape)]


def evaluate_bit_cast(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Read the bits as another type; sub-byte types lie in the low bits of a byte."""
    data, to = np.asarray(inputs[0]), dtype_name(attributes["to"])
    if BITS[to] >= 8 or dtype_of(data) == to:
        return [np.ascontiguousarray(data).view(numpy_dtype(to)).reshape(data.shape)]
    bits = np.ascontiguousarray(data).view(np.uint8).reshape(data.shape) & ((1 << BITS[to]) - 1)
    if to in NARROW_INTEGERS:
        return [low_bits(bits, to)]
    return [bits.view(numpy_dtype(to))]


def upgrade_named_cast(graph: Graph, node: Node) -> bool:
    """Give the type by its number's name."""
    node.attributes["to"] = _target(node, True)
    return renewed(node, CAST.versions[-1])


def cast_cases() -> list[Case]:
    """Return conversions between floats, integers and bool."""
    a = normal(10, 3, 4) * 3
    return [
        Case("to_half", [a], {"to": "float16"}),
        Case("to_integer", [a], {"to": "int64"}),
        Case("to_bool", [a], {"to": "bool"}),
        Case("from_integer", [np.arange(5)], {"to": 1}),
        Case("to_float8", [a * 300], {"to": "float8_e4m3fn"}),
    ]


def cast_like_cases() -> list[Case]:
    """Return conversions to the type of another array."""
    a = normal(10, 3, 4) * 3
    return [
        Case("half", [a, np.zeros(1, np.float16)]),
        Case("integer", [a, np.zeros((2, 2), np.int64)]),
    ]


def bit_cast_cases() -> list[Case]:
    """Return floats as integers and back."""
    a = normal(10, 3, 4)
    return [
        Case("to_integer", [a], {"to": "int32"}),
        Case("to_float", [np.arange(5, dtype=np.int64)], {"to": "float64"}),
    ]


ROUNDING = {"saturate": Attribute("int", 1), "round_mode": Attribute("string", "up")}
TO = {"to": Attribute("dtype", required=True)}
CAST = OpSpec(
    "Cast",
    (6, 9, 13, 19, 21, 23, 24, 25, 28),
    ("input",),
    ("output",),
    infer=infer_cast,
    evaluate=evaluate_cast,
    attributes=TO | ROUNDING,
    cases=cast_cases,
)
SPECS: tuple[OpSpec, ...] = (
    replace(
        CAST,
        versions=(1,),
        infer=infer_named_cast,
        evaluate=evaluate_named_cast,
        attributes={"to": Attribute("string", required=True)},
        upgrade=upgrade_named_cast,
        cases=list,
    ),
    CAST,
    OpSpec(
        "CastLike",
        (15, 19, 21, 23, 24, 25),
        ("input", "target_type"),
        ("output",),
        infer=infer_cast_like,
        evaluate=evaluate_cast_like,
        attributes=ROUNDING,
        cases=cast_like_cases,
    ),
    OpSpec(
        "BitCast",
        (26,),
        ("input",),
        ("output",),
        infer=infer_bit_cast,
        evaluate=evaluate_bit_cast,
        attributes=TO,
        cases=bit_cast_cases,
    ),
)
