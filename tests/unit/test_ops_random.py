"""Random operators, windows and optimizers: reproducible, of the right distribution."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.ops import infer
from halfbyte.ir.ops.spec import normal
from support.op_evaluation import evaluated, evaluated_one, node_graph

F32 = np.float32
LARGE = [200, 100]
TRAINING = "ai.onnx.preview.training"


@pytest.mark.parametrize("key", ["RandomNormal", "RandomUniform"])
def test_seeds_decide_and_none_is_zero(key: str) -> None:
    first = evaluated_one(key, shape=[3, 4], seed=1.5)
    assert first.dtype == F32
    np.testing.assert_array_equal(first, evaluated_one(key, shape=[3, 4], seed=1.5))
    assert not np.array_equal(first, evaluated_one(key, shape=[3, 4], seed=2.5))
    none = evaluated_one(key, shape=[3, 4])
    np.testing.assert_array_equal(none, evaluated_one(key, shape=[3, 4], seed=0.0))
    like = evaluated_one(f"{key}Like", np.zeros((3, 4), np.float64))
    assert like.dtype == np.float64
    np.testing.assert_array_equal(like.astype(F32), none)


def test_distributions_are_those_asked_for() -> None:
    values = evaluated_one("RandomNormal", shape=LARGE, mean=3.0, scale=2.0, dtype="float64")
    assert abs(values.mean() - 3) < 0.05
    assert abs(values.std() - 2) < 0.05
    values = evaluated_one("RandomUniform", shape=LARGE, low=-2.0, high=4.0)
    assert -2 <= values.min() < -1.9
    assert 3.9 < values.max() <= 4
    assert abs(values.mean() - 1) < 0.05


def test_bernoulli_follows_each_probability() -> None:
    chances = np.broadcast_to(np.asarray([0.0, 0.25, 1.0], F32), (4000, 3))
    drawn = evaluated_one("Bernoulli", chances, dtype="int32")
    assert drawn.dtype == np.int32
    assert drawn[:, 0].max() == 0
    assert drawn[:, 2].min() == 1
    assert abs(drawn[:, 1].mean() - 0.25) < 0.03


def test_multinomial_follows_the_odds_of_its_row() -> None:
    odds = np.log(np.asarray([[1, 3, 0.0001], [0.0001, 1, 1]], F32))
    drawn = evaluated_one("Multinomial", odds, sample_size=4000, dtype="int64")
    assert (drawn.shape, drawn.dtype) == ((2, 4000), np.int64)
    shares = [np.bincount(row, minlength=3) / 4000 for row in drawn]
    np.testing.assert_allclose(shares, [[0.25, 0.75, 0], [0, 0.5, 0.5]], atol=0.03)


def test_dropout_scales_what_it_keeps() -> None:
    data, ratio = np.ones((100, 100), F32), np.asarray(0.25, F32)
    result, mask = evaluated("Dropout", data, ratio, np.asarray(True), outputs=2, seed=3)
    assert abs(mask.mean() - 0.75) < 0.02
    np.testing.assert_allclose(result, mask / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(evaluated_one("Dropout", data, ratio), data)
    np.testing.assert_array_equal(evaluated_one("Dropout", data, None, np.asarray(False)), data)
    with pytest.raises(GraphError, match="ratio 1.0 found"):
        evaluated_one("Dropout", data, np.asarray(1.0, F32), np.asarray(True))


@pytest.mark.parametrize(
    ("key", "function"),
    [("HannWindow", np.hanning), ("HammingWindow", None), ("BlackmanWindow", np.blackman)],
)
@pytest.mark.parametrize("size", [0, 1, 2, 9])
def test_windows_are_numpys(key: str, function, size: int) -> None:
    symmetric = evaluated_one(key, np.asarray(size), periodic=0, output_datatype="float64")
    periodic = evaluated_one(key, np.asarray(size))
    assert periodic.dtype == F32
    assert symmetric.shape == periodic.shape == (size,)
    if function is not None and size > 1:
        np.testing.assert_allclose(symmetric, function(size), atol=1e-15)
        np.testing.assert_allclose(periodic, function(size + 1)[:-1], atol=1e-7)


@pytest.mark.parametrize(("op", "parts"), [("Adagrad", 3), ("Momentum", 3), ("Adam", 4)])
def test_tensors_are_optimized_by_themselves(op: str, parts: int) -> None:
    rate, count = np.asarray(0.1, F32), np.asarray(3)
    attributes = {"alpha": 0.9, "beta": 0.8, "norm_coefficient": 0.01}
    if op == "Adagrad":
        attributes = {"decay_factor": 0.1}
    if op == "Momentum":
        attributes |= {"mode": "standard"}
    arrays = [[np.abs(normal(10 * p + t, 2, 3)) for t in range(2)] for p in range(parts)]
    flat = [array for part in arrays for array in part]
    both = evaluated(f"{TRAINING}.{op}", rate, count, *flat, outputs=2 * (parts - 1), **attributes)
    for index in range(2):
        own = [part[index] for part in arrays]
        alone = evaluated(f"{TRAINING}.{op}", rate, count, *own, outputs=parts - 1, **attributes)
        for part, result in enumerate(alone):
            np.testing.assert_array_equal(both[2 * part + index], result)
    assert np.all(both[0] != arrays[0][0])


def test_optimizers_need_whole_groups() -> None:
    arrays = [np.asarray(0.1, F32), np.asarray(1), *(normal(i, 2) for i in range(4))]
    _, node = node_graph(f"{TRAINING}.Adagrad", 1, arrays, {}, outputs=2)
    with pytest.raises(GraphError, match="4 arrays for 2 results; give 3 for each tensor"):
        infer(node)
