"""Pools against loops over windows, partial windows, indices, and the way back."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Value
from halfbyte.ir.ops.spec import UNKNOWN, normal
from support.op_evaluation import (
    evaluate_graph,
    evaluated,
    evaluated_one,
    inferred,
    node_graph,
    upgrade_fully,
)

PLANE = {"kernel_shape": [3, 2], "strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 2, 1]}
LINE = {"kernel_shape": [4], "strides": [3], "dilations": [1], "pads": [2, 1]}


def windows_of(data: np.ndarray, attributes: dict, sides: tuple[int, ...]):
    """Yield for each output place the values of its window, padding left out, and all places."""
    rank = data.ndim - 2
    for place in np.ndindex(*sides):
        axes = []
        for i, p in enumerate(place):
            start = p * attributes["strides"][i] - attributes["pads"][i]
            step = attributes["dilations"][i]
            axes.append([start + k * step for k in range(attributes["kernel_shape"][i])])
        inside = [
            [a for a in axis if 0 <= a < n] for axis, n in zip(axes, data.shape[2:], strict=True)
        ]
        cut = data[(slice(None), slice(None), *np.ix_(*inside))]
        yield place, cut.reshape(*data.shape[:2], -1), (axes, rank)


@pytest.mark.parametrize(("shape", "attributes"), [((2, 3, 7, 8), PLANE), ((1, 2, 11), LINE)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pools_are_loops_over_windows(shape: tuple, attributes: dict, dtype: type) -> None:
    data = normal(1, *shape).astype(dtype)
    results = {
        "MaxPool": evaluated_one("MaxPool", data, **attributes),
        "AveragePool": evaluated_one("AveragePool", data, **attributes),
        "LpPool": evaluated_one("LpPool", data, p=3, **attributes),
    }
    wide = data.astype(np.float64)
    for place, values, _ in windows_of(wide, attributes, results["MaxPool"].shape[2:]):
        wanted = {
            "MaxPool": values.max(axis=-1),
            "AveragePool": values.mean(axis=-1),
            "LpPool": (np.abs(values) ** 3).sum(axis=-1) ** (1 / 3),
        }
        for key, value in wanted.items():
            found = results[key][(slice(None), slice(None), *place)]
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-7, err_msg=key)


def test_partial_windows_count_what_they_cover() -> None:
    data = np.arange(1, 9, dtype=np.float32).reshape(1, 1, 8)
    partial = {"kernel_shape": [3], "strides": [3], "ceil_mode": 1}
    assert evaluated_one("MaxPool", data, **partial).tolist() == [[[3, 6, 8]]]
    assert evaluated_one("AveragePool", data, **partial).tolist() == [[[2, 5, 7.5]]]
    partial["count_include_pad"] = 1
    # nothing was padded, so the place beyond the end does not count either
    assert evaluated_one("AveragePool", data, **partial).tolist() == [[[2, 5, 7.5]]]
    partial["pads"] = [0, 1]
    assert evaluated_one("AveragePool", data, **partial).tolist() == [[[2, 5, 5]]]


def test_a_window_that_would_start_in_the_padding_is_not_counted() -> None:
    data = np.arange(4, dtype=np.float32).reshape(1, 1, 4)
    given = {"kernel_shape": [1], "strides": [2], "pads": [0, 1], "ceil_mode": 1}
    assert evaluated_one("MaxPool", data, **given).tolist() == [[[0, 2]]]


@pytest.mark.parametrize(("include", "first"), [(0, 2.0), (1, 4 / 3)])
def test_counted_padding(include: int, first: float) -> None:
    data = np.float32([[[1, 3, 5]]])
    given = {"kernel_shape": [3], "pads": [1, 1], "count_include_pad": include}
    assert evaluated_one("AveragePool", data, **given)[0, 0, 0] == np.float32(first)


@pytest.mark.parametrize(("order", "step"), [(0, (20, 5, 1)), (1, (1, 3, 12))])
def test_indices_point_at_the_maxima(order: int, step: tuple[int, ...]) -> None:
    data = normal(2, 2, 2, 3, 4, 5)
    given = {"kernel_shape": [2, 3, 2], "strides": [1, 2, 2], "pads": [1, 1, 0, 0, 1, 1]}
    result, indices = evaluated("MaxPool", data, outputs=2, storage_order=order, **given)
    flat = data.reshape(2, 2, 60)
    if order:
        flat = data.transpose(0, 1, 4, 3, 2).reshape(2, 2, 60)
    np.testing.assert_array_equal(flat.reshape(-1)[indices], result)
    assert indices.dtype == np.int64
    assert step[-1] == (1 if order == 0 else 12)


def test_first_of_equal_maxima_and_bytes() -> None:
    data = np.int8([[[[-128, -128], [-128, -128]]]])
    padded = {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0]}
    result, indices = evaluated("MaxPool", data, outputs=2, **padded)
    assert result.dtype == np.int8
    assert indices.tolist() == [[[[0, 0], [0, 0]]]]


def test_maximum_passes_nan_on() -> None:
    data = np.float32([[[1, np.nan, 2, 3]]])
    assert np.isnan(evaluated_one("MaxPool", data, kernel_shape=[2])).tolist() == [
        [[True, True, False]]
    ]


def test_pools_over_all_of_space() -> None:
    data = normal(3, 2, 3, 4, 5)
    flat = data.astype(np.float64).reshape(2, 3, 20)
    for key, wanted in (
        ("GlobalMaxPool", flat.max(axis=2)),
        ("GlobalAveragePool", flat.mean(axis=2)),
        ("GlobalLpPool", np.sqrt((flat**2).sum(axis=2))),
    ):
        result = evaluated_one(key, data)
        assert result.shape == (2, 3, 1, 1)
        np.testing.assert_allclose(result[..., 0, 0], wanted, rtol=1e-6)


def test_unpool_undoes_a_pool() -> None:
    data = np.abs(normal(4, 2, 2, 6, 8))
    given = {"kernel_shape": [2, 2], "strides": [2, 2]}
    result, indices = evaluated("MaxPool", data, outputs=2, **given)
    back = evaluated_one("MaxUnpool", result, indices, **given)
    assert back.shape == data.shape
    kept = back != 0
    np.testing.assert_array_equal(back[kept], data[kept])
    np.testing.assert_array_equal(evaluated_one("MaxPool", back, **given), result)


@pytest.mark.parametrize("key", ["LpPool", "GlobalLpPool"])
def test_floating_power_of_the_first_form(key: str) -> None:
    data = normal(5, 1, 2, 5)
    attributes = {"kernel_shape": [2]} if key == "LpPool" else {}
    for power, exact in ((3.0, True), (2.5, False)):
        graph, node = node_graph(key, 1, [data], attributes | {"p": power})
        (before,) = evaluate_graph(graph, [data])
        assert upgrade_fully(graph) is exact
        assert node.since_version == (2 if exact else 1)
        np.testing.assert_array_equal(evaluate_graph(graph, [data])[0], before)


def test_shapes_with_symbols() -> None:
    x = Value("x", "float32", ("n", 3, "h", 9))
    assert inferred("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)[0].shape == ("n", 3, "h", 9)
    assert inferred("MaxPool", x, kernel_shape=[2, 2])[0].shape == ("n", 3, UNKNOWN, 8)
    assert inferred("GlobalMaxPool", x)[0].shape == ("n", 3, 1, 1)
    assert inferred("GlobalMaxPool", Value("x", "float16"))[0] == ("float16", None)
    indices = Value("i", "int64", ("n", 3, "h", 9))
    assert inferred("MaxUnpool", x, indices, kernel_shape=[2, 2])[0].shape == (
        *("n", 3, UNKNOWN, UNKNOWN),
    )


def test_broken_rules() -> None:
    with pytest.raises(GraphError, match=r"rank 3 and kernel \[2, 2\]"):
        inferred("MaxPool", Value("x", "float32", (1, 2, 3)), kernel_shape=[2, 2])
