"""Products and convolutions of onnxruntime with what it fuses into them, channels last too."""

from __future__ import annotations

from typing import Any

from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.ir.graph import Graph, Node, Value

CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
POOL = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")


def lower(graph: Graph, node: Node) -> None:
    """Replace one of the family.

    Raises:
        UnsupportedError: an activation is not known, or a rank is needed and unknown.
    """
    at = Lowering(graph, node)
    if node.op in ("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation"):
        at.finish(activated(at, matmul(at), "activation"))
    elif node.op == "FusedGemm":
        at.finish(gemm(at))
    elif node.op == "NhwcMaxPool":
        pooled = at.add("MaxPool", channels_first(at, at.need(0)), **picked(at, POOL))
        at.finish(channels_last(at, pooled))
    else:
        at.finish(convolution(at))


def picked(at: Lowering, names: tuple[str, ...]) -> dict[str, Any]:
    """Return those attributes of the node that are given."""
    return {name: at.node.attributes[name] for name in names if name in at.node.attributes}


def matmul(at: Lowering) -> Value:
    """Return alpha * A' @ B', the last axes exchanged or the batch axis moved if asked."""
    left = operand(at, 0, bool(at.option("transA", 0)), bool(at.option("transBatchA", 0)))
    right = operand(at, 1, bool(at.option("transB", 0)), bool(at.option("transBatchB", 0)))
    result = at.add("MatMul", left, right)
    alpha = float(at.option("alpha", 1.0))
    return result if alpha == 1.0 else at.add("Mul", result, at.number(alpha))


def operand(at: Lowering, index: int, swap: bool, batch: bool) -> Value:
    """Return an input with axes moved: batch takes axis 0 to the place before the last."""
    value = at.need(index)
    if not swap and not batch:
        return value
    rank = at.rank(index)
    order = list(range(rank))
    if rank > 1 and batch:
        order = [*order[1:-1], 0, rank - 1]
    if rank > 1 and swap:
        order[-2:] = [order[-1], order[-2]]
    return value if order == list(range(rank)) else at.transpose(value, *order)


def gemm(at: Lowering) -> Value:
    """Return Gemm, then the activation."""
    names = ("alpha", "beta", "transA", "transB")
    result = at.add("Gemm", at.need(0), at.need(1), at.given(2), **picked(at, names))
    return activated(at, result, "activation")


def convolution(at: Lowering) -> Value:
    """Return Conv, plus Z where given, then the activation."""
    last = at.node.op.startswith("Nhwc")
    data, weight, rest = at.need(0), at.need(1), at.given(3)
    if last:
        data, weight = channels_first(at, data), channels_first(at, weight)
        rest = None if rest is None else channels_first(at, rest)
    result = at.add("Conv", data, weight, at.given(2), **picked(at, CONV))
    if rest is not None:
        result = at.add("Add", result, rest)
    result = activated(at, result, "activation")
    return channels_last(at, result) if last else result


def channels_first(at: Lowering, value: Value) -> Value:
    """Move the last axis to place 1."""
    rank = at.rank(0)
    return at.transpose(value, 0, rank - 1, *range(1, rank - 1))


def channels_last(at: Lowering, value: Value) -> Value:
    """Move axis 1 to the end."""
    rank = at.rank(0)
    return at.transpose(value, 0, *range(2, rank), 1)


def activated(at: Lowering, value: Value, name: str) -> Value:
    """Return the value after the activation that the attribute names.

    Raises:
        UnsupportedError: no such activation.
    """
    kind = at.option(name, "")
    if not kind:
        return value
    alpha, beta, gamma = parameters(at, name)
    if kind in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "HardSwish"):
        return at.add(kind, value)
    if kind == "Clip":
        return at.add("Clip", value, at.number(alpha), at.number(beta))
    if kind in ("LeakyRelu", "Elu", "ThresholdedRelu"):
        return at.add(kind, value, alpha=alpha)
    if kind == "HardSigmoid":
        return at.add(kind, value, alpha=alpha, beta=beta)
    if kind == "Selu":
        return at.add(kind, value, alpha=alpha, gamma=gamma)
    known = ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip"]
    raise at.refuse(f"activation {kind!r}", known)


def parameters(at: Lowering, name: str) -> tuple[Any, Any, Any]:
    """Return alpha, beta and gamma of the activation, None where not given."""
    listed = at.option(f"{name}_params")
    if listed is not None:
        padded = [*listed, None, None, None]
        return padded[0], padded[1], padded[2]
    alpha, beta, gamma = (at.option(f"{name}_{part}") for part in ("alpha", "beta", "gamma"))
    return alpha, beta, gamma
