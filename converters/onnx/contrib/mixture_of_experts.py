"""MoE and QMoE: each token goes through the experts that its router scores choose.

Every expert takes its own tokens out, runs its layers on them and adds the result where they came
from. onnxruntime's CPU kernel of QMoE always lets the chosen scores sum to 1; MoE where asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.converters.onnx.contrib.stored_blocks import affine_from_blocks
from halfbyte.ir.encodings.affine import unpack_bits
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node, Value
from halfbyte.ir.tensor import ComputedPart, Tensor, tensor_from_array

ACTIVATIONS = ("relu", "gelu", "silu", "identity", "swiglu")
INTERLEAVED, HALVES = 1, 2
ROUTER_WEIGHTS = 14


@dataclass(frozen=True)
class _Layer:
    """Input indexes of one of the layers of an expert; number is in the attributes' names."""

    number: int
    weight: int
    bias: int
    scales: int | None = None
    zeros: int | None = None


PLAIN = (_Layer(1, 2, 3), _Layer(2, 4, 5), _Layer(3, 6, 7))
QUANTIZED = (_Layer(1, 2, 4, 3, 11), _Layer(2, 5, 7, 6, 12), _Layer(3, 8, 10, 9, 13))


def lower(graph: Graph, node: Node) -> None:
    """Replace the node.

    Raises:
        UnsupportedError: sparse mixing, another quantization than integers, a device's layout.
    """
    at = Lowering(graph, node)
    quantized = node.op == "QMoE"
    layers = QUANTIZED if quantized else PLAIN
    if at.option("use_sparse_mixer", 0):
        raise at.refuse("use_sparse_mixer", ["0"])
    if quantized and str(at.option("quant_type", "int")) != "int":
        raise at.refuse(f"quant_type {at.option('quant_type')!r}", ["int"])
    if quantized and int(at.option("weights_prepacked", 0)) > 0:
        raise at.refuse("weights_prepacked 1 (a device's own layout)", ["0"])
    if str(at.option("activation_type", "relu")) not in ACTIVATIONS:
        raise at.refuse(f"activation_type {at.option('activation_type')!r}", list(ACTIVATIONS))
    if len(at.stored(layers[0].weight).shape) != 3:
        raise at.refuse("a weight that is not [experts, out, in]")
    width = columns_of(at, layers[0])
    tokens = at.reshape(at.need(0), -1, width)
    shares = routing(at, quantized)
    shape = at.add("Shape", tokens)
    total = at.add("Expand", at.like(at.number(0.0), tokens), shape)
    for expert in range(at.stored(layers[0].weight).shape[0]):
        share = at.slice(shares, 1, expert, expert + 1)
        flat = at.add("Squeeze", share, at.ints(1))
        chosen = at.add("Squeeze", at.add("NonZero", flat), at.ints(0))
        result = run(at, layers, expert, at.add("Gather", tokens, chosen, axis=0))
        result = at.add("Mul", result, at.add("Gather", share, chosen, axis=0))
        places = at.add("Unsqueeze", chosen, at.ints(1))
        total = at.add("ScatterND", total, places, result, reduction="add")
    at.finish(at.add("Reshape", total, at.add("Shape", at.need(0))))


def routing(at: Lowering, always_normal: bool) -> Value:
    """Return [tokens, experts]: the share of each expert, 0 where it is not chosen."""
    scores, k = at.need(1), int(at.option("k", 1))
    best, chosen = at.many("TopK", [scores, at.ints(k)], 2, axis=-1)
    separate = at.given(ROUTER_WEIGHTS) if always_normal else None
    normal = bool(at.option("normalize_routing_weights", 0))
    if separate is not None:
        shares = at.add("GatherElements", separate, chosen, axis=1)
        if normal:
            shares = at.add("Div", shares, at.add("ReduceSum", shares, at.ints(1)))
    elif normal or always_normal:
        shares = at.add("Softmax", best, axis=-1)
    else:
        shares = at.add("GatherElements", at.add("Softmax", scores, axis=-1), chosen, axis=1)
    none = at.add("Expand", at.like(at.number(0.0), scores), at.add("Shape", scores))
    return at.add("ScatterElements", none, chosen, at.like(shares, scores), axis=1)


def run(at: Lowering, layers: tuple[_Layer, ...], expert: int, tokens: Value) -> Value:
    """Return what one expert makes of its tokens."""
    first, second, third = layers
    inner = linear(at, first, expert, tokens)
    name = str(at.option("activation_type", "relu"))
    if name == "swiglu":
        inner = gated(at, first, third, expert, tokens, inner)
    else:
        inner = activated(at, name, inner)
        if at.given(third.weight) is not None:
            inner = at.add("Mul", inner, linear(at, third, expert, tokens))
    return linear(at, second, expert, inner)


def activated(at: Lowering, name: str, value: Value) -> Value:
    """Return the activation of a value."""
    if name == "identity":
        return value
    if name == "gelu":
        return at.add("Gelu", value, approximate="tanh")
    return at.add({"relu": "Relu", "silu": "Swish"}[name], value)


def gated(
    at: Lowering, first: _Layer, third: _Layer, expert: int, tokens: Value, inner: Value
) -> Value:
    """Return gate * sigmoid(alpha * gate) * (other + beta), both clamped where a limit is given."""
    fusion = int(at.option("swiglu_fusion", 0))
    if fusion == INTERLEAVED:
        pairs = at.reshape(inner, -1, rows_of(at, first) // 2, 2)
        split = at.many("Split", [pairs], 2, axis=2, num_outputs=2)
        gate, other = (at.add("Squeeze", part, at.ints(2)) for part in split)
    elif fusion == HALVES:
        gate, other = at.many("Split", [inner], 2, axis=1, num_outputs=2)
    else:
        gate, other = inner, linear(at, third, expert, tokens)
    limit = at.option("swiglu_limit")
    if limit is not None and np.isfinite(limit):
        low, high = (at.like(at.number(v), gate) for v in (-float(limit), float(limit)))
        gate, other = at.add("Min", gate, high), at.add("Clip", other, low, high)
    opened = at.add("Swish", gate, alpha=float(at.option("activation_alpha", 1.0)))
    beta = float(at.option("activation_beta", 0.0))
    return at.add("Mul", opened, at.add("Add", other, at.number(beta)) if beta else other)


def bits_of(at: Lowering, layer: _Layer) -> int:
    """Return the width of a layer's codes."""
    whole = int(at.option("expert_weight_bits", 4))
    return int(at.option(f"fc{layer.number}_expert_weight_bits", 0)) or whole


def rows_of(at: Lowering, layer: _Layer) -> int:
    """Return how many outputs a layer has."""
    return at.stored(layer.weight).shape[1]


def columns_of(at: Lowering, layer: _Layer) -> int:
    """Return how many inputs a layer has."""
    last = at.stored(layer.weight).shape[2]
    return last if layer.scales is None else last * 8 // bits_of(at, layer)


def linear(at: Lowering, layer: _Layer, expert: int, data: Value) -> Value:
    """Return one layer of one expert; its weight is a range of rows of the stored one."""
    tensor = expert_weight(at, layer, expert)
    bias = at.given(layer.bias)
    row = None
    if bias is not None:
        row = at.array(np.ascontiguousarray(at.stored(layer.bias).numpy()[expert]), "bias")
    return at.add("Linear", data, at.weight(tensor), row, domain=HALFBYTE_DOMAIN)


def expert_weight(at: Lowering, layer: _Layer, expert: int) -> Tensor:
    """Return the weight [out, in] of one expert."""
    stored = at.stored(layer.weight)
    if len(stored.shape) != 3 or 0 in stored.shape:
        raise at.refuse(f"a weight of shape {list(stored.shape)}", ["[experts, out, in]"])
    count, rows, columns = stored.shape[0], rows_of(at, layer), columns_of(at, layer)
    name, first = f"{stored.name}.{expert}", expert * rows
    if layer.scales is None or layer.zeros is None:
        dtype = str(getattr(stored.encoding, "dtype_name", "float32"))
        kind = Dense(dtype)
        part = ComputedPart(
            kind.dtype,
            (rows, columns),
            lambda start, stop: stored.decode(first + start, first + stop),
        )
        return Tensor(name, (rows, columns), kind, {"data": part})
    bits, block = bits_of(at, layer), int(at.option("block_size", 0))
    zeros = None if at.given(layer.zeros) is None else at.stored(layer.zeros)
    if zeros is not None and not block:
        zeros = zeros_by_row(zeros, count, rows, bits)
    scales, place = at.stored(layer.scales), (first, count * rows)
    return affine_from_blocks(
        name, (rows, columns), bits, block, stored, scales, zeros, place=place
    )


def zeros_by_row(zeros: Tensor, count: int, rows: int, bits: int) -> Tensor:
    """Return zero points that are packed along the rows of an expert as one byte for each row."""
    packed = np.asarray(zeros.numpy()).reshape(count, -1)
    return tensor_from_array(zeros.name, unpack_bits(packed, bits, rows).reshape(-1, 1))
