"""Old forms: their own meaning, and the same results after the upgrade to the newest form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from halfbyte.ir.ops import OPS, op_specs
from halfbyte.ir.ops.spec import normal
from support.op_evaluation import evaluate_graph, node_graph, upgrade_fully

A = normal(1, 2, 3, 4, 5)
ROWS, MIDDLE, LEAD = normal(2, 4, 5), normal(3, 3, 4), normal(4, 2)
MASK = normal(5, 2, 3, 4) > 0
WHOLE = np.arange(1, 25, dtype=np.int64).reshape(2, 3, 4)
POSITIVE = np.abs(A) + np.float32(0.1)
CHANNELS = [normal(6, 3), normal(7, 3), normal(8, 3), np.abs(normal(9, 3))]
UNARY = (
    *("Neg", "Abs", "Ceil", "Floor", "Exp", "Log", "Sqrt", "Reciprocal", "Relu", "Sigmoid"),
    *("Tanh", "LeakyRelu", "Elu", "Selu", "HardSigmoid"),
)
ONE_INPUT = [(op, 1, [POSITIVE], {"consumed_inputs": [0]}) for op in UNARY]
BROADCAST = [
    (op, version, [A, other], {"broadcast": 1} | axis)
    for op, version in [("Add", 1), ("Sub", 6), ("Mul", 6), ("Div", 1), ("Greater", 1), ("Less", 1)]
    for other, axis in [
        (A[::-1].copy(), {}),
        (ROWS, {}),
        (MIDDLE, {"axis": 1}),
        (LEAD, {"axis": 0}),
        (MIDDLE, {"axis": -3}),
        (np.asarray(2.0, np.float32), {}),
        (np.asarray([[2.0]], np.float32), {"axis": 0}),
    ]
]
LOGIC = [(op, 1, [MASK, MASK[0]], {"broadcast": 1}) for op in ("And", "Or", "Xor", "Equal")] + [
    (op, 1, [MASK, MASK[:, 0, 0]], {"broadcast": 1, "axis": 0}) for op in ("And", "Or", "Xor")
]
REDUCTIONS = [
    (op, version, [POSITIVE], attributes)
    for op in OPS
    if op.startswith("Reduce")
    for version in (1, 11)
    for attributes in ({}, {"axes": [1, 3]}, {"axes": [-1], "keepdims": 0})
]
NORMALIZATIONS = [
    ("BatchNormalization", 1, [A, *CHANNELS], {"is_test": 1, "consumed_inputs": [0, 0, 0, 1, 1]}),
    ("BatchNormalization", 6, [A, *CHANNELS], {"is_test": 1, "epsilon": 0.1}),
    ("BatchNormalization", 6, [A, *CHANNELS], {}),
    ("BatchNormalization", 7, [A, *CHANNELS], {}),
    ("BatchNormalization", 9, [A, *CHANNELS], {"momentum": 0.5}),
    ("InstanceNormalization", 1, [A, *CHANNELS[:2]], {"epsilon": 0.1}),
    ("GroupNormalization", 18, [normal(10, 2, 6, 5), *CHANNELS[:2]], {"num_groups": 3}),
]
OTHERS: list[tuple[str, int, list[np.ndarray], dict[str, Any]]] = [
    ("Pow", 1, [POSITIVE, LEAD], {"broadcast": 1, "axis": 0}),
    ("Selu", 1, [A], {}),
    ("Selu", 1, [A], {"gamma": 2.0}),
    *(
        (op, version, [A, A[::-1].copy(), A], {})
        for op in ("Min", "Max", "Sum", "Mean")
        for version in (1, 6)
    ),
    ("Clip", 1, [A], {"min": -0.5}),
    ("Clip", 6, [A], {"max": 0.5}),
    ("Clip", 6, [A.astype(np.float16)], {"min": -0.25, "max": 0.5}),
    ("Clip", 6, [A.astype(np.float64) * 1e39], {}),
    ("Clip", 1, [A.astype(np.float64) * 1e39], {}),
    ("Cast", 1, [A], {"to": "FLOAT16"}),
    ("Cast", 1, [WHOLE], {"to": "double"}),
    ("PRelu", 1, [A, normal(11, 3)], {"consumed_inputs": [0]}),
    ("PRelu", 6, [A, normal(11, 1)], {}),
    ("PRelu", 6, [A[0, :, :, 0], normal(11, 4)], {}),
    ("Gemm", 1, [ROWS, normal(12, 5, 6), normal(13, 6)], {"broadcast": 1, "alpha": 0.5}),
    ("Gemm", 6, [ROWS, normal(14, 4, 6), normal(15, 5, 6)], {"transA": 1, "beta": 2.0}),
    ("Dropout", 1, [A], {"is_test": 1, "consumed_inputs": [0]}),
    ("Dropout", 6, [A], {"is_test": 1, "ratio": 0.3}),
    ("Dropout", 6, [A], {"ratio": 0.3}),
    ("Dropout", 7, [A], {}),
    ("Dropout", 10, [A], {"ratio": 0.9}),
]
SOFTMAX = [
    (op, version, [data], attributes)
    for op in ("Softmax", "LogSoftmax", "Hardmax")
    for version, data, attributes in [
        (1, A, {}),
        (1, A, {"axis": 0}),
        (11, A, {"axis": -2}),
        (11, A, {"axis": 3}),
        (1, ROWS, {"axis": 1}),
        (1, ROWS[0], {"axis": 0}),
    ]
]
CASES = [
    *ONE_INPUT,
    *BROADCAST,
    *LOGIC,
    *REDUCTIONS,
    *NORMALIZATIONS,
    *OTHERS,
    *SOFTMAX,
]


@pytest.mark.parametrize(
    ("key", "version", "inputs", "attributes"),
    CASES,
    ids=[f"{key}-{version}-{i}" for i, (key, version, *_) in enumerate(CASES)],
)
def test_upgraded_node_computes_the_same(
    key: str, version: int, inputs: list[np.ndarray], attributes: dict[str, Any]
) -> None:
    graph, _ = node_graph(key, version, inputs, attributes)
    (before,) = evaluate_graph(graph, inputs)
    graph, node = node_graph(key, version, inputs, attributes)
    assert upgrade_fully(graph)
    assert not {"consumed_inputs", "broadcast", "is_test"} & set(node.attributes)
    (after,) = evaluate_graph(graph, inputs)
    assert before.dtype == after.dtype
    if before.dtype.kind == "f":
        np.testing.assert_array_max_ulp(before, after, 2)
    else:
        np.testing.assert_array_equal(before, after)


def test_every_old_form_of_these_families_is_tried() -> None:
    tried = {(key, version) for key, version, *_ in CASES}
    families = {OPS[key] for key, _ in tried}
    for key in (key for key in OPS if OPS[key] in families and "." not in key):
        for spec in op_specs(key)[:-1]:
            assert any((key, version) in tried for version in spec.versions), (key, spec.versions)


@pytest.mark.parametrize(
    ("key", "attributes", "expected"),
    [
        ("Add", {"broadcast": 1, "axis": 1}, A + MIDDLE[None, :, :, None]),
        ("Mul", {"broadcast": 1, "axis": 1}, A * MIDDLE[None, :, :, None]),
    ],
)
def test_axis_aligns_the_second_input(key: str, attributes: dict, expected: np.ndarray) -> None:
    graph, _ = node_graph(key, 6, [A, MIDDLE], attributes)
    np.testing.assert_array_equal(evaluate_graph(graph, [A, MIDDLE])[0], expected)


def test_old_softmax_normalizes_all_dimensions_from_the_axis_on() -> None:
    graph, _ = node_graph("Softmax", 1, [A], {"axis": 1})
    result = evaluate_graph(graph, [A])[0]
    np.testing.assert_allclose(result.sum(axis=(1, 2, 3)), 1, rtol=1e-6)


def test_statistics_of_positions_stay_in_the_old_form() -> None:
    shape = A.shape[1:]
    inputs = [A, *(normal(20 + i, *shape) for i in range(3)), np.abs(normal(23, *shape))]
    graph, _ = node_graph("BatchNormalization", 7, inputs, {"spatial": 0})
    result = evaluate_graph(graph, inputs)[0]
    _, scale, bias, mean, variance = inputs
    wanted = (A - mean) / np.sqrt(variance + 1e-5) * scale + bias
    np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-5)
    assert not upgrade_fully(graph)


def test_training_of_old_batches_returns_all_statistics() -> None:
    graph, _ = node_graph("BatchNormalization", 7, [A, *CHANNELS], {"momentum": 0.25}, outputs=5)
    result, mean, variance, saved_mean, saved_variance = evaluate_graph(graph, [A, *CHANNELS])
    np.testing.assert_allclose(saved_mean, A.mean(axis=(0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(saved_variance, A.var(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(mean, CHANNELS[2] * 0.25 + saved_mean * 0.75, rtol=1e-5)
    np.testing.assert_allclose(variance, CHANNELS[3] * 0.25 + saved_variance * 0.75, rtol=1e-5)
    assert abs(float(result.mean())) < 2
    assert not upgrade_fully(graph)


def test_mask_of_floats_stays_in_the_old_form() -> None:
    graph, _ = node_graph("Dropout", 7, [A], {}, outputs=2)
    result, mask = evaluate_graph(graph, [A])
    np.testing.assert_array_equal(result, A)
    assert mask.dtype == np.float32
    assert mask.all()
    assert not upgrade_fully(graph)


@pytest.mark.parametrize(
    ("key", "version", "inputs", "attributes"),
    [
        ("Add", 6, [A, MIDDLE], {"broadcast": 1, "axis": 1}),
        ("PRelu", 6, [A, normal(11, 3)], {}),
        ("Softmax", 1, [A], {}),
        ("GroupNormalization", 18, [A, normal(11, 3), normal(12, 3)], {"num_groups": 3}),
    ],
)
def test_upgrade_needs_a_known_rank(key: str, version: int, inputs: list, attributes: dict) -> None:
    graph, node = node_graph(key, version, inputs, attributes)
    graph.inputs[0].shape = None
    assert not upgrade_fully(graph)
    assert node.since_version == version


def test_limits_of_integers_stay_in_the_old_form() -> None:
    graph, node = node_graph("Clip", 6, [WHOLE], {"min": 2.0, "max": 5.0})
    assert evaluate_graph(graph, [WHOLE])[0].max() == 5
    assert not upgrade_fully(graph)
    assert node.since_version == 6
