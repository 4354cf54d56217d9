"""Put divisors into a group's weights so that the model's function stays as it is.

Weights that will be quantized are float32 until then, and one float32 rounding each is all that is
lost. What stays in a 16-bit float type would round again, so divisors bend to it:

- a group of which only one vector (a norm's scale) stays in 16 bits: the scale is rounded, and the
  divisor becomes old scale / new scale, which the float32 weights take up;
- any other group with weights that stay in 16 bits (a router, biases): powers of two, which change
  exponents only. A float16 value may fall below the normal numbers by that, 2^-24 at most is lost.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.graph import Graph
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.transforms.groups import Group
from halfbyte.quant.transforms.scaled import FLOAT32, Change, changed

Float = NDArray[np.float32]
NARROW = frozenset({"float16", "bfloat16"})
# Beyond these, products of float32 and float16 scales come near the ends of their range.
LARGEST = np.float32(2.0**13)


def weight_of(graph: Graph, weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a weight as earlier transforms of the layer left it."""
    found = weights.get(name) or graph.constants[name]
    return found


def stored_encoding(tensor: Tensor, name: str, encodings: Mapping[str, Encoding]) -> Encoding:
    """Return what a weight will be stored in."""
    return encodings.get(name, tensor.encoding)


def storable(
    graph: Graph,
    weights: Mapping[str, Tensor],
    group: Group,
    divisors: Float,
    encodings: Mapping[str, Encoding],
) -> Float:
    """Return divisors near the given ones that what stays float can take; see the module.

    divisors: [size], or [experts, size]; those that are not finite or not positive become 1.
    """
    usable = np.isfinite(divisors) & (divisors > 0)
    safe = np.clip(np.where(usable, divisors, 1.0), 1 / LARGEST, LARGEST).astype(np.float32)
    narrow = [name for name in group.members if _is_narrow(graph, weights, name, encodings)]
    if not narrow:
        return safe
    vector = group.source.vectors[0] if len(group.source.vectors) == 1 else None
    if narrow != [vector] or group.source.rows:
        powers: Float = np.exp2(np.rint(np.log2(safe))).astype(np.float32)
        return powers
    tensor = weight_of(graph, weights, narrow[0])
    target = stored_encoding(tensor, narrow[0], encodings)
    assert isinstance(target, Dense)
    old = tensor.float32().reshape(-1)
    with np.errstate(all="ignore"):
        new = (old / safe).astype(target.dtype).astype(np.float32)
        exact: Float = old / new
    kept: Float = np.where(np.isfinite(exact) & (exact > 0), exact, np.float32(1))
    return kept


def _is_narrow(
    graph: Graph, weights: Mapping[str, Tensor], name: str, encodings: Mapping[str, Encoding]
) -> bool:
    target = stored_encoding(weight_of(graph, weights, name), name, encodings)
    return isinstance(target, Dense) and target.dtype_name in NARROW


def fold(
    graph: Graph,
    weights: Mapping[str, Tensor],
    group: Group,
    divisors: Float,
    encodings: Mapping[str, Encoding] | None = None,
) -> dict[str, Tensor]:
    """Return the group's weights with the source divided and the readers multiplied.

    weights: what earlier transforms replaced, by name. divisors: as `storable` returns them.
    encodings: what each weight will be stored in; those that are missing keep theirs.
    """
    source, stored = group.source, encodings or {}
    found: dict[str, Tensor] = {}

    def change(name: str, what: Change) -> None:
        tensor = found.get(name) or weight_of(graph, weights, name)
        target = stored_encoding(tensor, name, stored)
        is_dense = isinstance(target, Dense) and target.is_float
        found[name] = changed(tensor, what, target if is_dense else FLOAT32)

    for name in source.vectors:
        size = weight_of(graph, weights, name).size
        change(name, Change(divided=_placed(divisors, source.start, size)))
    for name in source.rows:
        size = weight_of(graph, weights, name).rows
        change(name, Change(rows=_placed(divisors.reshape(-1), source.start, size)))
    factors = np.ascontiguousarray(divisors[..., source.channels])
    for name in group.readers:
        change(name, Change(columns=factors))
    return found


def _placed(divisors: Float, start: int, size: int) -> Float:
    """Return `size` divisors, 1 around the given ones."""
    if start == 0 and divisors.size == size:
        return divisors
    whole = np.ones(size, np.float32)
    whole[start : start + divisors.size] = divisors
    return whole


def channel_divisors(group: Group, divisors: Float) -> Float:
    """Return what each channel of the group's value is divided by: [K] or [experts, K]."""
    return np.ascontiguousarray(divisors[..., group.source.channels])
