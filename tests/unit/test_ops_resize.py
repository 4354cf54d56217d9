"""Resize by hand, against plain formulas, and its older forms."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Value
from halfbyte.ir.ops.spec import UNKNOWN, normal
from support.op_evaluation import evaluate_graph, evaluated_one, inferred, node_graph, upgrade_fully

LINE = np.float32([[[10, 20, 30, 40]]])


def resized(data: np.ndarray, scales=None, sizes=None, **attributes) -> list[float]:
    """Return a resized line as list."""
    scales = None if scales is None else np.asarray([1, 1, scales], np.float32)
    sizes = None if sizes is None else np.asarray([1, 1, sizes], np.int64)
    result = evaluated_one("Resize", data, None, scales, sizes, **attributes)
    return result.reshape(-1).tolist()


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        # positions (i + 0.5) / 1.5 - 0.5 = -1/6, 0.5, 7/6, 11/6, 2.5, 19/6
        ({}, [10, 10, 20, 30, 30, 40]),
        ({"nearest_mode": "round_prefer_ceil"}, [10, 20, 20, 30, 40, 40]),
        ({"nearest_mode": "floor"}, [10, 10, 20, 20, 30, 40]),
        ({"nearest_mode": "ceil"}, [10, 20, 30, 30, 40, 40]),
        # positions i / 1.5 = 0, 2/3, 4/3, 2, 8/3, 10/3
        ({"coordinate_transformation_mode": "asymmetric"}, [10, 20, 20, 30, 40, 40]),
        # positions i * 3 / 5
        ({"coordinate_transformation_mode": "align_corners"}, [10, 20, 20, 30, 30, 40]),
        ({"mode": "linear"}, [10, 15, 65 / 3, 85 / 3, 35, 40]),
        (
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
            [10, 16, 22, 28, 34, 40],
        ),
    ],
)
def test_a_line_half_as_long_again(attributes: dict, expected: list[float]) -> None:
    np.testing.assert_allclose(resized(LINE, 1.5, **attributes), expected, rtol=1e-6)
    np.testing.assert_allclose(resized(LINE, sizes=6, **attributes), expected, rtol=1e-6)


def test_shorter_lines() -> None:
    assert resized(LINE, 0.5, mode="linear") == [15, 35]
    # the filter is twice as wide: weights 1, 3, 3, 1 of 8, the first one clamped to the border
    blurred = resized(LINE, 0.5, mode="linear", antialias=1)
    np.testing.assert_allclose(blurred, [(10 + 30 + 60 + 30) / 8, (20 + 90 + 120 + 40) / 8])
    outside = resized(LINE, 0.5, mode="linear", antialias=1, exclude_outside=1)
    np.testing.assert_allclose(outside, [(30 + 60 + 30) / 7, (20 + 90 + 120) / 7], rtol=1e-6)


def test_cubic_weights() -> None:
    # half-way between two values: weights a/8, (4 - a)/8, (4 - a)/8, a/8
    found = resized(np.float32([[[1, 0, 0, 0]]]), sizes=8, mode="cubic", cubic_coeff_a=-0.5)
    quarter, three = 0.25, 0.75
    a = -0.5
    near = ((a + 2) * quarter - (a + 3)) * quarter**2 + 1
    far = ((a * 1.25 - 5 * a) * 1.25 + 8 * a) * 1.25 - 4 * a
    farther = ((a * 1.75 - 5 * a) * 1.75 + 8 * a) * 1.75 - 4 * a
    middle = ((a + 2) * three - (a + 3)) * three**2 + 1
    clamped = [middle + far + near * 0 + 0, near + far]
    # output 1 lies at 0.25: neighbours -1 (clamped to 0) and 0
    np.testing.assert_allclose(found[1], near + far, rtol=1e-6)
    np.testing.assert_allclose(found[2], middle + farther, rtol=1e-6)
    np.testing.assert_allclose(found[3], far, rtol=1e-6)
    assert clamped[1] == near + far
    constant = resized(np.full((1, 1, 5), 3, np.float32), 1.7, mode="cubic", exclude_outside=1)
    np.testing.assert_allclose(constant, 3, rtol=1e-6)


def test_crop_reads_a_part_and_fills_the_rest() -> None:
    roi = np.float32([0, 0, 0.5, 1, 1, 1.5])
    given = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": -7.0}
    sizes = np.asarray([1, 1, 3])
    result = evaluated_one("Resize", LINE, roi, None, sizes, mode="linear", **given)
    # positions 1.5, 3, 4.5
    assert result.reshape(-1).tolist() == [25, 40, -7]


def test_symmetric_and_single_positions() -> None:
    mode = {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}
    # 4 * 0.6 = 2.4 wanted, 2 made: (i + 0.5) / 0.6 - 0.5 moved by 2 * (1 - 2 / 2.4)
    positions = (np.arange(2) + 0.5) / 0.6 - 0.5 + 2 * (1 - 2 / 2.4)
    np.testing.assert_allclose(resized(LINE, 0.6, **mode), 10 + 10 * positions, rtol=1e-5)
    single = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}
    assert resized(LINE, sizes=1, **single) == [10]
    assert resized(LINE, sizes=1, mode="linear") == [25]


@pytest.mark.parametrize(
    ("policy", "sides"), [("stretch", (7, 8)), ("not_larger", (7, 4)), ("not_smaller", (16, 8))]
)
def test_aspect_ratio(policy: str, sides: tuple[int, int]) -> None:
    data = normal(1, 1, 1, 4, 2)
    result = evaluated_one(
        *("Resize", data, None, None, np.asarray([7, 8])),
        axes=[-2, 3],
        keep_aspect_ratio_policy=policy,
    )
    assert result.shape[2:] == sides


def test_integers_are_rounded_and_clipped() -> None:
    data = np.uint8([[[0, 255, 0, 255]]])
    wide = resized(data.astype(np.float32), 3.0, mode="cubic")
    narrow = resized(data, 3.0, mode="cubic")
    assert narrow == np.clip(np.rint(wide), 0, 255).tolist()
    flags = np.asarray([[[True, False]]])
    assert resized(flags, 2.0) == [True, True, False, False]


def test_no_values() -> None:
    assert evaluated_one("Resize", LINE, None, None, np.asarray([1, 1, 0])).shape == (1, 1, 0)
    with pytest.raises(GraphError, match="exactly one of scales and sizes"):
        evaluated_one("Resize", LINE)


DATA = normal(2, 1, 2, 3, 5)
UP = np.float32([1, 1, 2, 1.5])
HALF_NN = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"}
OLD = [
    ("Upsample", 1, [DATA], {"height_scale": 2.0, "width_scale": 1.5}),
    ("Upsample", 1, [DATA], {"height_scale": 2.0, "width_scale": 1.5, "mode": "bilinear"}),
    ("Upsample", 7, [DATA], {"scales": [1.0, 1.0, 2.0, 1.5], "mode": "linear"}),
    ("Upsample", 9, [DATA, UP], {"mode": "nearest"}),
    ("Resize", 10, [DATA, UP], {"mode": "linear"}),
    ("Resize", 11, [DATA, np.zeros(0, np.float32), UP], {"mode": "cubic"}),
    ("Resize", 11, [DATA, np.zeros(0, np.float32), UP], HALF_NN),
]


@pytest.mark.parametrize(("key", "version", "inputs", "attributes"), OLD)
def test_old_forms_become_resize(key: str, version: int, inputs: list, attributes: dict) -> None:
    graph, node = node_graph(key, version, inputs, attributes)
    (before,) = evaluate_graph(graph, inputs)
    assert upgrade_fully(graph)
    assert (node.op, node.since_version) == ("Resize", 13)
    np.testing.assert_array_equal(evaluate_graph(graph, inputs)[0], before)


def test_resize_11_stays_where_it_says_what_the_newest_cannot() -> None:
    rounding = HALF_NN | {"nearest_mode": "ceil"}
    inputs = [DATA, np.zeros(0, np.float32), UP]
    assert not upgrade_fully(node_graph("Resize", 11, inputs, rounding)[0])
    both = [DATA, np.zeros(0, np.float32), UP, np.asarray([1, 2, 6, 7])]
    assert not upgrade_fully(node_graph("Resize", 11, both, {})[0])


def test_upsample_repeats_values() -> None:
    data = np.float32([[[[1, 2], [3, 4]]]])
    result = evaluated_one("Upsample", data, np.float32([1, 1, 2, 2]))
    assert result.tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]]]


def test_shapes_with_symbols() -> None:
    x = Value("x", "float32", ("n", 3, "h", 10))
    scales = np.float32([1, 1, 2, 0.25])
    assert inferred("Resize", x, None, scales)[0].shape == ("n", 3, UNKNOWN, 2)
    sizes = np.asarray([5, 6])
    assert inferred("Resize", x, None, None, sizes, axes=[2, 3])[0].shape == ("n", 3, 5, 6)
    unknown = Value("s", "float32", (4,))
    assert inferred("Resize", x, None, unknown)[0].shape == (UNKNOWN,) * 4
    assert inferred("Resize", Value("x", "float32"), None, scales)[0].shape is None


@pytest.mark.parametrize(
    ("dtype", "scales", "attributes", "rule"),
    [
        ("float32", [1, 1, 0, 2], {}, "give positive ones"),
        ("float32", [2], {}, "1 factors for 4 axes"),
        ("float32", [1, 1, 2, 2], {"mode": "area"}, "mode is 'area'; give one of nearest"),
        ("string", [1, 1, 2, 2], {"mode": "linear"}, "string values cannot be interpolated"),
    ],
)
def test_broken_rules(dtype: str, scales: list, attributes: dict, rule: str) -> None:
    with pytest.raises(GraphError, match=rule):
        inferred("Resize", Value("x", dtype, (1, 1, 2, 2)), None, np.float32(scales), **attributes)
