"""Pools over regions of interest: RoiAlign and MaxRoiPool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    common_dtype,
    normal,
    required_input,
)


def infer_regions(node: Node) -> list[ValueType]:
    """Infer: [regions, channels, height, width].

    Raises:
        GraphError: the data has no four axes.
    """
    data, regions = required_input(node, 0).shape, required_input(node, 1).shape
    if data is not None and len(data) != 4:
        raise GraphError(node.label, f"rank {len(data)}, 4 was required; give [n, c, h, w]")
    sides = node.attributes.get("pooled_shape") or [
        node.attributes.get(name, 1) for name in ("output_height", "output_width")
    ]
    count = regions[0] if regions else UNKNOWN
    channels = data[1] if data else UNKNOWN
    return [ValueType(common_dtype(node, [0, 1]), (count, channels, *sides))]


def bin_samples(
    start: float, size: float, bins: int, ratio: int, length: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the two neighbours and their weights for each sample: [bins, samples, 2] each.

    A sample more than one position outside the data weighs nothing.
    """
    count = max(0, ratio if ratio > 0 else int(np.ceil(size / bins)))
    steps = (np.arange(count) + 0.5) / max(count, 1)
    places = start + (np.arange(bins)[:, None] + steps) * (size / bins)
    outside = (places < -1.0) | (places > length)
    inside = np.clip(places, 0, length - 1)
    low = np.floor(inside).astype(np.int64)
    neighbours = np.stack([low, np.minimum(low + 1, length - 1)], axis=-1)
    rest = inside - low
    weights = np.stack([1 - rest, rest], axis=-1)
    return neighbours, np.where(outside[..., None], 0.0, weights)


def mean_matrix(
    neighbours: NDArray[np.int64], weights: NDArray[np.float64], length: int
) -> NDArray[np.float64]:
    """Return [bins, length]: what each position adds to the mean over the samples of a bin."""
    bins, count = neighbours.shape[:2]
    matrix = np.zeros((bins, length))
    rows = np.broadcast_to(np.arange(bins)[:, None, None], neighbours.shape)
    np.add.at(matrix, (rows, neighbours), weights)
    matrix /= max(count, 1)
    return matrix


def corner_maximum(
    plane: NDArray[np.float64],
    ys: tuple[NDArray[np.int64], NDArray[np.float64]],
    xs: tuple[NDArray[np.int64], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Return [c, h, w]: the largest weighted neighbour of all samples of a bin.

    The standard's maximum goes over the four weighted neighbours, not over their sum.
    """
    shape = (plane.shape[0], ys[0].shape[0], xs[0].shape[0])
    if not ys[0].size or not xs[0].size:
        return np.zeros(shape)
    rows = plane[:, ys[0].reshape(-1)] * ys[1].reshape(-1)[:, None]
    values = rows[:, :, xs[0].reshape(-1)] * xs[1].reshape(-1)
    split = (shape[0], shape[1], -1, shape[2], xs[0][0].size)
    return np.asarray(values.reshape(split).max(axis=(2, 4)))


def evaluate_align(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate RoiAlign: samples of every bin, linearly in between, averaged or their maximum."""
    data, regions, batches = (np.asarray(v) for v in inputs)
    half = attributes.get("coordinate_transformation_mode", "output_half_pixel") == "half_pixel"
    sides = (attributes["output_height"], attributes["output_width"])
    ratio = int(attributes["sampling_ratio"])
    boxes = regions.astype(np.float64) * attributes["spatial_scale"] - (0.5 if half else 0.0)
    result = np.zeros((len(boxes), data.shape[1], *sides), np.float64)
    for place, (x1, y1, x2, y2) in enumerate(boxes):
        plane = data[int(batches[place])].astype(np.float64)
        height, width = (y2 - y1, x2 - x1) if half else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        ys = bin_samples(y1, height, sides[0], ratio, data.shape[2])
        xs = bin_samples(x1, width, sides[1], ratio, data.shape[3])
        if attributes["mode"] == "max":
            result[place] = corner_maximum(plane, ys, xs)
        else:
            rows, columns = mean_matrix(*ys, data.shape[2]), mean_matrix(*xs, data.shape[3])
            result[place] = rows @ plane @ columns.T
    return [result.astype(data.dtype)]


def name_transformation(graph: Graph, node: Node) -> bool:
    """Name the coordinates that RoiAlign-10 always had."""
    node.attributes["coordinate_transformation_mode"] = "output_half_pixel"
    node.since_version = 16
    return True


def bin_ranges(low: int, high: int, bins: int, length: int) -> list[tuple[int, int]]:
    """Return the positions of each bin of a region that reaches from `low` to `high`."""
    size = max(high - low + 1, 1) / bins
    starts = np.clip(np.floor(np.arange(bins) * size).astype(np.int64) + low, 0, length)
    stops = np.clip(np.ceil((np.arange(bins) + 1) * size).astype(np.int64) + low, 0, length)
    return [(int(a), int(b)) for a, b in zip(starts, stops, strict=True)]


def evaluate_max(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate MaxRoiPool: borders rounded to positions; an empty bin is zero."""
    data, regions = np.asarray(inputs[0]), np.asarray(inputs[1])
    height, width = attributes["pooled_shape"]
    scaled = regions[:, 1:].astype(np.float64) * attributes["spatial_scale"]
    # Halves are rounded away from zero.
    corners = (np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)).astype(np.int64)
    result = np.zeros((len(regions), data.shape[1], height, width), data.dtype)
    for place, (x1, y1, x2, y2) in enumerate(corners):
        plane = data[int(regions[place, 0])]
        columns = bin_ranges(int(x1), int(x2), width, data.shape[3])
        for row, (top, bottom) in enumerate(bin_ranges(int(y1), int(y2), height, data.shape[2])):
            if top >= bottom:
                continue
            band = plane[:, top:bottom].max(axis=1)
            for column, (left, right) in enumerate(columns):
                if left < right:
                    result[place, :, row, column] = band[:, left:right].max(axis=1)
    return [result]


def align_cases() -> list[Case]:
    """Return averages with adaptive and with given samples, and the maximum."""
    x = normal(270, 2, 3, 8, 9)
    boxes = np.asarray([[0, 0, 4.5, 5], [2, 1.5, 7, 6], [-2, 3, 9, 12]], np.float32)
    inputs = [x, boxes, np.asarray([0, 1, 1])]
    size = {"output_height": 2, "output_width": 3}
    return [
        Case("adaptive", inputs, size),
        Case("given", inputs, size | {"sampling_ratio": 2, "spatial_scale": 0.5}),
        Case("max", inputs, size | {"mode": "max"}),
    ]


def max_cases() -> list[Case]:
    """Return regions that overlap the border."""
    boxes = np.asarray([[0, 0, 0, 4, 5], [1, 3, 2, 9, 7]], np.float32)
    attributes = {"pooled_shape": [2, 2], "spatial_scale": 0.5}
    return [Case("border", [normal(271, 2, 3, 4, 5), boxes], attributes)]


ALIGN_ATTRIBUTES = {
    "mode": Attribute("string", "avg"),
    "output_height": Attribute("int", 1),
    "output_width": Attribute("int", 1),
    "sampling_ratio": Attribute("int", 0),
    "spatial_scale": Attribute("float", 1.0),
}
SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "RoiAlign",
        (10,),
        ("X", "rois", "batch_indices"),
        ("Y",),
        infer=infer_regions,
        evaluate=evaluate_align,
        attributes=ALIGN_ATTRIBUTES,
        upgrade=name_transformation,
    ),
    OpSpec(
        "RoiAlign",
        (16, 22),
        ("X", "rois", "batch_indices"),
        ("Y",),
        infer=infer_regions,
        evaluate=evaluate_align,
        attributes=ALIGN_ATTRIBUTES
        | {"coordinate_transformation_mode": Attribute("string", "half_pixel")},
        cases=align_cases,
    ),
    OpSpec(
        "MaxRoiPool",
        (1, 22),
        ("X", "rois"),
        ("Y",),
        infer=infer_regions,
        evaluate=evaluate_max,
        attributes={
            "pooled_shape": Attribute("ints", required=True),
            "spatial_scale": Attribute("float", 1.0),
        },
        cases=max_cases,
    ),
)
