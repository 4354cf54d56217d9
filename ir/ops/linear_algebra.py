"""Einsum, determinants and identity matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import dtype_name, dtype_of, numpy_dtype
from halfbyte.ir.graph import Dim, Node
from halfbyte.ir.ops.numerics import doubled, quiet
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    broadcast_dim,
    common_dtype,
    normal,
    required_input,
)


@quiet
def evaluate_einsum(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Einsum, floats in float64."""
    equation = attributes["equation"].replace(" ", "")
    arrays = [np.asarray(v) for v in inputs]
    result = np.einsum(equation, *(doubled(a) for a in arrays), optimize=True)
    return [np.asarray(result).astype(arrays[0].dtype)]


def infer_einsum(node: Node) -> list[ValueType]:
    """Infer: the dimensions that the letters of the result name."""
    dtype = common_dtype(node)
    equation = str(node.attributes.get("equation", "")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(node.inputs):
        found = f"equation {equation!r} has {len(terms)} terms for {len(node.inputs)} inputs"
        raise GraphError(node.label, f"{found}; give one for each")
    dims: dict[str, Dim] = {}
    for index, term in enumerate(terms):
        shape = required_input(node, index).shape
        if shape is None or "..." in term:
            return [ValueType(dtype, None)]
        if len(shape) != len(term):
            found = f"term {term!r} for an input of rank {len(shape)}"
            raise GraphError(node.label, f"{found}; give one letter per dimension")
        for letter, dim in zip(term, shape, strict=True):
            dims[letter] = broadcast_dim(node, dims.get(letter, dim), dim)
    if not arrow:
        right = "".join(sorted(c for c in dims if left.count(c) == 1))
    return [ValueType(dtype, tuple(dims[letter] for letter in right))]


@quiet
def evaluate_determinant(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Det, in float64."""
    data = np.asarray(inputs[0])
    return [np.asarray(np.linalg.det(data.astype(np.float64))).astype(data.dtype)]


def infer_determinant(node: Node) -> list[ValueType]:
    """Infer: without the last two dimensions."""
    shape = required_input(node, 0).shape
    return [ValueType(common_dtype(node, [0]), None if shape is None else shape[:-2])]


def evaluate_identity(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate EyeLike."""
    data = np.asarray(inputs[0])
    to = numpy_dtype(dtype_name(attributes["dtype"] or dtype_of(data)))
    rows, columns = data.shape
    return [np.eye(rows, columns, k=attributes["k"]).astype(to)]


def infer_identity(node: Node) -> list[ValueType]:
    """Infer: the input's shape, attribute `dtype` or the input's."""
    asked = node.attributes.get("dtype")
    to = dtype_name(asked) if asked else common_dtype(node, [0])
    return [ValueType(to, required_input(node, 0).shape)]


def einsum_cases() -> list[Case]:
    """Return a product, a trace, a batch, an implicit result."""
    a, b = normal(146, 3, 4), normal(147, 4, 5)
    return [
        Case("product", [a, b], {"equation": "ij,jk->ik"}),
        Case("diagonal", [normal(148, 4, 4)], {"equation": "ii->i"}),
        Case("batch", [normal(149, 2, 3, 4), normal(150, 2, 5, 4)], {"equation": "bij,bkj->bik"}),
        Case("implicit", [a, b], {"equation": "ij, jk"}),
    ]


SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "Einsum",
        (12, 28),
        ("Inputs*",),
        ("Output",),
        infer=infer_einsum,
        evaluate=evaluate_einsum,
        attributes={"equation": Attribute("string", required=True)},
        cases=einsum_cases,
    ),
    OpSpec(
        "Det",
        (11, 22),
        ("X",),
        ("Y",),
        infer=infer_determinant,
        evaluate=evaluate_determinant,
        cases=lambda: [Case("one", [normal(151, 4, 4)]), Case("batch", [normal(152, 2, 3, 3)])],
    ),
    OpSpec(
        "EyeLike",
        (9, 22),
        ("input",),
        ("output",),
        infer=infer_identity,
        evaluate=evaluate_identity,
        attributes={"dtype": Attribute("dtype"), "k": Attribute("int", 0)},
        cases=lambda: [Case("above", [normal(156, 3, 4)], {"k": 1})],
    ),
)
