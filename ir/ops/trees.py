"""TreeEnsemble of ai.onnx.ml: decision trees whose leaves add to targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.activation import sigmoid
from halfbyte.ir.ops.numerics import quiet
from halfbyte.ir.ops.softmax import softmax
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

COMPARISONS = (
    np.less_equal,
    np.less,
    np.greater_equal,
    np.greater,
    np.equal,
    np.not_equal,
)
MEMBER = 6
AVERAGE, SUM, MIN, MAX = range(4)
NEARLY_ZERO = 1e-7


def member_sets(values: Array | None) -> list[Array]:
    """Return the sets of members, which NaN parts from each other."""
    if values is None:
        return []
    ends = np.flatnonzero(np.isnan(values))
    return [part[~np.isnan(part)] for part in np.split(values, ends)][: len(ends) or 1]


def goes_true(data: Array, nodes: NDArray[np.int64], attributes: Mapping[str, Any]) -> Array:
    """Return whether each row of data takes the true branch of its node.

    data: [rows, features]; nodes: [rows, trees].
    """
    modes = np.asarray(attributes["nodes_modes"])
    features = np.asarray(attributes["nodes_featureids"])
    values = np.take_along_axis(data, features[nodes], 1)
    splits = np.asarray(attributes["nodes_splits"])[nodes]
    result = np.zeros(nodes.shape, np.bool_)
    for mode, compare in enumerate(COMPARISONS):
        result |= (modes[nodes] == mode) & compare(values, splits)
    for node, members in zip(
        np.flatnonzero(modes == MEMBER), member_sets(attributes["membership_values"]), strict=False
    ):
        result |= (nodes == node) & np.isin(values, members)
    tracks = attributes["nodes_missing_value_tracks_true"]
    if tracks:
        result |= np.isnan(values) & (np.asarray(tracks)[nodes] != 0)
    return result


def leaves(data: Array, attributes: Mapping[str, Any]) -> NDArray[np.int64]:
    """Return the leaf that each row reaches in each tree, [rows, trees]."""
    names = ("nodes_truenodeids", "nodes_falsenodeids", "nodes_trueleafs", "nodes_falseleafs")
    on_true, on_false, true_leaf, false_leaf = (np.asarray(attributes[n], np.int64) for n in names)
    roots = np.asarray(attributes["tree_roots"], np.int64)
    place = np.repeat(roots[None], len(data), 0)
    arrived = np.zeros(place.shape, np.bool_)
    for _ in range(len(on_true) + 1):
        if arrived.all():
            return place
        inner = np.where(arrived, 0, place)
        branch = goes_true(data, inner, attributes)
        ends = np.where(branch, true_leaf[inner], false_leaf[inner]) != 0
        step = np.where(branch, on_true[inner], on_false[inner])
        place = np.where(arrived, place, step)
        arrived = arrived | ends
    raise GraphError("TreeEnsemble", "a tree never reaches a leaf; give node numbers without loops")


def gathered(reached: NDArray[np.int64], attributes: Mapping[str, Any]) -> Array:
    """Return the aggregated leaf weights for each target, [rows, targets] in float64."""
    targets = np.asarray(attributes["leaf_targetids"], np.int64)[reached]
    weights = np.asarray(attributes["leaf_weights"]).astype(np.float64)[reached]
    count = attributes["n_targets"] or int(max(attributes["leaf_targetids"])) + 1
    kind = attributes["aggregate_function"]
    start = {MIN: np.inf, MAX: -np.inf}.get(kind, 0.0)
    result = np.full((len(reached), count), start)
    combine: Any = {MIN: np.minimum, MAX: np.maximum}.get(kind, np.add)
    combine.at(result, (np.arange(len(reached))[:, None], targets), weights)
    if kind == AVERAGE:
        result /= max(reached.shape[1], 1)
    return np.where(np.isinf(result), 0.0, result) if kind in (MIN, MAX) else result


def softmax_zero(values: Array) -> Array:
    """Return softmax in which zeros stay zeros."""
    zero = np.abs(values) <= NEARLY_ZERO
    weights = np.where(zero, 0.0, np.exp(values - values.max(axis=1, keepdims=True)))
    total = weights.sum(axis=1, keepdims=True)
    return np.where(total == 0, 0.5, weights / np.where(total == 0, 1, total))


def probit(values: Array) -> Array:
    """Return the normal quantile of each probability; NaN for what is none."""
    inside = (values > 0) & (values < 1)
    found = np.frompyfunc(NormalDist().inv_cdf, 1, 1)(np.where(inside, values, 0.5))
    ends = np.where(values == 0, -np.inf, np.where(values == 1, np.inf, np.nan))
    return np.where(inside, np.asarray(found, np.float64), ends)


TRANSFORMS: tuple[Callable[[Array], Array], ...] = (
    np.asarray,
    lambda values: softmax(values, 1),
    sigmoid,
    softmax_zero,
    probit,
)


@quiet
def evaluate_trees(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate TreeEnsemble."""
    data = np.asarray(inputs[0])
    scores = gathered(leaves(data, attributes), attributes)
    return [TRANSFORMS[attributes["post_transform"]](scores).astype(data.dtype)]


def infer_trees(node: Node) -> list[ValueType]:
    """Infer: a row of targets for each row."""
    shape = required_input(node, 0).shape
    count = node.attributes.get("n_targets") or int(max(node.attributes["leaf_targetids"])) + 1
    rows = UNKNOWN if shape is None else shape[0]
    return [ValueType(common_dtype(node, [0]), (rows, count))]


def tree_cases() -> list[Case]:
    """Return two trees of three nodes and one."""
    tree = {
        "tree_roots": [0, 3],
        "nodes_modes": np.asarray([0, 1, 3, 2], np.uint8),
        "nodes_featureids": [0, 1, 1, 2],
        "nodes_splits": np.asarray([0.1, -0.2, 0.3, 0.0], np.float32),
        "nodes_truenodeids": [1, 0, 2, 4],
        "nodes_trueleafs": [0, 1, 1, 1],
        "nodes_falsenodeids": [2, 1, 3, 5],
        "nodes_falseleafs": [0, 1, 1, 1],
        "leaf_targetids": [0, 1, 0, 1, 1, 0],
        "leaf_weights": np.arange(1, 7, dtype=np.float32),
        "n_targets": 2,
    }
    data = normal(160, 5, 3)
    return [
        Case("sum", [data], tree),
        Case("largest", [data], {**tree, "aggregate_function": 3, "post_transform": 1}),
    ]


NEEDED = {
    **{
        name: Attribute("ints", required=True)
        for name in (
            *("tree_roots", "nodes_featureids", "nodes_truenodeids", "nodes_trueleafs"),
            *("nodes_falsenodeids", "nodes_falseleafs", "leaf_targetids"),
        )
    },
    **{
        name: Attribute("tensor", required=True)
        for name in ("nodes_modes", "nodes_splits", "leaf_weights")
    },
}
SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "TreeEnsemble",
        (5,),
        ("X",),
        ("Y",),
        infer=infer_trees,
        evaluate=evaluate_trees,
        attributes={
            **NEEDED,
            "aggregate_function": Attribute("int", 1),
            "post_transform": Attribute("int", 0),
            "n_targets": Attribute("int"),
            "nodes_hitrates": Attribute("tensor"),
            "membership_values": Attribute("tensor"),
            "nodes_missing_value_tracks_true": Attribute("ints"),
        },
        domain="ai.onnx.ml",
        cases=tree_cases,
    ),
)
