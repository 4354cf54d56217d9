"""Normalizations, reductions, softmax, losses, algebra: formulas and special values."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.ops import infer, op_spec
from halfbyte.ir.ops.spec import generator, normal
from support.op_evaluation import evaluated, evaluated_one, node_graph

F32 = np.float32
INF, NAN = np.inf, np.nan
A = normal(1, 2, 4, 3, 5)
C4 = [normal(2, 4), normal(3, 4)]
EMPTY = {
    "ReduceMax": -INF,
    "ReduceMin": INF,
    "ReduceMean": NAN,
    "ReduceSum": 0,
    "ReduceProd": 1,
    "ReduceL1": 0,
    "ReduceL2": 0,
    "ReduceLogSum": -INF,
    "ReduceLogSumExp": -INF,
    "ReduceSumSquare": 0,
}


@pytest.mark.parametrize("key", sorted(EMPTY))
def test_reduction_of_nothing(key: str) -> None:
    data, axes = np.ones((2, 0, 3), F32), np.asarray([1])
    result = evaluated_one(key, data, axes)
    np.testing.assert_array_equal(result, np.full((2, 1, 3), EMPTY[key], F32))
    assert evaluated_one(key, np.ones((0, 3), F32), np.asarray([1]), keepdims=0).shape == (0,)


@pytest.mark.parametrize("key", sorted(EMPTY))
def test_no_axes_reduce_all_or_nothing(key: str) -> None:
    data = np.abs(normal(4, 3, 2)) + F32(1)
    none = np.zeros(0, np.int64)
    assert evaluated_one(key, data, none).shape == (1, 1)
    same = evaluated_one(key, data, none, noop_with_empty_axes=1)
    steps = {"ReduceLogSum": np.log, "ReduceSumSquare": np.square}
    np.testing.assert_allclose(same, steps.get(key, np.asarray)(data), rtol=1e-6)
    assert evaluated_one(key, np.asarray(2.0, F32)).shape == ()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_short_floats_are_summed_wide(dtype: type) -> None:
    data = np.full(4096, 0.25, dtype)
    assert float(evaluated_one("ReduceSum", data, keepdims=0)) == 1024
    assert float(evaluated_one("ReduceMean", data, keepdims=0)) == 0.25


def test_extremes_of_integers_and_bools() -> None:
    empty = np.zeros((0, 2), np.int8)
    assert evaluated_one("ReduceMax", empty, np.asarray([0])).tolist() == [[-128, -128]]
    assert evaluated_one("ReduceMin", empty > 0, np.asarray([0])).tolist() == [[True, True]]
    assert evaluated_one("ReduceMax", np.asarray([np.nan, 1], F32), keepdims=0) != 1


def test_large_exponentials_do_not_overflow() -> None:
    data = np.asarray([[1000.0, 1000.0], [-INF, -INF], [INF, 0]], F32)
    result = evaluated_one("ReduceLogSumExp", data, np.asarray([1]), keepdims=0)
    np.testing.assert_allclose(result, [1000 + np.log(2), -INF, INF], rtol=1e-6)
    logarithms = evaluated_one("LogSoftmax", data[:1])
    np.testing.assert_allclose(logarithms, np.full((1, 2), -np.log(2)), rtol=1e-6)


@pytest.mark.parametrize("key", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
def test_ties_go_to_the_first_or_the_last(key: str, last: int) -> None:
    data = np.asarray([[1, 1, 0, 0, 1]], F32)
    found = evaluated_one(key, data, axis=-1, select_last_index=last, keepdims=0)
    assert found.tolist() == [
        {("ArgMax", 0): 0, ("ArgMax", 1): 4, ("ArgMin", 0): 2}.get((key, last), 3)
    ]


@pytest.mark.parametrize("key", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_of_empty_axes_and_scalars(key: str) -> None:
    assert evaluated_one(key, np.ones((2, 0), F32)).shape == (2, 0)
    assert evaluated_one(key, np.ones((0, 2), F32)).shape == (0, 2)


def test_group_normalization_is_that_of_the_groups() -> None:
    result = evaluated_one("GroupNormalization", A, *C4, num_groups=2, epsilon=0.1)
    rows = A.reshape(2, 2, -1).astype(np.float64)
    rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 0.1)
    scale, bias = (v.reshape(1, 4, 1, 1) for v in C4)
    np.testing.assert_allclose(result, rows.reshape(A.shape) * scale + bias, rtol=1e-5, atol=1e-6)
    with pytest.raises(GraphError, match="4 channels in 3 groups"):
        evaluated_one("GroupNormalization", A, *C4, num_groups=3)


def test_layer_normalization_returns_its_statistics() -> None:
    data = normal(5, 2, 3, 4)
    result, mean, inverse = evaluated(
        "LayerNormalization", data, np.ones((3, 4), F32), axis=1, outputs=3
    )
    np.testing.assert_allclose(mean, data.mean(axis=(1, 2), keepdims=True), rtol=1e-4, atol=1e-7)
    deviation = np.sqrt(data.var(axis=(1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(inverse, 1 / deviation, rtol=1e-5)
    np.testing.assert_allclose(result, (data - mean) * inverse, rtol=1e-5, atol=1e-6)


def test_root_mean_square_takes_the_dtype_of_the_scale() -> None:
    data = normal(6, 3, 8).astype(np.float16)
    result = evaluated_one("RMSNormalization", data, np.ones(8, F32))
    assert result.dtype == F32
    wide = data.astype(np.float64)
    wide = (wide / np.sqrt((wide * wide).mean(-1, keepdims=True) + 1e-5)).astype(np.float16)
    np.testing.assert_array_equal(result, wide.astype(F32))


def test_zero_norms_give_zeros() -> None:
    for p in (1, 2):
        assert not evaluated_one("LpNormalization", np.zeros((2, 3), F32), p=p).any()
    result = evaluated_one("LpNormalization", np.asarray([[3.0, -4.0]], F32))
    np.testing.assert_allclose(result, [[0.6, -0.8]], rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_local_response_is_its_definition(size: int) -> None:
    data = normal(7, 2, 5, 3)
    result = evaluated_one("LRN", data, size=size, alpha=0.5, beta=0.7, bias=1.5)
    for c in range(5):
        low, high = max(0, c - (size - 1) // 2), min(4, c + size // 2)
        total = (data[:, low : high + 1].astype(np.float64) ** 2).sum(axis=1)
        wanted = data[:, c] / (1.5 + 0.5 / size * total) ** 0.7
        np.testing.assert_allclose(result[:, c], wanted, rtol=1e-5)


def test_training_of_batches_updates_running_statistics() -> None:
    statistics = [*C4, normal(8, 4), np.abs(normal(9, 4))]
    result, mean, variance = evaluated(
        "BatchNormalization", A, *statistics, training_mode=1, momentum=0.75, outputs=3
    )
    own = A.mean(axis=(0, 2, 3)), A.var(axis=(0, 2, 3))
    np.testing.assert_allclose(mean, statistics[2] * 0.75 + own[0] * 0.25, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, statistics[3] * 0.75 + own[1] * 0.25, rtol=1e-5)
    np.testing.assert_allclose(result.mean(axis=(0, 2, 3)), C4[1], rtol=1e-4, atol=1e-5)
    vector = evaluated_one("BatchNormalization", normal(10, 5), *(v[:1] for v in statistics))
    assert vector.shape == (5,)


@pytest.mark.parametrize("key", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_losses_ignore_and_weigh(key: str, reduction: str) -> None:
    data, weight = normal(11, 4, 3, 2), np.asarray([0.5, 1.0, 2.0], F32)
    target = generator(12).integers(0, 3, (4, 2))
    target[0, 0] = -1
    result = evaluated_one(key, data, target, weight, reduction=reduction, ignore_index=-1)
    wide = data.astype(np.float64)
    if key.startswith("Softmax"):
        wide = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    losses, total = np.zeros((4, 2)), 0.0
    for n, d in np.ndindex(4, 2):
        if target[n, d] >= 0:
            losses[n, d] = -wide[n, target[n, d], d] * weight[target[n, d]]
            total += float(weight[target[n, d]])
    wanted = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / total}[reduction]
    np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("...ij,...jk", [(5, 2, 3), (1, 3, 4)]),
        ("ii", [(3, 3)]),
        ("a,b->ab", [(2,), (3,)]),
        ("bhid, bhjd -> bhij", [(1, 2, 3, 4), (1, 2, 5, 4)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
    ],
)
def test_einsum_is_numpys(equation: str, shapes: list) -> None:
    arrays = [normal(13 + i, *shape) for i, shape in enumerate(shapes)]
    result = evaluated_one("Einsum", *arrays, equation=equation)
    np.testing.assert_allclose(result, np.einsum(equation, *arrays), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "inputs", "attributes", "rule"),
    [
        ("Einsum", [A], {"equation": "i,j"}, "2 terms for 1 inputs"),
        ("Einsum", [A], {"equation": "ij->i"}, "one letter per dimension"),
        ("LRN", [A[0, 0, 0]], {"size": 3}, "no channels"),
        ("SoftmaxCrossEntropyLoss", [A, A], {"reduction": "max"}, "'none', 'mean' or 'sum'"),
        ("QuantizeLinear", [A, C4[0]], {"output_dtype": "float32"}, "quantizes to float32"),
    ],
)
def test_broken_rules(key: str, inputs: list, attributes: dict, rule: str) -> None:
    _, node = node_graph(key, op_spec(key).versions[-1], inputs, attributes)
    with pytest.raises(GraphError, match=rule):
        infer(node)


def test_integers_multiply_exactly() -> None:
    big = np.asarray([[2**53 + 1]], np.int64)
    one = np.asarray([[1]], np.int64)
    assert evaluated_one("MatMul", big, one)[0, 0] == 2**53 + 1
    assert evaluated_one("Gemm", big, one, one, beta=2.0)[0, 0] == 2**53 + 3
    assert evaluated_one("Gemm", np.asarray([[4]]), one, alpha=0.5)[0, 0] == 2


def test_products_over_nothing_are_zero() -> None:
    result = evaluated_one("MatMul", np.ones((2, 0), F32), np.ones((0, 3), F32))
    np.testing.assert_array_equal(result, np.zeros((2, 3), F32))
    result = evaluated_one("Gemm", np.ones((0, 2), F32), np.ones((2, 3), F32), np.ones(3, F32))
    assert result.shape == (0, 3)
