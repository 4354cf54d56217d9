"""NonMaxSuppression: which boxes stay, in which order."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Value
from halfbyte.ir.ops.spec import generator
from support.op_evaluation import evaluated_one, inferred

BOXES = np.float32([[[0, 0, 2, 2], [0, 0, 2, 1], [5, 5, 6, 6], [2, 2, 0, 0.5]]])
SCORES = np.float32([[[0.5, 0.9, 0.2, 0.9]]])
MOST = np.asarray([10])


def kept(*inputs, **attributes) -> list[int]:
    """Return the boxes that stay of the first class."""
    return [row[2] for row in evaluated_one("NonMaxSuppression", *inputs, **attributes).tolist()]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        # box 1 shares half of box 0 and a quarter of box 3; box 3 shares three quarters of box 0
        ((0.5,), [1, 3, 2]),
        ((0.8,), [1, 3, 0, 2]),
        ((0.1,), [1, 2]),
        ((0.5, 0.2), [1, 3]),
        ((0.8, 0.5), [1, 3]),
    ],
)
def test_boxes_that_overlap_too_much_go(limits: tuple, expected: list[int]) -> None:
    assert kept(BOXES, SCORES, MOST, *(np.float32([v]) for v in limits)) == expected


def test_limits_are_exclusive() -> None:
    # intersection 2, union 4
    assert kept(BOXES[:, :2], SCORES[..., :2], MOST, np.float32([0.5])) == [1, 0]
    assert kept(BOXES[:, :2], SCORES[..., :2], MOST, np.float32([0.49])) == [1]


def test_without_a_maximum_nothing_is_selected() -> None:
    result = evaluated_one("NonMaxSuppression", BOXES, SCORES)
    assert result.shape == (0, 3)
    assert result.dtype == np.int64
    assert kept(BOXES, SCORES, np.asarray(1), np.float32(0.8)) == [1]


def test_batches_and_classes_come_in_order() -> None:
    boxes = np.concatenate([BOXES, BOXES + 1])
    scores = np.concatenate([SCORES, SCORES[..., ::-1]])
    scores = np.concatenate([scores, scores[..., ::-1]], axis=1)
    rows = evaluated_one("NonMaxSuppression", boxes, scores, np.asarray([1])).tolist()
    assert rows == [[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1]]


def test_centres_and_corners_agree() -> None:
    corner = np.sort(generator(1).random((1, 20, 2, 2), np.float32), axis=2).reshape(1, 20, 4)
    low, high = corner[..., :2], corner[..., 2:]
    centre = np.concatenate([(low + high) / 2, high - low], axis=-1)
    scores = generator(2).random((1, 1, 20), np.float32)
    limits = [MOST, np.float32([0.3])]
    first = kept(corner, scores, *limits)
    assert 1 < len(first) < 20
    assert kept(centre, scores, *limits, center_point_box=1) == first


def test_boxes_without_area_suppress_nothing() -> None:
    boxes = np.float32([[[1, 1, 1, 1], [1, 1, 1, 1]]])
    assert kept(boxes, np.float32([[[0.1, 0.2]]]), MOST) == [1, 0]


def test_rank_is_checked() -> None:
    with pytest.raises(GraphError, match="input 1 has rank 2, 3 was required"):
        inferred(
            "NonMaxSuppression", Value("b", "float32", (1, 2, 4)), Value("s", "float32", (1, 2))
        )
