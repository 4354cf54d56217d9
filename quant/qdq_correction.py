"""What rounding moves on average goes back into the biases.

Layers are taken in order. Each gets inputs from the layers before it as these are after their own
correction, so the means are those of the final graph. Source: the bias correction of "Data-Free
Quantization" (Nagel et al. 2019), by samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.ir.graph import Graph
from halfbyte.quant.calibration.stepwise import Stream
from halfbyte.quant.qdq_rewrite import Layer, Rewritten

Floats = NDArray[np.float64]


def channel_means(arrays: Sequence[NDArray[Any]], axis: int) -> Floats:
    """Return the mean of each channel over all samples; axis: of the channels, from the end."""
    count = 0
    sums = np.zeros(arrays[0].shape[axis])
    for array in arrays:
        rows = np.moveaxis(array, axis, 0).reshape(len(sums), -1)
        sums += rows.sum(1, dtype=np.float64)
        count += rows.shape[1]
    return np.asarray(sums / max(count, 1))


def corrected(
    before: Graph,
    after: Rewritten,
    layers: Sequence[Layer],
    samples: Sequence[Mapping[str, NDArray[Any]]],
    threads: int | None = None,
) -> list[Layer]:
    """Return the layers with other biases.

    before: the float graph; after: what `layers` made of it.
    """
    values = {value.name: value for value in before.values()}
    names = [layer.node.outputs[0].name for layer in layers]
    stops = [after.results[name] for name in names]
    exact = Stream(before, [values[name] for name in names], samples, threads)
    rounded = Stream(after.graph, stops, samples, threads)
    result = []
    for layer, stop, wanted, found in zip(layers, stops, exact, rounded, strict=True):
        axis = 1 - wanted[0].ndim if layer.node.op == "Conv" else -1
        shift = channel_means(wanted, axis) - channel_means(found, axis)
        bias = shift if layer.bias is None else layer.bias + shift
        result.append(replace(layer, bias=bias))
        row = shift.astype(np.float32).reshape(-1, *(1,) * (-axis - 1))
        rounded.put(stop, [array + row for array in found])
    return result
