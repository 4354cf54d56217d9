"""Pools over windows and over all of space, and MaxUnpool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import FLOATING
from halfbyte.ir.graph import Dim, Graph, Node
from halfbyte.ir.ops.sliding_windows import (
    WINDOW_ATTRIBUTES,
    Windows,
    check_windows,
    padded,
    padding,
    per_axis,
    window_dims,
    window_sizes,
    window_steps,
)
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    common_dtype,
    input_at,
    known_ints,
    normal,
    required_input,
)

POOL_ATTRIBUTES = WINDOW_ATTRIBUTES | {
    "ceil_mode": Attribute("int", 0),
    "kernel_shape": Attribute("ints", required=True),
}
UNPOOL_ATTRIBUTES = {name: POOL_ATTRIBUTES[name] for name in ("kernel_shape", "pads", "strides")}


def infer_pool(node: Node) -> list[ValueType]:
    """Infer: [n, c, *output], and as many int64 indices where a second output is wanted.

    Raises:
        GraphError: rank or kernel do not fit.
    """
    data, dtype = required_input(node, 0), common_dtype(node, [0])
    shape = data.shape
    if shape is not None:
        kernel = node.attributes.get("kernel_shape") or ()
        if len(shape) < 3 or len(kernel) != len(shape) - 2:
            raise GraphError(
                node.label, f"rank {len(shape)} and kernel {list(kernel)}; give [n, c, ...] for it"
            )
        shape = (*shape[:2], *window_dims(node, shape[2:], kernel))
    return [ValueType(dtype, shape), ValueType("int64", shape)][: max(1, len(node.outputs))]


def least(dtype: np.dtype[Any]) -> Any:
    """Return the smallest value of a dtype, minus infinity for floats."""
    return -np.inf if str(dtype) in FLOATING else np.iinfo(dtype).min


def max_indices(data: Array, filled: Array, windows: Windows, column_major: bool) -> Array:
    """Return where each window has its first maximum, as positions in the flattened data."""
    spatial, rank = data.shape[2:], len(windows.kernel)
    order = range(rank) if column_major else reversed(range(rank))
    steps, step = [0] * rank, 1
    for axis in order:
        steps[axis], step = step, step * spatial[axis]
    best = np.full((*data.shape[:2], *windows.output), least(data.dtype), data.dtype)
    index = np.full(best.shape, -1, np.int64)
    for offset, values in window_steps(filled, windows):
        flat, inside = np.zeros((), np.int64), np.ones((), np.bool_)
        for axis, place in enumerate(offset):
            count, stride = windows.output[axis], windows.strides[axis]
            at = np.arange(count) * stride + place * windows.dilations[axis] - windows.begin[axis]
            column = at.reshape(-1, *(1,) * (rank - 1 - axis))
            flat = flat + column * steps[axis]
            inside = inside & (column >= 0) & (column < spatial[axis])
        better = inside & ((values > best) | (index < 0))
        best = np.where(better, values, best)
        index = np.where(better, flat, index)
    planes = np.arange(data.shape[0] * data.shape[1], dtype=np.int64) * step
    return np.asarray(index + planes.reshape(*data.shape[:2], *(1,) * rank))


def evaluate_max(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate MaxPool; padding never wins."""
    data = np.asarray(inputs[0])
    windows = window_sizes(attributes, data.shape[2:], attributes["kernel_shape"])
    filled = padded(data, windows, least(data.dtype))
    result = np.full((*data.shape[:2], *windows.output), least(data.dtype), data.dtype)
    for _, values in window_steps(filled, windows):
        np.maximum(result, values, out=result)
    if context.outputs < 2:
        return [result]
    return [result, max_indices(data, filled, windows, bool(attributes["storage_order"]))]


def window_counts(windows: Windows, spatial: Sequence[int], include_pad: bool) -> NDArray[Any]:
    """Return [*output]: how many positions of each window count, at least 1."""
    counts: NDArray[Any] = np.ones((), np.float64)
    for axis, length in enumerate(spatial):
        low = -windows.begin[axis] if include_pad else 0
        high = length + windows.end[axis] if include_pad else length
        start = np.arange(windows.output[axis]) * windows.strides[axis] - windows.begin[axis]
        places = start[:, None] + np.arange(windows.kernel[axis]) * windows.dilations[axis]
        counts = counts[..., None] * ((places >= low) & (places < high)).sum(axis=1)
    return np.asarray(np.maximum(counts, 1))


def evaluate_average(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate AveragePool in float64; padding counts where `count_include_pad` says so."""
    data = np.asarray(inputs[0])
    windows = window_sizes(attributes, data.shape[2:], attributes["kernel_shape"])
    total = np.zeros((*data.shape[:2], *windows.output), np.float64)
    for _, values in window_steps(padded(data, windows, 0), windows):
        total += values
    include = bool(attributes.get("count_include_pad"))
    counts = window_counts(windows, data.shape[2:], include)
    return [(total / counts).astype(data.dtype)]


def evaluate_lp(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate LpPool in float64; padding adds nothing."""
    data = np.asarray(inputs[0])
    windows = window_sizes(attributes, data.shape[2:], attributes["kernel_shape"])
    total = np.zeros((*data.shape[:2], *windows.output), np.float64)
    powers = np.abs(data.astype(np.float64)) ** attributes["p"]
    for _, values in window_steps(padded(powers, windows, 0), windows):
        total += values
    return [(total ** (1.0 / attributes["p"])).astype(data.dtype)]


def infer_global(node: Node) -> list[ValueType]:
    """Infer: [n, c, 1, ...]."""
    data, dtype = required_input(node, 0), common_dtype(node, [0])
    if data.shape is None:
        return [ValueType(dtype, None)]
    return [ValueType(dtype, (*data.shape[:2], *(1,) * (len(data.shape) - 2)))]


def spatial_axes(data: Array) -> tuple[int, ...]:
    """Return the axes after batch and channel."""
    return tuple(range(2, data.ndim))


def evaluate_global_average(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return the mean over space, summed in float64."""
    data = np.asarray(inputs[0])
    wide = data.astype(np.float64)
    return [wide.mean(axis=spatial_axes(data), keepdims=True).astype(data.dtype)]


def evaluate_global_max(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return the maximum over space."""
    data = np.asarray(inputs[0])
    return [data.max(axis=spatial_axes(data), keepdims=True)]


def evaluate_global_lp(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return the p-norm over space, summed in float64."""
    data, p = np.asarray(inputs[0]), attributes["p"]
    powers = np.abs(data.astype(np.float64)) ** p
    total = powers.sum(axis=spatial_axes(data), keepdims=True)
    return [(total ** (1.0 / p)).astype(data.dtype)]


def unpooled_lengths(attributes: Mapping[str, Any], spatial: Sequence[int]) -> tuple[int, ...]:
    """Return the lengths of the data that a pool with these attributes made `spatial` of."""
    rank = len(spatial)
    strides, (before, after) = per_axis(attributes, "strides", rank), padding(attributes, rank)
    kernel = attributes["kernel_shape"]
    return tuple(
        (spatial[i] - 1) * strides[i] + kernel[i] - before[i] - after[i] for i in range(rank)
    )


def infer_unpool(node: Node) -> list[ValueType]:
    """Infer: the given output shape, else the inverse of a pool's."""
    shape, dtype = required_input(node, 0).shape, common_dtype(node, [0])
    required_input(node, 1)
    given = input_at(node, 2)
    if given is not None:
        wanted = known_ints(given)
        return [ValueType(dtype, None if wanted is None else tuple(wanted))]
    if shape is None:
        return [ValueType(dtype, None)]
    check_windows(node, len(shape) - 2, None)
    spatial: tuple[Dim, ...] = (UNKNOWN,) * (len(shape) - 2)
    lengths = [d for d in shape[2:] if isinstance(d, int)]
    if len(lengths) == len(spatial):
        spatial = unpooled_lengths(node.attributes, lengths)
    return [ValueType(dtype, (*shape[:2], *spatial))]


def evaluate_unpool(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Put values at their positions in zeros; a larger output holds them at its start."""
    data, indices = np.asarray(inputs[0]), np.asarray(inputs[1])
    shape = (*data.shape[:2], *unpooled_lengths(attributes, data.shape[2:]))
    result = np.zeros(int(np.prod(shape)), data.dtype)
    result[indices.reshape(-1)] = data.reshape(-1)
    result = result.reshape(shape)
    if len(inputs) < 3 or inputs[2] is None:
        return [result]
    wanted = [int(v) for v in inputs[2]]
    larger = np.zeros(wanted, data.dtype)
    common = tuple(slice(0, min(a, b)) for a, b in zip(shape, wanted, strict=True))
    larger[common] = result[common]
    return [larger]


def integral_power(version: int) -> Callable[[Graph, Node], bool]:
    """Return the upgrade of a floating `p` to an integer one, where it is one."""

    def upgrade(graph: Graph, node: Node) -> bool:
        power = float(node.attributes.get("p", 2.0))
        if not power.is_integer():
            return False
        node.attributes["p"] = int(power)
        node.since_version = version
        return True

    return upgrade


def pool_cases() -> list[Case]:
    """Return asymmetric padding, a partial last window, automatic padding of a line."""
    x = normal(220, 2, 3, 7, 6)
    partial = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}
    return [
        Case("pads", [x], {"kernel_shape": [3, 2], "pads": [1, 0, 2, 1], "strides": [2, 1]}),
        Case("partial", [x], partial),
        Case("same", [normal(221, 1, 2, 9)], {"kernel_shape": [4], "auto_pad": "SAME_LOWER"}),
    ]


def max_cases() -> list[Case]:
    """Return those of every pool, dilated windows with indices, and bytes."""
    square = {"kernel_shape": [2, 2], "dilations": [2, 2], "pads": [1, 1, 1, 1]}
    whole = np.arange(-60, 60, dtype=np.int8).reshape(1, 2, 6, 10)
    return [
        *pool_cases(),
        Case("indices", [normal(222, 2, 2, 6, 5)], square, outputs=2),
        Case("bytes", [whole], {"kernel_shape": [3, 3], "strides": [3, 3]}),
    ]


def average_cases() -> list[Case]:
    """Return those of every pool, and counted padding."""
    counted = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    return [*pool_cases(), Case("counted", [normal(223, 1, 2, 5, 4)], counted)]


def global_cases() -> list[Case]:
    """Return two and three spatial axes."""
    return [Case("plane", [normal(224, 2, 3, 5, 4)]), Case("volume", [normal(225, 1, 2, 3, 2, 4)])]


def unpool_cases() -> list[Case]:
    """Return positions within the pooled shape, and a larger output."""
    indices = np.asarray([[[[5, 7], [13, 15]]]], np.int64)
    square = {"kernel_shape": [2, 2], "strides": [2, 2]}
    return [
        Case("square", [normal(226, 1, 1, 2, 2), indices], square),
        Case("larger", [normal(226, 1, 1, 2, 2), indices, np.asarray([1, 1, 5, 5])], square),
    ]


P_INT, P_FLOAT = {"p": Attribute("int", 2)}, {"p": Attribute("float", 2.0)}


def pool(op: str, versions: tuple[int, ...], evaluate: Any, **parts: Any) -> OpSpec:
    """Return the spec of an operator from X to Y over windows, or over all of space."""
    common: dict[str, Any] = {
        "infer": infer_pool,
        "attributes": POOL_ATTRIBUTES,
        "cases": pool_cases,
        "outputs": ("Y",),
    }
    return OpSpec(op, versions, ("X",), evaluate=evaluate, **(common | parts))


def all_space(op: str, versions: tuple[int, ...], evaluate: Any, **parts: Any) -> OpSpec:
    """Return the spec of a pool over all of space."""
    parts = {"infer": infer_global, "attributes": {}, "cases": global_cases} | parts
    return pool(op, versions, evaluate, **parts)


SPECS: tuple[OpSpec, ...] = (
    pool(
        "MaxPool",
        (1, 8, 10, 11, 12, 22),
        evaluate_max,
        outputs=("Y", "Indices?"),
        attributes=POOL_ATTRIBUTES | {"storage_order": Attribute("int", 0)},
        cases=max_cases,
    ),
    pool(
        "AveragePool",
        (1, 7, 10, 11, 19, 22),
        evaluate_average,
        attributes=POOL_ATTRIBUTES | {"count_include_pad": Attribute("int", 0)},
        cases=average_cases,
    ),
    pool(
        "LpPool",
        (1,),
        evaluate_lp,
        attributes=POOL_ATTRIBUTES | P_FLOAT,
        upgrade=integral_power(2),
        cases=list,
    ),
    pool("LpPool", (2, 11, 18, 22), evaluate_lp, attributes=POOL_ATTRIBUTES | P_INT),
    all_space("GlobalAveragePool", (1, 22), evaluate_global_average),
    all_space("GlobalMaxPool", (1, 22), evaluate_global_max),
    all_space(
        "GlobalLpPool",
        (1,),
        evaluate_global_lp,
        attributes=P_FLOAT,
        upgrade=integral_power(2),
        cases=list,
    ),
    all_space("GlobalLpPool", (2, 22), evaluate_global_lp, attributes=P_INT),
    OpSpec(
        "MaxUnpool",
        (9, 11, 22),
        ("X", "I", "output_shape?"),
        ("output",),
        infer=infer_unpool,
        evaluate=evaluate_unpool,
        attributes=UNPOOL_ATTRIBUTES,
        cases=unpool_cases,
    ),
)
