"""Values read between positions, and blocks put back: grids, deformed convolution, Col2Im."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import dtype_of
from halfbyte.ir.graph import Dim, Graph, Node
from halfbyte.ir.ops.convolution import CONV_ATTRIBUTES, conv_dims, work_dtype
from halfbyte.ir.ops.interpolation import filter_weights
from halfbyte.ir.ops.sliding_windows import WINDOW_ATTRIBUTES, fold, padding, per_axis, window_sizes
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    common_dtype,
    known_ints,
    normal,
    required_input,
)

TAPS = {"nearest": (0,), "linear": (0, 1), "cubic": (-1, 0, 1, 2)}
CUBIC_A = -0.75
SHORT_MODES = {"bilinear": "linear", "bicubic": "cubic"}
PADDING_MODES = ("zeros", "border", "reflection")


def reflected(places: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """Return places mirrored at two borders until they lie between them."""
    span = high - low
    if span <= 0:
        return np.full_like(places, low)
    period = np.mod(places - low, 2 * span)
    return low + np.minimum(period, 2 * span - period)


def sample(
    data: Array,
    positions: Sequence[NDArray[np.float64]],
    mode: str,
    padding_mode: str = "zeros",
    align: bool = True,
) -> NDArray[np.float64]:
    """Return values [n, c, points] of data [n, c, *spatial] at positions [n, points] per axis.

    align: where reflection happens: at the centres of the border values, or at their outer edges.
    """
    spatial = data.shape[2:]
    edge = 0.0 if align else 0.5
    axes = []
    for place, length in zip(positions, spatial, strict=True):
        low, high = -edge, length - 1 + edge
        place = np.rint(place) if mode == "nearest" else place
        outside = (place < low) | (place > high)
        if padding_mode == "border":
            place = np.where(outside, np.clip(place, 0, length - 1), place)
        elif padding_mode == "reflection":
            place = np.where(outside, reflected(place, low, high), place)
        axes.append(axis_taps(place, length, mode, padding_mode, (low, high)))
    flat = data.reshape(*data.shape[:2], int(np.prod(spatial)))
    result = np.zeros((*data.shape[:2], positions[0].shape[1]), np.float64)
    for chosen in product(*axes):
        index: Any = 0
        weight: Any = 1.0
        for (at, factor), length in zip(chosen, spatial, strict=True):
            index = index * length + at
            weight = weight * factor
        values = np.take_along_axis(flat, index[:, None, :], axis=2).astype(np.float64)
        # A place that counts nothing must not turn an infinity into NaN.
        counted = np.where(weight[:, None, :] == 0, 0.0, values)
        result += counted * weight[:, None, :]
    return result


def axis_taps(
    place: NDArray[np.float64],
    length: int,
    mode: str,
    padding_mode: str,
    borders: tuple[float, float],
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Return for each neighbour on one axis its index and its weight, 0 for padding."""
    # A place too far for an index is outside; NaN is read as outside as well.
    base = np.floor(np.nan_to_num(np.clip(place, -4, length + 4), nan=-4.0))
    found = []
    for offset in TAPS[mode]:
        at = base + offset
        weight = np.ones_like(base)
        if mode != "nearest":
            weight = filter_weights(at - place, mode, CUBIC_A)
        inside = (at >= 0) & (at < length)
        if padding_mode == "reflection":
            at = np.trunc(np.where(inside, at, reflected(at, *borders)))
        elif padding_mode == "zeros":
            weight = np.where(inside, weight, 0.0)
        found.append((np.clip(at, 0, length - 1).astype(np.int64), weight))
    return found


def evaluate_grid_sample(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate GridSample; the last axis of the grid lists coordinates from the innermost axis."""
    data, grid = np.asarray(inputs[0]), np.asarray(inputs[1]).astype(np.float64)
    spatial, align = data.shape[2:], bool(attributes["align_corners"])
    shape = (*data.shape[:2], *grid.shape[1:-1])
    if 0 in (*shape, *spatial):
        return [np.zeros(shape, data.dtype)]
    points = grid.reshape(grid.shape[0], int(np.prod(shape[2:])), len(spatial))
    positions = []
    for axis, length in enumerate(spatial):
        given = points[..., len(spatial) - 1 - axis] + 1
        positions.append(given / 2 * (length - 1) if align else (given * length - 1) / 2)
    mode = SHORT_MODES.get(attributes["mode"], attributes["mode"])
    values = sample(data, positions, mode, attributes["padding_mode"], align)
    return [values.reshape(shape).astype(data.dtype)]


def infer_grid_sample(node: Node) -> list[ValueType]:
    """Infer: batch and channels of the data, the other axes of the grid.

    Raises:
        GraphError: a mode is unknown, or ranks do not fit.
    """
    modes = (*SHORT_MODES, *TAPS)
    for name, known in (("mode", modes), ("padding_mode", PADDING_MODES)):
        value = node.attributes.get(name)
        if value is not None and value not in known:
            raise GraphError(node.label, f"{name} is {value!r}; give one of {', '.join(known)}")
    data, grid = required_input(node, 0), required_input(node, 1)
    dtype = common_dtype(node, [0])
    if data.shape is None or grid.shape is None:
        return [ValueType(dtype, None)]
    rank = len(data.shape)
    last = grid.shape[-1] if grid.shape else UNKNOWN
    if rank < 3 or len(grid.shape) != rank or (isinstance(last, int) and last != rank - 2):
        raise GraphError(
            node.label, f"grid {list(grid.shape)} for rank {rank}; give [n, ..., {rank - 2}]"
        )
    return [ValueType(dtype, (*data.shape[:2], *grid.shape[1:-1]))]


def shorten_mode(graph: Graph, node: Node) -> bool:
    """Turn the mode names of GridSample-16 into those of GridSample-20."""
    mode = node.attributes.get("mode", "bilinear")
    node.attributes["mode"] = SHORT_MODES.get(mode, mode)
    node.since_version = 20
    return True


def infer_affine_grid(node: Node) -> list[ValueType]:
    """Infer: [n, *spatial, number of spatial axes] from a constant size."""
    dtype, size = common_dtype(node, [0]), required_input(node, 1)
    known = known_ints(size)
    if known is not None:
        return [ValueType(dtype, (known[0], *known[2:], len(known) - 2))]
    length = size.shape[0] if size.shape else UNKNOWN
    if not isinstance(length, int):
        return [ValueType(dtype, None)]
    return [ValueType(dtype, (*(UNKNOWN,) * (length - 1), length - 2))]


def evaluate_affine_grid(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate AffineGrid: evenly spaced positions, moved by a matrix per sample."""
    theta, size = np.asarray(inputs[0]), [int(v) for v in inputs[1]]
    lines = []
    for length in size[2:]:
        steps = np.arange(length, dtype=np.float64)
        if attributes["align_corners"]:
            lines.append(2 * steps / (length - 1) - 1 if length > 1 else steps * 0)
        else:
            lines.append((2 * steps + 1) / length - 1)
    places = np.meshgrid(*lines, indexing="ij")
    # coordinates from the innermost axis to the outermost, then 1
    points = np.stack([*reversed(places), np.ones(size[2:])], axis=-1)
    moved = np.einsum("...k,nik->n...i", points, theta.astype(np.float64))
    return [np.ascontiguousarray(moved.astype(theta.dtype))]


def infer_deform(node: Node) -> list[ValueType]:
    """Infer: the shape of a convolution.

    Raises:
        GraphError: the offsets do not fit the kernel.
    """
    shape, weight = conv_dims(node, 0, 1), required_input(node, 1).shape
    offsets = required_input(node, 2).shape
    if weight is not None and offsets is not None:
        groups = node.attributes.get("offset_group") or 1
        kernel = [d for d in weight[2:] if isinstance(d, int)]
        wanted = groups * int(np.prod(kernel)) * len(kernel)
        whole = len(kernel) == len(weight) - 2
        if whole and isinstance(offsets[1], int) and offsets[1] != wanted:
            raise GraphError(node.label, f"{offsets[1]} offsets per place, {wanted} required")
    return [ValueType(common_dtype(node, [0, 1, 2, 3, 4]), shape)]


def evaluate_deform(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate DeformConv: a convolution that reads beside its places, linearly in between."""
    data, weight, offset = (np.asarray(v) for v in inputs[:3])
    bias, mask = (*inputs[3:], None, None)[:2]
    rank, kernel, batch = data.ndim - 2, weight.shape[2:], data.shape[0]
    groups, size = attributes["offset_group"], int(np.prod(kernel))
    output = offset.shape[2:]
    shifts = offset.astype(np.float64).reshape(batch * groups, size, rank, *output)
    strides, dilations = (per_axis(attributes, n, rank) for n in ("strides", "dilations"))
    begin, _ = padding(attributes, rank)
    taps, places = np.indices(kernel).reshape(rank, size), size * int(np.prod(output))
    positions = []
    for axis in range(rank):
        start = np.arange(output[axis]) * strides[axis] - begin[axis]
        first = start.reshape(-1, *(1,) * (rank - 1 - axis))
        step = (taps[axis] * dilations[axis]).reshape(-1, *(1,) * rank)
        positions.append((shifts[:, :, axis] + first + step).reshape(batch * groups, places))
    grouped = data.reshape(batch * groups, data.shape[1] // groups, *data.shape[2:])
    columns = sample(grouped, positions, "linear")
    columns = columns.reshape(batch, groups, grouped.shape[1], size, *output)
    if mask is not None:
        factors = np.asarray(mask).astype(np.float64)
        columns = columns * factors.reshape(batch, groups, 1, size, *output)
    group = attributes["group"]
    rows = weight.astype(np.float64).reshape(group, weight.shape[0] // group, -1)
    result = rows @ columns.reshape(batch, group, rows.shape[2], int(np.prod(output)))
    result = result.reshape(batch, weight.shape[0], *output)
    if bias is not None:
        result = result + np.asarray(bias).astype(np.float64).reshape(-1, *(1,) * rank)
    return [result.astype(data.dtype)]


def infer_col2im(node: Node) -> list[ValueType]:
    """Infer: [n, channels, *image]."""
    data, dtype = required_input(node, 0), common_dtype(node, [0])
    image, block = (known_ints(required_input(node, i)) for i in (1, 2))
    if data.shape is None or image is None:
        return [ValueType(dtype, None)]
    channels: Dim = UNKNOWN
    if block is not None and isinstance(data.shape[1], int):
        size = int(np.prod(block))
        if data.shape[1] % size:
            raise GraphError(node.label, f"{data.shape[1]} rows are no multiple of {size}")
        channels = data.shape[1] // size
    return [ValueType(dtype, (data.shape[0], channels, *image))]


def evaluate_col2im(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Col2Im: add up the columns of all blocks where they lie in the image."""
    data = np.asarray(inputs[0])
    image, block = ([int(v) for v in inputs[i]] for i in (1, 2))
    windows = window_sizes(attributes, image, block)
    narrow = dtype_of(data) in ("float16", "bfloat16", "float32")
    work = work_dtype(dtype_of(data), data.size) if narrow else data.dtype
    channels = data.shape[1] // int(np.prod(block))
    columns = data.astype(work).reshape(data.shape[0], channels, *block, *windows.output)
    return [fold(columns, windows, image).astype(data.dtype, copy=False)]


def grid_cases() -> list[Case]:
    """Return linear, nearest and cubic sampling with each padding, and a volume."""
    x, grid = normal(250, 2, 3, 5, 4), normal(251, 2, 3, 6, 2)
    volume = [normal(252, 1, 2, 3, 4, 2), normal(253, 1, 2, 2, 3, 3)]
    return [
        Case("linear", [x, grid]),
        Case("nearest", volume, {"mode": "nearest", "padding_mode": "border"}),
        Case("cubic", [x, grid], {"mode": "cubic", "padding_mode": "reflection"}),
    ]


def affine_cases() -> list[Case]:
    """Return a plane and a volume."""
    flat, deep = np.asarray([2, 3, 4, 5]), np.asarray([1, 2, 3, 2, 4])
    return [
        Case("plane", [normal(254, 2, 2, 3), flat]),
        Case("volume", [normal(255, 1, 3, 4), deep], {"align_corners": 1}),
    ]


def deform_cases() -> list[Case]:
    """Return offsets in two groups with a mask and a bias."""
    x, weight = normal(256, 1, 4, 5, 5), normal(257, 2, 2, 2, 2)
    offset, bias = normal(258, 1, 16, 6, 6), normal(259, 2)
    mask = np.abs(normal(260, 1, 8, 6, 6))
    groups = {"group": 2, "offset_group": 2, "pads": [1, 1, 1, 1]}
    return [Case("groups", [x, weight, offset, bias, mask], groups)]


def col2im_cases() -> list[Case]:
    """Return overlapping blocks with padding."""
    inputs = [normal(261, 2, 12, 12), np.asarray([4, 5]), np.asarray([2, 3])]
    return [Case("overlap", inputs, {"pads": [0, 1, 0, 0], "strides": [1, 1]})]


GRID_ATTRIBUTES = {
    "align_corners": Attribute("int", 0),
    "mode": Attribute("string", "linear"),
    "padding_mode": Attribute("string", "zeros"),
}
FOLD_ATTRIBUTES = {name: WINDOW_ATTRIBUTES[name] for name in ("dilations", "pads", "strides")}
DEFORM_ATTRIBUTES = {n: a for n, a in CONV_ATTRIBUTES.items() if n != "auto_pad"} | {
    "offset_group": Attribute("int", 1)
}
SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "GridSample",
        (16,),
        ("X", "grid"),
        ("Y",),
        infer=infer_grid_sample,
        evaluate=evaluate_grid_sample,
        attributes=GRID_ATTRIBUTES | {"mode": Attribute("string", "bilinear")},
        upgrade=shorten_mode,
    ),
    OpSpec(
        "GridSample",
        (20, 22),
        ("X", "grid"),
        ("Y",),
        infer=infer_grid_sample,
        evaluate=evaluate_grid_sample,
        attributes=GRID_ATTRIBUTES,
        cases=grid_cases,
    ),
    OpSpec(
        "AffineGrid",
        (20,),
        ("theta", "size"),
        ("grid",),
        infer=infer_affine_grid,
        evaluate=evaluate_affine_grid,
        attributes={"align_corners": Attribute("int", 0)},
        cases=affine_cases,
    ),
    OpSpec(
        "DeformConv",
        (19, 22),
        ("X", "W", "offset", "B?", "mask?"),
        ("Y",),
        infer=infer_deform,
        evaluate=evaluate_deform,
        attributes=DEFORM_ATTRIBUTES,
        cases=deform_cases,
    ),
    OpSpec(
        "Col2Im",
        (18,),
        ("input", "image_shape", "block_shape"),
        ("output",),
        infer=infer_col2im,
        evaluate=evaluate_col2im,
        attributes=FOLD_ATTRIBUTES,
        cases=col2im_cases,
    ),
)
