"""Normalizations of onnxruntime, with the sums that it fuses into them."""

from __future__ import annotations

from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.ir.graph import Graph, Node, Value

SKIP_EPSILON = 1e-12
OUTPUT, MEAN, INVERSE, SUM = range(4)


def lower(graph: Graph, node: Node) -> None:
    """Replace one of the family.

    Raises:
        UnsupportedError: an output is read that cannot be had.
    """
    at = Lowering(graph, node)
    {
        "SkipLayerNormalization": skip_layer_norm,
        "SkipSimplifiedLayerNormalization": skip_rms_norm,
        "SimplifiedLayerNormalization": rms_norm,
        "LayerNormalization": layer_norm,
        "EmbedLayerNormalization": embed_layer_norm,
        "GroupNorm": group_norm,
        "SkipGroupNorm": skip_group_norm,
    }[node.op](at)


def summed(at: Lowering, bias: Value | None) -> Value:
    """Return input + skip + bias; a skip of one batch is used for all."""
    total = at.add("Add", at.need(0), at.need(1))
    return total if bias is None else at.add("Add", total, bias)


def skip_layer_norm(at: Lowering) -> None:
    """LayerNormalization of a sum."""
    total = summed(at, at.given(4))
    epsilon = float(at.option("epsilon", SKIP_EPSILON))
    count = 3 if at.used(MEAN) or at.used(INVERSE) else 1
    found = at.many("LayerNormalization", [total, at.need(2), at.given(3)], count, epsilon=epsilon)
    at.finish(found[0], *(found[1:] or (None, None)), total)


def skip_rms_norm(at: Lowering) -> None:
    """RMSNormalization of a sum."""
    total = summed(at, at.given(3))
    epsilon = float(at.option("epsilon", SKIP_EPSILON))
    inverse = inverse_rms(at, total, -1, epsilon) if at.used(INVERSE) else None
    at.finish(at.add("RMSNormalization", total, at.need(2), epsilon=epsilon), None, inverse, total)


def rms_norm(at: Lowering) -> None:
    """RMSNormalization under its first name."""
    axis, epsilon = int(at.option("axis", -1)), float(at.option("epsilon", 1e-5))
    inverse = inverse_rms(at, at.need(0), axis, epsilon) if at.used(1) else None
    data, scale = at.need(0), at.need(1)
    result = at.add("RMSNormalization", data, at.like(scale, data), axis=axis, epsilon=epsilon)
    at.finish(at.like(result, scale), inverse)


def inverse_rms(at: Lowering, data: Value, axis: int, epsilon: float) -> Value:
    """Return 1 / sqrt(mean(data^2) + epsilon) in float32."""
    wide = at.cast(data, "float32")
    if axis != -1:
        raise at.refuse(f"output 1 with axis {axis}", ["-1"])
    mean = at.add("ReduceMean", at.add("Mul", wide, wide), at.ints(-1), keepdims=1)
    return at.add("Reciprocal", at.add("Sqrt", at.add("Add", mean, at.number(epsilon))))


def layer_norm(at: Lowering) -> None:
    """LayerNormalization as it was before the standard had it."""
    axis, epsilon = int(at.option("axis", -1)), float(at.option("epsilon", 1e-5))
    inputs = [at.need(0), at.need(1), at.given(2)]
    count = max(i + 1 for i in range(3) if i == 0 or at.used(i))
    at.finish(*at.many("LayerNormalization", inputs, count, axis=axis, epsilon=epsilon))


def embed_layer_norm(at: Lowering) -> None:
    """Sum of word, position and segment rows, normalized; and how long each row's mask is."""
    ids, segments = at.need(0), at.given(1)
    total = at.add("Gather", at.need(2), ids, axis=0)
    total = at.add("Add", total, positions(at, ids))
    if segments is not None and at.given(4) is not None:
        total = at.add("Add", total, at.add("Gather", at.need(4), segments, axis=0))
    epsilon = float(at.option("epsilon", SKIP_EPSILON))
    result = at.add("LayerNormalization", total, at.need(5), at.need(6), epsilon=epsilon)
    at.finish(result, mask_index(at, ids) if at.used(1) else None, total)


def positions(at: Lowering, ids: Value) -> Value:
    """Return the position rows: of the given ids, or of 0, 1, 2, ..."""
    given, table = at.given(8), at.need(3)
    if given is not None:
        return at.add("Gather", table, given, axis=0)
    rows = at.slice(table, 0, 0, at.dim(ids, 1))
    return at.add("Unsqueeze", rows, at.ints(0))


def mask_index(at: Lowering, ids: Value) -> Value:
    """Return the number of ones in each row of the mask, zeros without a mask."""
    mask = at.given(7)
    if mask is None:
        zeros = at.add("Mul", ids, at.like(at.scalar(0), ids))
        return at.cast(at.add("ReduceMax", zeros, at.ints(1), keepdims=0), "int32")
    return at.cast(at.add("ReduceSum", mask, at.ints(1), keepdims=0), "int32")


def group_norm(at: Lowering) -> None:
    """GroupNormalization, channels last by default, with Swish after it if asked."""
    at.finish(_group_norm(at, at.need(0)))


def skip_group_norm(at: Lowering) -> None:
    """GroupNorm of a sum; a skip or a bias [batch, channels] is the same at every place."""
    total = at.need(0)
    for value in (at.need(3), at.given(4)):
        if value is None:
            continue
        if value.shape is not None and len(value.shape) == 2:
            value = at.add("Unsqueeze", value, at.ints(1, 2) if _last(at) else at.ints(2, 3))
        total = at.add("Add", total, value)
    at.finish(_group_norm(at, total), total)


def _last(at: Lowering) -> bool:
    return bool(at.option("channels_last", 1))


def _group_norm(at: Lowering, data: Value) -> Value:
    first = at.transpose(data, 0, 3, 1, 2) if _last(at) else data
    scale, bias = (at.like(at.need(i), data) for i in (1, 2))
    groups, epsilon = int(at.required("groups")), float(at.option("epsilon", 1e-5))
    result = at.add("GroupNormalization", first, scale, bias, num_groups=groups, epsilon=epsilon)
    if at.required("activation"):
        result = at.add("Swish", result)
    return at.transpose(result, 0, 2, 3, 1) if _last(at) else result
