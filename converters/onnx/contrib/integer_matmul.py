"""Integer products with their scales."""

from __future__ import annotations

from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.ir.graph import Graph, Node, Value


def lower(graph: Graph, node: Node) -> None:
    """Replace one of the family."""
    at = Lowering(graph, node)
    if node.op == "DynamicQuantizeMatMul":
        at.finish(dynamic_matmul(at))
    elif node.op == "MatMulIntegerToFloat":
        total = at.add("MatMulInteger", at.need(0), at.need(1), at.given(4), at.given(5))
        at.finish(scaled(at, total, at.add("Mul", at.need(2), at.need(3)), at.given(6)))
    elif node.op == "MulInteger":
        left = shifted(at, at.need(0), at.given(1))
        at.finish(at.add("Mul", left, shifted(at, at.need(2), at.given(3))))
    else:
        at.finish(gemm(at))


def shifted(at: Lowering, codes: Value, zero: Value | None) -> Value:
    """Return codes - zero point as int32."""
    wide = at.cast(codes, "int32")
    return wide if zero is None else at.add("Sub", wide, at.cast(zero, "int32"))


def dynamic_matmul(at: Lowering) -> Value:
    """Return A @ B with A rounded to uint8 on a scale of its own range."""
    codes, scale, zero = at.many("DynamicQuantizeLinear", [at.need(0)], 3)
    total = at.add("MatMulInteger", codes, at.need(1), zero, at.given(3))
    return scaled(at, total, at.add("Mul", scale, at.need(2)), at.given(4))


def scaled(at: Lowering, total: Value, scale: Value, bias: Value | None) -> Value:
    """Return int32 sums as values, plus a bias."""
    wide = at.add("Mul", at.cast(total, scale.dtype or "float32"), scale)
    return wide if bias is None else at.add("Add", wide, bias)


def gemm(at: Lowering) -> Value:
    """Return QGemm: integer sums and an int32 bias, scaled; codes where a scale is given."""
    left, right = at.need(0), at.need(3)
    left = at.transpose(left, 1, 0) if at.option("transA", 0) else left
    right = at.transpose(right, 1, 0) if at.option("transB", 0) else right
    zeros = [at.given(2), at.given(5)]
    total = at.add("MatMulInteger", left, right, *zeros)
    if at.given(6) is not None:
        total = at.add("Add", total, at.need(6))
    scale = at.add("Mul", at.need(1), at.need(4))
    alpha = float(at.option("alpha", 1.0))
    if alpha != 1.0:
        scale = at.add("Mul", scale, at.number(alpha))
    result = at.add("Mul", at.cast(total, "float32"), scale)
    if at.given(7) is None:
        return result
    return at.add("QuantizeLinear", result, at.need(7), at.given(8))
