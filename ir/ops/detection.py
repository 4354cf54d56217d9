"""NonMaxSuppression: which boxes stay of those that overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    generator,
    required_input,
)


def infer_suppression(node: Node) -> list[ValueType]:
    """Infer: rows of batch, class and box, as many as the data say.

    Raises:
        GraphError: boxes or scores do not have three axes.
    """
    for index in (0, 1):
        shape = required_input(node, index).shape
        if shape is not None and len(shape) != 3:
            raise GraphError(node.label, f"input {index} has rank {len(shape)}, 3 was required")
    return [ValueType("int64", (UNKNOWN, 3))]


def corners(boxes: NDArray[Any], centred: bool) -> NDArray[np.float64]:
    """Return boxes as [..., low and high of the first axis, low and high of the second]."""
    wide = boxes.astype(np.float64)
    if centred:
        half = wide[..., 2:] / 2
        low, high = wide[..., :2] - half, wide[..., :2] + half
    else:
        low = np.minimum(wide[..., :2], wide[..., 2:])
        high = np.maximum(wide[..., :2], wide[..., 2:])
    return np.concatenate([low, high], axis=-1)


def overlap(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return intersection over union of a box with others; 0 where one has no area."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - shared
    ratio: NDArray[np.float64] = np.zeros_like(shared)
    np.divide(shared, union, out=ratio, where=(shared > 0) & (union > 0))
    return ratio


def kept_boxes(
    boxes: NDArray[np.float64], order: NDArray[np.int64], most: int, limit: float
) -> list[int]:
    """Return the boxes that stay, best first: each drops those that overlap it too much."""
    kept: list[int] = []
    while order.size and len(kept) < most:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        order = order[overlap(boxes[best], boxes[order]) <= limit]
    return kept


def scalar(inputs: Sequence[Any], index: int) -> Any:
    """Return an optional input of one value."""
    value = inputs[index] if index < len(inputs) else None
    return (
        None if value is None or np.asarray(value).size == 0 else np.asarray(value).reshape(-1)[0]
    )


def evaluate_suppression(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate NonMaxSuppression; boxes of equal score go by their index."""
    boxes, scores = np.asarray(inputs[0]), np.asarray(inputs[1])
    most, limit, threshold = (scalar(inputs, i) for i in (2, 3, 4))
    placed = corners(boxes, bool(attributes["center_point_box"]))
    rows: list[tuple[int, int, int]] = []
    for batch, group in np.ndindex(*scores.shape[:2]):
        values = scores[batch, group]
        order = np.argsort(-values, kind="stable")
        if threshold is not None:
            order = order[values[order] > threshold]
        kept = kept_boxes(placed[batch], order, int(most or 0), float(limit or 0.0))
        rows += [(batch, group, box) for box in kept]
    return [np.asarray(rows, np.int64).reshape(-1, 3)]


def suppression_cases() -> list[Case]:
    """Return two classes of boxes as corners, and as centres."""
    corner = generator(280).random((1, 12, 4), np.float32)
    scores = generator(281).random((1, 2, 12), np.float32)
    limits = [np.asarray([4]), np.asarray([0.3], np.float32), np.asarray([0.2], np.float32)]
    return [
        Case("corners", [corner, scores, *limits]),
        Case("centres", [corner, scores, *limits], {"center_point_box": 1}),
    ]


SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "NonMaxSuppression",
        (10, 11),
        (
            *("boxes", "scores", "max_output_boxes_per_class?"),
            *("iou_threshold?", "score_threshold?"),
        ),
        ("selected_indices",),
        infer=infer_suppression,
        evaluate=evaluate_suppression,
        attributes={"center_point_box": Attribute("int", 0)},
        cases=suppression_cases,
    ),
)
