"""One pass over the groups of a layer, for transforms that choose divisors group by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.graph import Graph, Value
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.transforms import Folded, Found, LinearInput
from halfbyte.quant.transforms.clip import limited
from halfbyte.quant.transforms.fold import channel_divisors, fold, storable
from halfbyte.quant.transforms.groups import Group, find_groups
from halfbyte.quant.transforms.inputs import GroupInput, gathered

Float = NDArray[np.float32]
# What bends divisors [size] to those that can be stored.
Keep = Callable[[Float], Float]
Choose = Callable[[GroupInput, Group, Keep], Float | None]


def fold_layer(
    graph: Graph,
    inputs: Sequence[LinearInput],
    encodings: Mapping[str, Encoding],
    choose: Choose,
) -> Folded:
    """Return the layer's weights with the divisors that `choose` gives for each group."""

    def searched(group: Group, weights: Mapping[str, Tensor]) -> Float | None:
        known = gathered(graph, weights, group, inputs, encodings)
        return _chosen(graph, weights, group, known, encodings, choose)

    return _folded(graph, [entry.x for entry in inputs], encodings, searched)


def replayed(
    graph: Graph, values: Sequence[Value], encodings: Mapping[str, Encoding], found: Found
) -> Folded:
    """Return the layer's weights with what a transform found for it before.

    values: the inputs of the layer's linears, in the order in which it had them.
    """

    def known(group: Group, weights: Mapping[str, Tensor]) -> Float | None:
        return found.factors.get(group.x.name)

    return limited(graph, _folded(graph, values, encodings, known), encodings, found.limits)


def _folded(
    graph: Graph,
    values: Sequence[Value],
    encodings: Mapping[str, Encoding],
    factors_of: Callable[[Group, Mapping[str, Tensor]], Float | None],
) -> Folded:
    """Return the layer's weights; factors_of: of a group and weights that are replaced so far."""
    groups, left = find_groups(graph, dict.fromkeys(values))
    weights: dict[str, Tensor] = {}
    divisors: dict[str, Float] = {}
    factors: dict[str, Float] = {}
    for group in groups:
        kept = [name for name in group.members if _keeps_codes(graph, name, encodings)]
        if kept:
            left[group.x.name] = "a weight around it keeps its codes"
            continue
        found = factors_of(group, weights)
        if found is None:
            continue
        factors[group.x.name] = found
        weights |= fold(graph, weights, group, found, encodings)
        divisors[group.x.name] = channel_divisors(group, found)
    return Folded(weights, divisors, left, Found(factors))


def _keeps_codes(graph: Graph, name: str, encodings: Mapping[str, Encoding]) -> bool:
    return name not in encodings and graph.constants[name].encoding.is_quantized


def _chosen(
    graph: Graph,
    weights: Mapping[str, Tensor],
    group: Group,
    known: Sequence[GroupInput],
    encodings: Mapping[str, Encoding],
    choose: Choose,
) -> Float | None:
    """Return divisors [size] or [experts, size], or None where nothing changes."""

    def keep(divisors: Float) -> Float:
        return storable(graph, weights, group, divisors, encodings)

    size, experts = group.source.size, group.source.experts
    if not experts:
        return choose(known[0], group, keep) if known else None
    whole = np.ones((experts, size), np.float32)
    for entry in known:
        found = choose(entry, group, keep)
        if found is not None and entry.expert is not None:
            whole[entry.expert] = found
    return whole if (whole != 1).any() else None
