"""One pass over the groups of a layer, for transforms that choose divisors group by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.graph import Graph
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.transforms import Folded, LinearInput
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
    groups, left = find_groups(graph, dict.fromkeys(entry.x for entry in inputs))
    weights: dict[str, Tensor] = {}
    divisors: dict[str, Float] = {}
    for group in groups:
        kept = [name for name in group.members if _keeps_codes(graph, name, encodings)]
        if kept:
            left[group.x.name] = "a weight around it keeps its codes"
            continue
        known = gathered(graph, weights, group, inputs, encodings)
        found = _chosen(graph, weights, group, known, encodings, choose)
        if found is None:
            continue
        weights |= fold(graph, weights, group, found, encodings)
        divisors[group.x.name] = channel_divisors(group, found)
    return Folded(weights, divisors, left)


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
