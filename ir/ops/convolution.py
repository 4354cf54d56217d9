"""Conv, ConvTranspose and the integer convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import dtype_of, numpy_dtype
from halfbyte.ir.graph import Dim, Node
from halfbyte.ir.ops.sliding_windows import (
    WINDOW_ATTRIBUTES,
    Windows,
    check_windows,
    fold,
    padded,
    padding,
    per_axis,
    same_padding,
    window_dims,
    window_sizes,
    window_view,
)
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    as_array,
    common_dtype,
    generator,
    input_at,
    normal,
    required_input,
)

CONV_ATTRIBUTES = WINDOW_ATTRIBUTES | {"group": Attribute("int", 1)}
TRANSPOSE_ATTRIBUTES = CONV_ATTRIBUTES | {
    "output_padding": Attribute("ints"),
    "output_shape": Attribute("ints"),
}
WIDE_PRODUCTS = 1 << 28
"""Products up to which sums of float32 run in float64."""
UNFOLDED_BYTES = 1 << 25
"""Memory for the values of windows side by side, at least one line of output."""


def convolve(data: Array, weight: Array, windows: Windows, group: int) -> Array:
    """Return the convolution in the dtype of its operands, which are floating.

    data: [n, c, *spatial]; weight: [m, c / group, *kernel]; returns [n, m, *output].
    """
    rows = weight.reshape(group, weight.shape[0] // group, -1)
    result = np.zeros((data.shape[0], *rows.shape[:2], *windows.output), data.dtype)
    view = window_view(padded(data, windows, 0), windows)
    rank = len(windows.kernel)
    order = (0, *range(1 + rank, 1 + 2 * rank), *range(1, 1 + rank))
    # A few lines of one sample at a time bound the memory of the unfolded windows.
    line = rows.shape[2] * group * int(np.prod(windows.output[1:])) * data.itemsize
    lines = max(1, UNFOLDED_BYTES // max(1, line))
    for place in range(data.shape[0] if result.size else 0):
        for start in range(0, windows.output[0], lines):
            part = view[place, :, start : start + lines]
            columns = part.transpose(order).reshape(group, rows.shape[2], -1)
            target = result[place, :, :, start : start + lines]
            target[...] = (rows @ columns).reshape(target.shape)
    return result.reshape(data.shape[0], weight.shape[0], *windows.output)


def work_dtype(dtype: str, products: int) -> np.dtype[Any]:
    """Return the dtype in which sums run: float64 but for many products of narrower values."""
    wide = dtype == "float64" or products <= WIDE_PRODUCTS
    return np.dtype(np.float64 if wide else np.float32)


def evaluate_conv(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Conv; sums run in float64 unless they are many."""
    data, weight = as_array(inputs[0]), as_array(inputs[1])
    bias = as_array(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else None
    windows = window_sizes(attributes, data.shape[2:], weight.shape[2:])
    products = weight.size * int(np.prod(windows.output)) * data.shape[0]
    work = work_dtype(dtype_of(data), products)
    result = convolve(data.astype(work), weight.astype(work), windows, attributes["group"])
    if bias is not None:
        result += bias.astype(work).reshape(-1, *(1,) * len(windows.kernel))
    return [result.astype(data.dtype, copy=False)]


def conv_dims(node: Node, data: int, weight: int) -> tuple[Dim, ...] | None:
    """Return the shape of a convolution's result.

    Raises:
        GraphError: ranks, channels or groups do not fit.
    """
    x, w = required_input(node, data).shape, required_input(node, weight).shape
    if x is None or w is None:
        return None
    group = max(1, node.attributes.get("group") or 1)
    if len(x) < 3 or len(w) != len(x):
        raise GraphError(
            node.label, f"ranks are {len(x)} and {len(w)}; give [n, c, ...] and [m, c, ...]"
        )
    if isinstance(x[1], int) and isinstance(w[1], int) and x[1] != w[1] * group:
        raise GraphError(
            node.label, f"{x[1]} channels meet a weight for {w[1] * group}; make them equal"
        )
    if isinstance(w[0], int) and w[0] % group:
        raise GraphError(node.label, f"{w[0]} outputs are no multiple of {group} groups")
    return (x[0], w[0], *window_dims(node, x[2:], w[2:]))


def infer_conv(node: Node) -> list[ValueType]:
    """Infer: [n, m, *output]."""
    return [ValueType(common_dtype(node, [0, 1, 2]), conv_dims(node, 0, 1))]


def transpose_sizes(
    attributes: Mapping[str, Any], spatial: Sequence[int], kernel: Sequence[int]
) -> tuple[Windows, tuple[int, ...]]:
    """Return the windows that the inputs are spread over, and the output lengths."""
    rank, mode = len(spatial), attributes.get("auto_pad") or "NOTSET"
    strides, dilations = (per_axis(attributes, n, rank) for n in ("strides", "dilations"))
    extra = attributes.get("output_padding") or [0] * rank
    wanted = attributes.get("output_shape")
    before, after = padding(attributes, rank)
    begins, ends, output = [], [], []
    for axis, length in enumerate(spatial):
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        full = strides[axis] * (length - 1) + extra[axis] + extent
        begin, end = (before[axis], after[axis]) if mode == "NOTSET" else (0, 0)
        if wanted or mode.startswith("SAME"):
            target = wanted[axis - rank] if wanted else length * strides[axis]
            begin, end = same_padding(max(0, full - target), mode)
            output.append(int(target))
        else:
            output.append(max(0, full - begin - end))
        begins.append(begin)
        ends.append(end)
    tuples = (kernel, strides, dilations, begins, ends, spatial)
    return Windows(*(tuple(int(v) for v in values) for values in tuples)), tuple(output)


def evaluate_transpose(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate ConvTranspose: every input spreads over a window of the output."""
    data, weight = as_array(inputs[0]), as_array(inputs[1])
    bias = as_array(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else None
    group, batch = attributes["group"], data.shape[0]
    windows, output = transpose_sizes(attributes, data.shape[2:], weight.shape[2:])
    work = work_dtype(dtype_of(data), weight.size * int(np.prod(data.shape[2:])) * batch)
    # rows: [group, outputs * kernel, inputs]
    rows = weight.reshape(group, weight.shape[0] // group, -1).swapaxes(1, 2).astype(work)
    values = data.reshape(batch, group, data.shape[1] // group, int(np.prod(data.shape[2:])))
    columns = rows @ values.astype(work)
    shape = (batch, group * weight.shape[1], *weight.shape[2:], *data.shape[2:])
    result = fold(columns.reshape(shape), windows, output)
    if bias is not None:
        result += bias.astype(work).reshape(-1, *(1,) * len(output))
    return [result.astype(data.dtype, copy=False)]


def infer_transpose(node: Node) -> list[ValueType]:
    """Infer: [n, outputs * group, *output].

    Raises:
        GraphError: ranks or channels do not fit.
    """
    x, w = required_input(node, 0).shape, required_input(node, 1).shape
    dtype = common_dtype(node, [0, 1, 2])
    if x is None or w is None:
        return [ValueType(dtype, None)]
    group, rank = node.attributes.get("group") or 1, len(x) - 2
    if rank < 1 or len(w) != len(x):
        raise GraphError(
            node.label, f"ranks are {len(x)} and {len(w)}; give [n, c, ...] and [c, m, ...]"
        )
    if isinstance(x[1], int) and isinstance(w[0], int) and x[1] != w[0]:
        raise GraphError(node.label, f"{x[1]} channels meet a weight for {w[0]}; make them equal")
    check_windows(node, rank, w[2:])
    spatial: tuple[Dim, ...] = (UNKNOWN,) * rank
    sizes = [d for d in (*x[2:], *w[2:]) if isinstance(d, int)]
    if len(sizes) == 2 * rank:
        spatial = transpose_sizes(node.attributes, sizes[:rank], sizes[rank:])[1]
    elif node.attributes.get("output_shape"):
        spatial = tuple(node.attributes["output_shape"][-rank:])
    outputs = w[1] * group if isinstance(w[1], int) else UNKNOWN
    return [ValueType(dtype, (x[0], outputs, *spatial))]


def integer_sums(
    data: Array, weight: Array, zeros: tuple[Any, Any], attributes: Mapping[str, Any]
) -> Array:
    """Return exact sums of products of 8-bit values less their zero points, as int64.

    zeros: of the data (a scalar) and of the weight (a scalar or one per output); None means 0.
    """
    x, w = data.astype(np.float64), weight.astype(np.float64)
    if zeros[0] is not None:
        x -= np.asarray(zeros[0]).astype(np.float64).reshape(())
    if zeros[1] is not None:
        shape = (-1, *(1,) * (weight.ndim - 1))
        w -= np.asarray(zeros[1]).astype(np.float64).reshape(shape)
    windows = window_sizes(attributes, data.shape[2:], weight.shape[2:])
    # float64 holds every sum of fewer than 2**36 such products exactly.
    return convolve(x, w, windows, attributes["group"]).astype(np.int64)


def evaluate_integer(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate ConvInteger exactly."""
    data, weight, x_zero, w_zero = (*inputs, None, None)[:4]
    sums = integer_sums(as_array(data), as_array(weight), (x_zero, w_zero), attributes)
    return [sums.astype(np.int32)]


def evaluate_qlinear(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate QLinearConv: exact sums, then one scaling, rounding half to even, and clipping."""
    data, x_scale, x_zero, weight, w_scale, w_zero, y_scale, y_zero = map(as_array, inputs[:8])
    sums = integer_sums(data, weight, (x_zero, w_zero), attributes)
    column = (-1, *(1,) * (data.ndim - 2))
    if len(inputs) > 8 and inputs[8] is not None:
        sums = sums + as_array(inputs[8]).astype(np.int64).reshape(column)
    factor = x_scale.astype(np.float64) * w_scale.astype(np.float64) / y_scale.astype(np.float64)
    scaled = np.rint(sums * factor.reshape(column)) + y_zero.astype(np.float64).reshape(())
    limits = np.iinfo(y_zero.dtype)
    return [np.clip(scaled, limits.min, limits.max).astype(y_zero.dtype)]


def infer_integer(node: Node) -> list[ValueType]:
    """Infer: int32 of the shape of a convolution."""
    return [ValueType("int32", conv_dims(node, 0, 1))]


def infer_qlinear(node: Node) -> list[ValueType]:
    """Infer: the dtype of the output's zero point, the shape of a convolution."""
    zero = input_at(node, 7)
    return [ValueType(None if zero is None else zero.dtype, conv_dims(node, 0, 3))]


def conv_cases() -> list[Case]:
    """Return padded, strided, grouped, dilated and one-dimensional convolutions."""
    x, bias = normal(200, 2, 4, 7, 6), normal(201, 6)
    return [
        Case("pads", [x, normal(202, 6, 4, 3, 3), bias], {"pads": [1, 0, 2, 1]}),
        Case("groups", [x, normal(203, 6, 2, 3, 2)], {"group": 2, "strides": [2, 1]}),
        Case("line", [normal(204, 1, 2, 9), normal(205, 3, 2, 3)], {"dilations": [2]}),
    ]


def transpose_cases() -> list[Case]:
    """Return strided, grouped transposes and a given output shape."""
    x = normal(206, 1, 4, 3, 4)
    shaped = {"strides": [3, 2], "output_shape": [10, 8]}
    return [
        Case("strides", [x, normal(207, 4, 2, 3, 3), normal(208, 2)], {"strides": [2, 1]}),
        Case("groups", [x, normal(209, 4, 2, 2, 2)], {"group": 2, "pads": [1, 0, 0, 1]}),
        Case("shaped", [x, normal(210, 4, 1, 3, 3)], shaped),
    ]


def small_integers(seed: int, dtype: str, *shape: int) -> Array:
    """Return values over the whole range of an 8-bit dtype."""
    limits = np.iinfo(numpy_dtype(dtype))
    return generator(seed).integers(limits.min, limits.max + 1, shape).astype(dtype)


def integer_cases() -> list[Case]:
    """Return zero points of both operands, per output for the weight."""
    x, w = small_integers(211, "uint8", 1, 2, 5, 5), small_integers(212, "int8", 3, 2, 3, 3)
    return [
        Case("plain", [x, w]),
        Case(
            "zero_points",
            [x, w, np.asarray(130, np.uint8), np.asarray([1, -2, 0], np.int8)],
            {"pads": [1, 1, 1, 1]},
        ),
    ]


def qlinear_cases() -> list[Case]:
    """Return a convolution with a bias and scales per output."""
    x, w = small_integers(213, "uint8", 1, 2, 5, 5), small_integers(214, "int8", 3, 2, 3, 3)
    w_scale, w_zero = np.asarray([0.01, 0.02, 0.03], np.float32), np.zeros(3, np.int8)
    x_scale, y_scale = np.asarray(0.02, np.float32), np.asarray(0.5, np.float32)
    zero, bias = np.asarray(128, np.uint8), np.asarray([100, -7, 3000], np.int32)
    parts = [x, x_scale, zero, w, w_scale, w_zero, y_scale, zero, bias]
    return [Case("bias", parts, {"strides": [2, 2], "pads": [1, 1, 0, 0]})]


SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "Conv",
        (1, 11, 22),
        ("X", "W", "B?"),
        ("Y",),
        infer=infer_conv,
        evaluate=evaluate_conv,
        attributes=CONV_ATTRIBUTES,
        cases=conv_cases,
    ),
    OpSpec(
        "ConvTranspose",
        (1, 11, 22),
        ("X", "W", "B?"),
        ("Y",),
        infer=infer_transpose,
        evaluate=evaluate_transpose,
        attributes=TRANSPOSE_ATTRIBUTES,
        cases=transpose_cases,
    ),
    OpSpec(
        "ConvInteger",
        (10,),
        ("x", "w", "x_zero_point?", "w_zero_point?"),
        ("y",),
        infer=infer_integer,
        evaluate=evaluate_integer,
        attributes=CONV_ATTRIBUTES,
        cases=integer_cases,
    ),
    OpSpec(
        "QLinearConv",
        (10,),
        (
            *("x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point"),
            *("y_scale", "y_zero_point", "B?"),
        ),
        ("y",),
        infer=infer_qlinear,
        evaluate=evaluate_qlinear,
        attributes=CONV_ATTRIBUTES,
        cases=qlinear_cases,
    ),
)
