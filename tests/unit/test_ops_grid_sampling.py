"""Values between positions, blocks put back, regions: against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Value
from halfbyte.ir.ops.grid_sampling import reflected
from halfbyte.ir.ops.spec import UNKNOWN, normal
from support.op_evaluation import evaluate_graph, evaluated_one, inferred, node_graph, upgrade_fully

PLANE = np.arange(1, 13, dtype=np.float32).reshape(1, 1, 3, 4)


def at(*points: tuple[float, float]) -> np.ndarray:
    """Return a grid [1, 1, points, 2] that reads PLANE at (row, column) with aligned corners."""
    return np.float32([[[(c / 3 * 2 - 1, r / 2 * 2 - 1) for r, c in points]]])


@pytest.mark.parametrize(
    ("mode", "padding_mode", "points", "expected"),
    [
        ("linear", "zeros", [(0, 0), (2, 3), (0.5, 1.5), (1, 2.25)], [1, 12, 4.5, 7.25]),
        ("linear", "zeros", [(-0.5, 0), (-1, 0), (2.5, 3.5), (9, 9)], [0.5, 0, 3, 0]),
        ("linear", "border", [(-0.5, 0), (9, 1.5), (-4, -4)], [1, 10.5, 1]),
        ("linear", "reflection", [(-1, 0), (3, 1), (2.5, 0), (0, 4.5)], [5, 6, 7, 2.5]),
        ("nearest", "zeros", [(0.4, 1.6), (-0.4, 3.4), (-0.6, 0)], [3, 4, 0]),
        ("nearest", "border", [(9, -9)], [9]),
        ("cubic", "border", [(0, 0), (1, 2)], [1, 7]),
    ],
)
def test_grid_sample_in_a_plane(mode: str, padding_mode: str, points: list, expected: list) -> None:
    given = {"mode": mode, "padding_mode": padding_mode, "align_corners": 1}
    result = evaluated_one("GridSample", PLANE, at(*points), **given)
    np.testing.assert_allclose(result.reshape(-1), expected, rtol=1e-5, atol=1e-5)


def test_grid_sample_of_pixel_edges() -> None:
    grid = np.float32([[[(-1, -1), (0, 0), (-0.75, -2 / 3)]]])
    result = evaluated_one("GridSample", PLANE, grid)
    np.testing.assert_allclose(result.reshape(-1), [0.25, 6.5, 1], rtol=1e-5)


def test_grid_sample_of_a_volume_is_linear_in_each_axis() -> None:
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (3, 4, 5)), indexing="ij")
    data = (z * 100 + y * 10 + x)[None, None]
    grid = np.random.default_rng(0).uniform(-1, 1, (1, 2, 3, 4, 3)).astype(np.float32)
    result = evaluated_one("GridSample", data, grid, align_corners=1)
    places = (grid.astype(np.float64) + 1) / 2 * [4, 3, 2]
    np.testing.assert_allclose(result[0, 0], (places * [1, 10, 100]).sum(-1)[0], rtol=1e-5)


def test_grid_sample_passes_infinities_only_where_they_count() -> None:
    data = np.float32([[[[1, np.inf]]]])
    grid = np.float32([[[(-1, 0)]]])
    assert evaluated_one("GridSample", data, grid, align_corners=1).tolist() == [[[[1]]]]
    far = np.float32([[[(1e30, 0), (np.nan, 0)]]])
    assert evaluated_one("GridSample", PLANE, far).tolist() == [[[[0, 0]]]]


def test_reflection_goes_back_and_forth() -> None:
    places = np.asarray([-3.5, 0, 7.2, 11])
    np.testing.assert_allclose(reflected(places, -1.0, 2.0), [1.5, 0, 1.2, -1])
    assert reflected(places, 0.0, 0.0).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_grid_sample_16_has_other_names(mode: str) -> None:
    inputs = [normal(1, 1, 2, 4, 5), normal(2, 1, 3, 2, 2)]
    graph, node = node_graph("GridSample", 16, inputs, {"mode": mode})
    (before,) = evaluate_graph(graph, inputs)
    assert upgrade_fully(graph)
    assert node.attributes["mode"] in ("linear", "cubic", "nearest")
    np.testing.assert_array_equal(evaluate_graph(graph, inputs)[0], before)


@pytest.mark.parametrize("align", [0, 1])
def test_identity_grid_reads_the_data_itself(align: int) -> None:
    data = normal(3, 2, 3, 4, 5, 3)
    theta = np.tile(np.eye(3, 4, dtype=np.float32), (2, 1, 1))
    size = np.asarray([2, 3, 4, 5, 3])
    grid = evaluated_one("AffineGrid", theta, size, align_corners=align)
    result = evaluated_one("GridSample", data, grid, align_corners=align)
    np.testing.assert_allclose(result, data, rtol=1e-4, atol=1e-5)


def test_affine_grid_of_one_position() -> None:
    theta = np.float32([[[2, 0, 0.5], [0, 3, -1]]])
    grid = evaluated_one("AffineGrid", theta, np.asarray([1, 1, 1, 2]), align_corners=1)
    assert grid.tolist() == [[[[-1.5, -1], [2.5, -1]]]]


def test_deformed_convolution_without_offsets_is_a_convolution() -> None:
    data, weight, bias = normal(4, 2, 4, 6, 5), normal(5, 6, 2, 3, 2), normal(6, 6)
    given = {"group": 2, "strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 2, 1]}
    wanted = evaluated_one("Conv", data, weight, bias, **given)
    offset = np.zeros((2, 2 * 6 * 2, *wanted.shape[2:]), np.float32)
    result = evaluated_one("DeformConv", data, weight, offset, bias, offset_group=2, **given)
    np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)
    empty = evaluated_one("DeformConv", data[:0], weight, offset[:0], bias, offset_group=2, **given)
    assert empty.shape == (0, *wanted.shape[1:])


def test_offsets_move_what_is_read_and_masks_weigh_it() -> None:
    weight = np.ones((1, 1, 1, 1), np.float32)
    offset = np.zeros((1, 2, 3, 4), np.float32)
    offset[0, 1] = 0.5
    mask = np.full((1, 1, 3, 4), 2, np.float32)
    result = evaluated_one("DeformConv", PLANE, weight, offset, None, mask)
    wanted = np.pad(PLANE, [(0, 0), (0, 0), (0, 0), (0, 1)])
    np.testing.assert_allclose(result, wanted[..., :-1] + wanted[..., 1:])


def test_col2im_adds_overlaps_and_undoes_blocks() -> None:
    columns = np.arange(1, 9, dtype=np.float32).reshape(1, 2, 4)
    image, block = np.asarray([1, 5]), np.asarray([1, 2])
    assert evaluated_one("Col2Im", columns, image, block).tolist() == [[[[1, 7, 9, 11, 8]]]]
    dilated = evaluated_one("Col2Im", columns[..., :3], image, block, dilations=[1, 2])
    assert dilated.tolist() == [[[[1, 2, 3 + 5, 6, 7]]]]
    padded = evaluated_one("Col2Im", columns, np.asarray([1, 3]), block, pads=[0, 1, 0, 1])
    assert padded.tolist() == [[[[7, 9, 11]]]]
    assert evaluated_one("Col2Im", columns[:0], image, block).shape == (0, 1, 1, 5)


def test_col2im_of_a_volume() -> None:
    data = normal(7, 2, 3, 4, 6, 2).astype(np.float64)
    blocks = data.reshape(2, 3, 2, 2, 3, 2, 1, 2).transpose(0, 1, 3, 5, 7, 2, 4, 6)
    columns = blocks.reshape(2, 3 * 8, 6)
    given = [np.asarray([4, 6, 2]), np.asarray([2, 2, 2])]
    result = evaluated_one("Col2Im", columns, *given, strides=[2, 2, 2])
    np.testing.assert_array_equal(result, data)


SLOPE = np.add.outer(np.arange(8.0) * 10, np.arange(9.0)).astype(np.float32)[None, None]


def test_aligned_regions_of_a_slope_are_their_middles() -> None:
    boxes = np.float32([[1, 2, 5, 6]])
    given = {"output_height": 2, "output_width": 2, "sampling_ratio": 2}
    half = evaluated_one("RoiAlign", SLOPE, boxes, np.asarray([0]), **given)
    rows, columns = np.asarray([2.5, 4.5]), np.asarray([1.5, 3.5])
    np.testing.assert_allclose(half[0, 0], np.add.outer(rows * 10, columns), rtol=1e-6)
    given["coordinate_transformation_mode"] = "output_half_pixel"
    full = evaluated_one("RoiAlign", SLOPE, boxes, np.asarray([0]), **given)
    np.testing.assert_allclose(full - half, 5.5, rtol=1e-5)


def test_regions_outside_and_without_size() -> None:
    boxes = np.float32([[100, 100, 120, 120], [3, 3, 3, 3]])
    result = evaluated_one("RoiAlign", SLOPE, boxes, np.asarray([0, 0]), sampling_ratio=0)
    assert result.reshape(-1).tolist() == [0, 0]
    best = evaluated_one("RoiAlign", SLOPE, boxes, np.asarray([0, 0]), mode="max")
    assert best.reshape(-1).tolist() == [0, 0]


def test_roi_align_10_never_shifts() -> None:
    inputs = [SLOPE, np.float32([[1, 2, 5, 6]]), np.asarray([0])]
    graph, node = node_graph("RoiAlign", 10, inputs, {"output_height": 3, "output_width": 2})
    (before,) = evaluate_graph(graph, inputs)
    assert upgrade_fully(graph)
    assert node.attributes["coordinate_transformation_mode"] == "output_half_pixel"
    np.testing.assert_array_equal(evaluate_graph(graph, inputs)[0], before)


def test_maxima_of_regions() -> None:
    boxes = np.float32([[0, 1, 1, 4, 4], [0, 7, 7, 20, 20], [0, 20, 20, 30, 30]])
    result = evaluated_one("MaxRoiPool", SLOPE, boxes, pooled_shape=[2, 2])
    assert result[0, 0].tolist() == [[22, 24], [42, 44]]
    # bins of 7 positions: only the first one overlaps the data
    assert result[1, 0].tolist() == [[78, 0], [0, 0]]
    assert not result[2].any()
    scaled = evaluated_one(
        "MaxRoiPool", SLOPE, boxes[:1] * 2, pooled_shape=[2, 2], spatial_scale=0.5
    )
    np.testing.assert_array_equal(scaled[0], result[0])


def test_shapes_with_symbols() -> None:
    x, grid = Value("x", "float32", ("n", 3, 8, 9)), Value("g", "float32", ("n", "h", "w", 2))
    assert inferred("GridSample", x, grid)[0].shape == ("n", 3, "h", "w")
    regions = Value("r", "float32", ("r", 4))
    shape = inferred("RoiAlign", x, regions, Value("b", "int64", ("r",)), output_width=2)[0].shape
    assert shape == ("r", 3, 1, 2)
    size = Value("s", "int64", (4,))
    assert inferred("AffineGrid", Value("t", "float32", (1, 2, 3)), size)[0].shape == (
        *(UNKNOWN,) * 3,
        2,
    )
    vectors = [Value("v", "int64", (2,))] * 2
    assert inferred("Col2Im", Value("c", "float32", (1, 4, 9)), *vectors)[0].shape is None


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "rule"),
    [
        ("GridSample", [(1, 1, 2, 2), (1, 2, 2, 3)], {}, r"give \[n, ..., 2\]"),
        ("GridSample", [(1, 1, 2, 2), (1, 2, 2, 2)], {"mode": "area"}, "mode is 'area'"),
        ("RoiAlign", [(1, 2, 2), (1, 4), (1,)], {}, "rank 3, 4 was required"),
        ("DeformConv", [(1, 1, 2, 2), (1, 1, 1, 1), (1, 3, 2, 2)], {}, "3 offsets per place, 2"),
    ],
)
def test_broken_rules(op: str, shapes: list, attributes: dict, rule: str) -> None:
    values = [Value("v", "float32", shape) for shape in shapes]
    with pytest.raises(GraphError, match=rule):
        inferred(op, *values, **attributes)


def test_col2im_rows_must_divide() -> None:
    with pytest.raises(GraphError, match="5 rows are no multiple of 2"):
        inferred("Col2Im", normal(1, 1, 5, 4), np.asarray([1, 5]), np.asarray([1, 2]))
