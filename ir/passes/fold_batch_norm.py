"""Fold what scales and shifts the channels of a convolution or Linear into its weights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node, Value
from halfbyte.ir.ops.spec import Array, input_at
from halfbyte.ir.passes import dead_code
from halfbyte.ir.passes.matching import is_op, new_constant, only_reader, stored

MAX_WEIGHT_ELEMENTS = 1 << 26


class Affine(NamedTuple):
    """y = x * factor + shift for each channel, in float64."""

    factor: Array
    shift: Array


def channels_of(producer: Node) -> int | None:
    """Return how many channels a convolution or Linear over a stored float32 weight makes."""
    if len(producer.inputs) < 2:
        return None
    weight = producer.inputs[1]
    linear = producer.op == "Linear" and producer.domain == HALFBYTE_DOMAIN
    known = linear or is_op(producer, "Conv", "ConvTranspose")
    if not known or weight is None or weight.constant is None or weight.dtype != "float32":
        return None
    if weight.constant.encoding.is_quantized or weight.constant.size > MAX_WEIGHT_ELEMENTS:
        return None
    bias = input_at(producer, 2)
    if bias is not None and stored(bias) is None:
        return None
    shape = weight.constant.shape
    if producer.op == "ConvTranspose":
        return shape[1] * int(producer.attributes.get("group") or 1)
    return shape[0]


def batch_norm(node: Node, channels: int) -> Affine | None:
    """Return what a BatchNormalization by stored statistics does."""
    if not is_op(node, "BatchNormalization") or node.attributes.get("training_mode"):
        return None
    held = [stored(value) for value in node.inputs[1:5]]
    if len(node.outputs) != 1 or any(v is None or v.shape != (channels,) for v in held):
        return None
    scale, bias, mean, variance = (np.asarray(v, np.float64) for v in held)
    factor = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    return Affine(factor, bias - mean * factor)


def per_channel(node: Node, value: Value, channels: int, rank: int) -> Affine | None:
    """Return what a Mul, Add, Sub or Div with one stored number per channel does to `value`."""
    if not is_op(node, "Mul", "Add", "Sub", "Div") or node.inputs[0] is value is node.inputs[1]:
        return None
    index = 1 if node.inputs[0] is value else 0
    if index == 0 and node.op in ("Sub", "Div"):
        return None
    array = stored(node.inputs[index])
    if array is None or array.ndim > rank or array.size not in (1, channels):
        return None
    # With its missing leading axes only the channel axis may be longer than 1.
    dims = (1,) * (rank - array.ndim) + array.shape
    if array.size != 1 and dims[1] != channels:
        return None
    row = np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))
    one, none = np.ones(channels), np.zeros(channels)
    with np.errstate(all="ignore"):
        found = {
            "Mul": Affine(row, none),
            "Add": Affine(one, row),
            "Sub": Affine(one, -row),
            "Div": Affine(1.0 / row, none),
        }[node.op]
    return found if np.isfinite(found.factor).all() else None


def scaled_weight(producer: Node, weight: Array, factor: Array) -> Array:
    """Return the weight with every output channel multiplied."""
    if producer.op != "ConvTranspose":
        scaled = weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
        return np.asarray(scaled.astype(np.float32))
    groups = int(producer.attributes.get("group") or 1)
    split = weight.reshape(groups, -1, *weight.shape[1:])
    rows = factor.reshape(groups, 1, weight.shape[1], *(1,) * (weight.ndim - 2))
    return np.asarray((split * rows).astype(np.float32)).reshape(weight.shape)


def fold(graph: Graph, producer: Node, node: Node, found: Affine) -> None:
    """Give the producer new weights and let its readers skip the node."""
    weight, bias = stored(producer.inputs[1]), stored(input_at(producer, 2))
    assert weight is not None
    held = producer.inputs[1]
    stem = "weight" if held is None else held.name
    shift = found.shift if bias is None else bias.astype(np.float64) * found.factor + found.shift
    fresh = new_constant(graph, f"{stem}.folded", scaled_weight(producer, weight, found.factor))
    graph.set_input(producer, 1, fresh)
    row = new_constant(graph, f"{stem}.shift", shift.astype(np.float32))
    if len(producer.inputs) < 3:
        producer.inputs.append(None)
    graph.set_input(producer, 2, row)
    graph.replace_all_uses(node.outputs[0], producer.outputs[0])
    graph.remove(node)


def target(graph: Graph, producer: Node) -> tuple[Node, Affine] | None:
    """Return the node behind a producer that can be folded into it."""
    channels, value = channels_of(producer), producer.outputs[0]
    node = only_reader(graph, value) if channels is not None else None
    if node is None or channels is None or value.shape is None:
        return None
    if node.outputs[0] in graph.outputs:
        return None
    rank = len(value.shape)
    # The last axis of a Linear is its channel; only for matrices it is also the second.
    if producer.op == "Linear" and rank != 2:
        return None
    found = batch_norm(node, channels)
    if found is None and producer.op != "Linear":
        found = per_channel(node, value, channels, rank)
    return None if found is None else (node, found)


def apply(graph: Graph) -> bool:
    """Fold as long as something can be folded."""
    changed = False
    for producer in list(graph.nodes):
        found = target(graph, producer)
        while found is not None:
            fold(graph, producer, *found)
            changed = True
            found = target(graph, producer)
    if changed:
        dead_code.apply(graph)
    return changed
