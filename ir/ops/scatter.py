"""Operators that write values into a copy: Scatter, ScatterElements, ScatterND."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.ops.gather import element_index
from halfbyte.ir.ops.older_forms import renumbered
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    as_array,
    common_dtype,
    normal,
    required_input,
)

REDUCTIONS: dict[str, Any] = {
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def infer_scatter(node: Node) -> list[ValueType]:
    """Infer: like the data."""
    reduction = node.attributes.get("reduction", "none")
    if reduction not in ("none", *REDUCTIONS):
        raise GraphError(node.label, f"reduction {reduction!r}; give none, add, mul, max or min")
    return [ValueType(common_dtype(node, [0, 2]), required_input(node, 0).shape)]


def written(data: Array, index: tuple[Any, ...], updates: Array, reduction: str) -> Array:
    """Return a copy of the data with `updates` written at, or reduced into, an index."""
    out = np.array(data, order="C")
    if reduction == "none":
        out[index] = updates
        return out
    # Sums and products in half precision would round once for each update.
    narrow = reduction in ("add", "mul") and data.dtype.itemsize < 4 and data.dtype.kind in "fV"
    wide = out.astype(np.float64) if narrow else out
    REDUCTIONS[reduction].at(wide, index, updates.astype(wide.dtype))
    return wide.astype(data.dtype, copy=False)


def evaluate_scatter_elements(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Write one element for each index."""
    data, indices, updates = as_array(inputs[0]), np.asarray(inputs[1]), as_array(inputs[2])
    index = element_index(indices, attributes["axis"] % data.ndim, data.shape)
    return [written(data, index, updates, attributes["reduction"])]


def evaluate_plain(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Write one element for each index."""
    return evaluate_scatter_elements(inputs, {**attributes, "reduction": "none"}, context)


def evaluate_scatter_nd(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Write the slices that the rows of the indices name."""
    data, indices, updates = as_array(inputs[0]), np.asarray(inputs[1]), as_array(inputs[2])
    index = tuple(np.moveaxis(indices, -1, 0))
    return [written(data, index, updates, attributes["reduction"])]


def upgrade_scatter(graph: Graph, node: Node) -> bool:
    """Take the operator's later name."""
    node.op, node.since_version = "ScatterElements", 13
    return True


def spec(op: str, versions: tuple[int, ...], evaluate: Any, **parts: Any) -> OpSpec:
    """Return the spec of an operator that writes updates into data."""
    names = ("data", "indices", "updates"), ("output",)
    return OpSpec(op, versions, *names, infer=infer_scatter, evaluate=evaluate, **parts)


def elements_cases() -> list[Case]:
    """Return cases of every reduction, with repeated indices where one is named."""
    data, indices, updates = normal(54, 3, 3), np.asarray([[1, 0, 2], [1, -1, 0]]), normal(55, 2, 3)
    return [
        Case("none", [data, indices, updates]),
        *(Case(name, [data, indices, updates], {"reduction": name}) for name in REDUCTIONS),
        Case("axis", [data, indices, updates], {"axis": 1}),
    ]


def nd_cases() -> list[Case]:
    """Return elements, rows, and sums over repeated rows."""
    data = normal(56, 4, 3)
    return [
        Case("elements", [data, np.asarray([[0, 1], [-1, 2]]), normal(57, 2)]),
        Case("rows", [data, np.asarray([[2], [0]]), normal(57, 2, 3)]),
        Case("sums", [data, np.asarray([[2], [2]]), normal(57, 2, 3)], {"reduction": "add"}),
    ]


AXIS = {"axis": Attribute("int", 0)}
REDUCTION = {"reduction": Attribute("string", "none")}
ELEMENTS = spec(
    "ScatterElements",
    (16, 18),
    evaluate_scatter_elements,
    attributes=AXIS | REDUCTION,
    cases=elements_cases,
)
ND = spec("ScatterND", (16, 18), evaluate_scatter_nd, attributes=REDUCTION, cases=nd_cases)


SPECS: tuple[OpSpec, ...] = (
    ELEMENTS,
    renumbered(ELEMENTS, (11, 13), attributes=AXIS),
    ND,
    renumbered(ND, (11, 13), attributes={}),
    spec(
        "Scatter",
        (9, 11),
        evaluate_plain,
        attributes=AXIS,
        upgrade=upgrade_scatter,
        cases=lambda: [Case("rows", [normal(54, 3, 2), np.asarray([[1, 0]]), normal(55, 1, 2)])],
    ),
)
