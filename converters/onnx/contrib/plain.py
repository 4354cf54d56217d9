"""Operators that the standard has too, under the same or another name."""

from __future__ import annotations

from halfbyte.converters.onnx.contrib.fused import picked
from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.ir.graph import Graph, Node, Value

SAMPLING = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}


def lower(graph: Graph, node: Node) -> None:
    """Replace one of the family.

    Raises:
        UnsupportedError: a rank is needed and unknown, or a mode is unknown.
    """
    at = Lowering(graph, node)
    data = at.need(0)
    if node.op == "Unique":
        values, _, inverse, counts = at.many("Unique", [data], 4, sorted=0)
        at.finish(values, inverse, counts)
        return
    at.finish(
        {
            "Pad": lambda: at.add("Pad", data, at.need(1), at.given(2), mode=at.option("mode")),
            "Trilu": lambda: at.add("Trilu", data, at.given(1), upper=at.option("upper")),
            "ExpandDims": lambda: at.add("Unsqueeze", data, axis_of(at)),
            "Range": lambda: at.add("Range", data, at.need(1), at.given(2) or one(at, data)),
            "GatherND": lambda: at.add("GatherND", data, at.need(1)),
            "GridSample": lambda: grid_sample(at),
            "CDist": lambda: distances(at),
            "SparseToDenseMatMul": lambda: sparse_matmul(at),
            "ReduceSumInteger": lambda: at.add(
                "ReduceSum",
                at.cast(data, "int32"),
                at.ints(*at.required("axes")),
                keepdims=int(at.required("keepdims")),
            ),
        }[node.op]()
    )


def one(at: Lowering, like: Value) -> Value:
    """Return 1 in the type of another value."""
    return at.like(at.scalar(1), like)


def axis_of(at: Lowering) -> Value:
    """Return the axis input as a vector."""
    return at.cast(at.reshape(at.need(1), 1), "int64")


def grid_sample(at: Lowering) -> Value:
    """Return GridSample, whose modes have other names in the standard."""
    mode = str(at.option("mode", "bilinear"))
    if mode not in SAMPLING:
        raise at.refuse(f"mode {mode!r}", sorted(SAMPLING))
    rest = picked(at, ("align_corners", "padding_mode"))
    return at.add("GridSample", at.need(0), at.need(1), mode=SAMPLING[mode], **rest)


def distances(at: Lowering) -> Value:
    """Return [m, n]: the distance of each row of A from each of B."""
    metric = str(at.option("metric", "sqeuclidean"))
    if metric not in ("sqeuclidean", "euclidean"):
        raise at.refuse(f"metric {metric!r}", ["sqeuclidean", "euclidean"])
    rows = at.add("Unsqueeze", at.need(0), at.ints(1))
    difference = at.add("Sub", rows, at.add("Unsqueeze", at.need(1), at.ints(0)))
    total = at.add("ReduceSum", at.add("Mul", difference, difference), at.ints(-1), keepdims=0)
    return total if metric == "sqeuclidean" else at.add("Sqrt", total)


def sparse_matmul(at: Lowering) -> Value:
    """Return alpha * A' @ B'; sparse constants come dense."""
    sides = [
        at.transpose(at.need(i), 1, 0) if at.option(name, 0) else at.need(i)
        for i, name in enumerate(("transA", "transB"))
    ]
    result = at.add("MatMul", *sides)
    alpha = float(at.option("alpha", 1.0))
    return result if alpha == 1.0 else at.add("Mul", result, at.number(alpha))
