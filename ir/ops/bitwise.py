"""Operators on the bits of integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.elementwise import binary, infer_broadcast, unary
from halfbyte.ir.ops.spec import Array, Attribute, Case, Context, OpSpec, ValueType


def shift(data: Array, count: Array, left: bool) -> Array:
    """Shift bits; negative and too large counts shift everything out."""
    bits = data.dtype.itemsize * 8
    outside = (count < 0) | (count >= bits)
    inside = np.where(outside, 0, count).astype(data.dtype)
    if left:
        return np.where(outside, 0, np.left_shift(data, inside)).astype(data.dtype)
    sign = np.where(data < 0, -1, 0).astype(data.dtype)
    return np.where(outside, sign, np.right_shift(data, inside)).astype(data.dtype)


def evaluate_shift(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate BitShift."""
    data, count = (np.asarray(v) for v in inputs)
    return [shift(data, count, attributes["direction"] == "LEFT")]


def infer_shift(node: Node) -> list[ValueType]:
    """Infer: as broadcast; the direction must be one of two."""
    if node.attributes.get("direction") not in ("LEFT", "RIGHT"):
        raise GraphError(node.label, "direction must be 'LEFT' or 'RIGHT'; give one of them")
    return infer_broadcast(node)


def shift_cases() -> list[Case]:
    """Return both directions, signed numbers, counts beyond the width."""
    plain = np.asarray([16, 4, 1, 255], np.uint8), np.asarray([1, 2, 3, 9], np.uint8)
    signed = np.asarray([-16, 16, -1, 7], np.int32), np.asarray([2, 2, 40, -1], np.int32)
    return [
        Case(f"{name}_{direction.lower()}", list(pair), {"direction": direction})
        for name, pair in (("unsigned", plain), ("signed", signed))
        for direction in ("LEFT", "RIGHT")
    ]


def bit_cases() -> list[Case]:
    """Return integers of both signs."""
    a = np.arange(-6, 6, dtype=np.int32).reshape(3, 4)
    return [Case("signed", [a, a[::-1].copy()]), Case("row", [a, a[0]])]


SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "BitShift",
        (11, 28),
        ("X", "Y"),
        ("Z",),
        infer=infer_shift,
        evaluate=evaluate_shift,
        attributes={"direction": Attribute("string", required=True)},
        cases=shift_cases,
    ),
    binary("BitwiseAnd", np.bitwise_and, (18,), cases=bit_cases),
    binary("BitwiseOr", np.bitwise_or, (18,), cases=bit_cases),
    binary("BitwiseXor", np.bitwise_xor, (18,), cases=bit_cases),
    unary(
        "BitwiseNot",
        np.invert,
        (18,),
        cases=lambda: [Case("signed", [np.arange(-6, 6, dtype=np.int32)])],
    ),
)
