"""FlexAttention of the preview domain: attention with graphs that change scores and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import dtype_name, numpy_dtype
from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.ops.attention import grouped_product, probabilities
from halfbyte.ir.ops.control_flow import run_of
from halfbyte.ir.ops.convolution import work_dtype
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


def infer_flex(node: Node) -> list[ValueType]:
    """Infer: the query with the size of a value head.

    Raises:
        GraphError: an input has no four axes, or the heads do not fit.
    """
    shapes = [required_input(node, i).shape for i in range(3)]
    for index, shape in enumerate(shapes):
        if shape is not None and len(shape) != 4:
            raise GraphError(node.label, f"input {index} has rank {len(shape)}, 4 was required")
    query, key, value = shapes
    dtype = common_dtype(node, [0, 1, 2])
    if query is None or key is None or value is None:
        return [ValueType(dtype, None)]
    heads, groups = query[1], key[1]
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise GraphError(node.label, f"{heads} query heads are no multiple of {groups}")
    return [ValueType(dtype, (*query[:3], value[3]))]


def changed(values: Array, graph: Graph | None, captured: Sequence[Any], context: Context) -> Array:
    """Return values as a modifier graph returns them, themselves without one."""
    if graph is None:
        return values
    return np.asarray(run_of(context)(graph, [values, *captured])[0])


def evaluate_flex(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate FlexAttention; the graphs see scores and weights in the softmax precision."""
    query, key, value = (np.asarray(v) for v in inputs[:3])
    captured = inputs[3:]
    precision = attributes["softmax_precision"]
    default = "float64" if query.dtype == np.float64 else "float32"
    dtype = numpy_dtype(default if precision is None else dtype_name(precision))
    work = work_dtype(str(query.dtype), query.size * key.shape[2])
    scale = attributes["scale"]
    factor = np.asarray(1 / np.sqrt(query.shape[-1]) if scale is None else scale, work)
    scores = grouped_product(query.astype(work) * factor, key.astype(work).swapaxes(-1, -2))
    scores = changed(scores.astype(dtype), attributes["score_mod"], captured, context)
    weights = probabilities(scores, scores, dtype)
    weights = changed(weights, attributes["prob_mod"], captured, context)
    return [grouped_product(weights.astype(work), value.astype(work)).astype(value.dtype)]


def flex_cases() -> list[Case]:
    """Return shared heads, and scores and weights that graphs change."""
    q, k, v = normal(400, 1, 4, 3, 8), normal(401, 1, 2, 5, 8), normal(402, 1, 2, 5, 6)
    graphs = []
    for op in ("Tanh", "Abs"):
        graph = Graph(op)
        x = graph.add_input("x", "float32", (1, 4, 3, 5))
        graph.outputs.append(
            graph.add(op, [x], dtype="float32", shape=(1, 4, 3, 5), since_version=13)
        )
        graphs.append(graph)
    modifiers = {"score_mod": graphs[0], "prob_mod": graphs[1]}
    return [Case("heads", [q, k, v]), Case("modifiers", [q, k, v], modifiers | {"scale": 0.5})]


SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "FlexAttention",
        (1,),
        ("Q", "K", "V", "captures*"),
        ("Y",),
        infer=infer_flex,
        evaluate=evaluate_flex,
        attributes={
            "captures": Attribute("int", 0),
            "prob_mod": Attribute("graph"),
            "scale": Attribute("float"),
            "score_mod": Attribute("graph"),
            "softmax_precision": Attribute("dtype"),
        },
        domain="ai.onnx.preview",
        cases=flex_cases,
    ),
)
