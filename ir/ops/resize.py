"""Resize in all its modes, and Upsample, which became it.

Interpolation is separable: one axis is resized after the other, in float64, rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import FLOATING, INTEGERS
from halfbyte.ir.graph import Dim, Graph, Node
from halfbyte.ir.ops.interpolation import SUPPORT, Axis, resize_axis
from halfbyte.ir.ops.older_forms import Lift, older
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    axis_of,
    common_dtype,
    input_at,
    known_array,
    known_ints,
    normal,
    required_input,
)

CHOICES = {
    "mode": ("nearest", "linear", "cubic"),
    "nearest_mode": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    "keep_aspect_ratio_policy": ("stretch", "not_larger", "not_smaller"),
    "coordinate_transformation_mode": (
        *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners"),
        *("asymmetric", "tf_half_pixel_for_nn", "tf_crop_and_resize"),
    ),
}


def rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return values in another dtype; integers are rounded and clipped."""
    name = str(dtype)
    if name in INTEGERS:
        import ml_dtypes

        limits: Any = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
        return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
    return values.astype(dtype)


def aspect_scale(scales: Sequence[float], policy: str) -> float:
    """Return the one factor that keeps the aspect ratio."""
    return min(scales) if policy == "not_larger" else max(scales)


def resized_axes(
    shape: Sequence[int],
    attributes: Mapping[str, Any],
    roi: Sequence[float] | None,
    scales: Sequence[float] | None,
    sizes: Sequence[int] | None,
) -> dict[int, Axis]:
    """Return how each axis that is resized is resized."""
    rank = len(shape)
    given = attributes.get("axes")
    axes = [int(a) % rank for a in given] if given else list(range(rank))
    policy = attributes.get("keep_aspect_ratio_policy") or "stretch"
    if sizes is not None:
        factors = [n / shape[a] if shape[a] else 1.0 for n, a in zip(sizes, axes, strict=True)]
        lengths = [int(n) for n in sizes]
        if policy != "stretch":
            scale = aspect_scale(factors, policy)
            factors = [scale] * len(axes)
            lengths = [int(scale * shape[a] + 0.5) for a in axes]
    else:
        factors = [float(s) for s in (() if scales is None else scales)]
        lengths = [int(s * shape[a]) for s, a in zip(factors, axes, strict=True)]
    ends = [0.0] * len(axes) + [1.0] * len(axes) if roi is None else [float(v) for v in roi]
    return {
        a: Axis(factors[i], lengths[i], ends[i], ends[i + len(axes)]) for i, a in enumerate(axes)
    }


def operand(inputs: Sequence[Any], index: int) -> Any:
    """Return an input; an empty one stands for an omitted one."""
    value = inputs[index] if index < len(inputs) else None
    return None if value is None or np.asarray(value).size == 0 else np.asarray(value)


def evaluate_resize(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Resize.

    Raises:
        GraphError: neither or both of scales and sizes are given.
    """
    data = np.asarray(inputs[0])
    roi, scales, sizes = (operand(inputs, i) for i in (1, 2, 3))
    if (scales is None) == (sizes is None):
        raise GraphError("Resize", "exactly one of scales and sizes was required; give one")
    crop = attributes["coordinate_transformation_mode"] == "tf_crop_and_resize"
    axes = resized_axes(data.shape, attributes, roi if crop else None, scales, sizes)
    result = data
    if attributes["mode"] != "nearest":
        result = data.astype(np.float64)
    for place, axis in axes.items():
        whole = (axis.start, axis.end) == (0.0, 1.0)
        if whole and axis.length == data.shape[place] and np.isclose(axis.scale, 1.0, rtol=1e-9):
            continue
        if 0 in (axis.length, data.shape[place]):
            shape = (*result.shape[:place], axis.length, *result.shape[place + 1 :])
            result = np.zeros(shape, result.dtype)
        else:
            result = resize_axis(result, place, axis, attributes)
    return [result if result.dtype == data.dtype else rounded(result, data.dtype)]


def evaluate_plain(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Resize-10 and Upsample: positions are divided by the scale and rounded down."""
    mode = attributes["mode"]
    full = ASYMMETRIC | {"mode": "linear" if mode == "bilinear" else mode, "cubic_coeff_a": -0.75}
    return evaluate_resize([inputs[0], None, inputs[1]], full, context)


ASYMMETRIC = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def check_choices(node: Node) -> None:
    """Check the attributes that name one of a few things.

    Raises:
        GraphError: names the attribute.
    """
    for name, known in CHOICES.items():
        value = node.attributes.get(name)
        if value is not None and value not in known:
            raise GraphError(node.label, f"{name} is {value!r}; give one of {', '.join(known)}")
    dtype = required_input(node, 0).dtype
    numeric = dtype is None or dtype in FLOATING | INTEGERS
    if node.attributes.get("mode") in SUPPORT and not numeric:
        raise GraphError(node.label, f"{dtype} values cannot be interpolated; use mode nearest")


def given_input(node: Node, index: int) -> bool:
    """Whether an input is there and not an empty constant."""
    value = input_at(node, index)
    return value is not None and value.shape != (0,)


def infer_resize(node: Node) -> list[ValueType]:
    """Infer: lengths from constant scales or sizes; a symbol passes where nothing changes.

    Raises:
        GraphError: an attribute or the number of scales or sizes does not fit.
    """
    check_choices(node)
    data, dtype = required_input(node, 0), common_dtype(node, [0])
    if data.shape is None:
        return [ValueType(dtype, None)]
    rank = len(data.shape)
    axes = [axis_of(node, a, rank) for a in node.attributes.get("axes") or range(rank)]
    # Two inputs stand for Upsample and Resize-10: data and scales.
    at = 1 if node.op == "Upsample" or node.since_version == 10 else 2
    scales = known_array(input_at(node, at)) if given_input(node, at) else None
    sizes = known_ints(input_at(node, 3)) if at == 2 and given_input(node, 3) else None
    found = sizes if sizes is not None else scales
    if found is None:
        unknown = (UNKNOWN if i in axes else d for i, d in enumerate(data.shape))
        return [ValueType(dtype, tuple(unknown))]
    if len(found) != len(axes):
        raise GraphError(node.label, f"{len(found)} factors for {len(axes)} axes; give one each")
    if any(factor < 0 or (sizes is None and factor == 0) for factor in found):
        raise GraphError(node.label, f"factors are {list(found)}; give positive ones")
    dims: list[Dim] = list(data.shape)
    known = {a: d for a in axes if isinstance(d := dims[a], int)}
    stretch = (node.attributes.get("keep_aspect_ratio_policy") or "stretch") == "stretch"
    if len(known) == len(axes):
        shape = [known.get(i, 1) for i in range(rank)]
        floats = None if scales is None else [float(v) for v in scales]
        resized = resized_axes(shape, node.attributes, None, floats, sizes)
        return [
            ValueType(
                dtype, tuple(resized[i].length if i in resized else d for i, d in enumerate(dims))
            )
        ]
    for factor, axis in zip(found, axes, strict=True):
        if sizes is not None:
            dims[axis] = int(factor) if stretch else UNKNOWN
        elif axis in known:
            dims[axis] = int(float(factor) * known[axis])
        elif factor != 1:
            dims[axis] = UNKNOWN
    return [ValueType(dtype, tuple(dims))]


def plain_to_resize(graph: Graph, node: Node) -> bool:
    """Turn Upsample, or Resize-10, into the Resize of today."""
    data, scales = node.inputs
    graph.set_input(node, 1, None)
    node.inputs += [None]
    graph.set_input(node, 2, scales)
    mode = node.attributes.get("mode", "nearest")
    node.attributes = ASYMMETRIC | {"mode": "linear" if mode == "bilinear" else mode}
    node.op, node.since_version = "Resize", 13
    return data is not None


def omit_empty(graph: Graph, node: Node) -> bool:
    """Turn Resize-11, where inputs that are not given are empty, into Resize-13.

    Returns False where scales and sizes could both be meant, or for a coordinate mode that only
    Resize-11 has, unless half-pixel positions say the same.
    """
    attributes = dict(node.attributes)
    if attributes.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        if attributes.get("nearest_mode") != "floor":
            return False
        attributes["coordinate_transformation_mode"] = "half_pixel"
        attributes["nearest_mode"] = "round_prefer_ceil"
    if given_input(node, 2) and given_input(node, 3):
        return False
    for index in range(1, len(node.inputs)):
        if not given_input(node, index):
            graph.set_input(node, index, None)
    node.attributes, node.since_version = attributes, 13
    return True


def evaluate_sides(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate Upsample-1: the scales of height and width are attributes."""
    sides = [1.0, 1.0, attributes["height_scale"], attributes["width_scale"]]
    scales = np.asarray(sides, np.float32)
    return evaluate_plain([inputs[0], scales], attributes, context)


def infer_sides(node: Node) -> list[ValueType]:
    """Infer: height and width multiplied by their scales."""
    data, dtype = required_input(node, 0), common_dtype(node, [0])
    if data.shape is None:
        return [ValueType(dtype, None)]
    if len(data.shape) != 4:
        raise GraphError(node.label, f"rank {len(data.shape)}, 4 was required; give [n, c, h, w]")
    factors = (node.attributes["height_scale"], node.attributes["width_scale"])
    sides = (
        int(float(np.float32(f)) * d) if isinstance(d, int) else UNKNOWN
        for f, d in zip(factors, data.shape[2:], strict=True)
    )
    return [ValueType(dtype, (*data.shape[:2], *sides))]


def join_sides(graph: Graph, node: Node) -> bool:
    """Turn Upsample-1 into Upsample-7, which has one attribute for all scales."""
    sides = (node.attributes.pop("height_scale"), node.attributes.pop("width_scale"))
    node.attributes["scales"] = [1.0, 1.0, *map(float, sides)]
    if node.attributes.get("mode") == "bilinear":
        node.attributes["mode"] = "linear"
    node.since_version = 7
    return True


def floats(*values: float) -> Array:
    """Return a float32 vector."""
    return np.asarray(values, np.float32)


def resize_cases() -> list[Case]:
    """Return nearest, linear, cubic and antialiased resizing, by scales and by sizes."""
    x, half = normal(240, 1, 2, 5, 6), floats(1, 1, 0.6, 2.5)
    sides = np.asarray([7, 3], np.int64)
    smooth = {"mode": "cubic", "axes": [2, 3], "antialias": 1}
    return [
        Case("nearest", [x, None, half]),
        Case("linear", [x, None, half], {"mode": "linear"}),
        Case("cubic", [x, None, None, sides], smooth),
    ]


def upsample_cases() -> list[Case]:
    """Return nearest and linear upsampling."""
    inputs = [normal(241, 1, 2, 3, 4), floats(1, 1, 2, 1.5)]
    return [Case("nearest", inputs), Case("linear", inputs, {"mode": "linear"})]


MODE = {"mode": Attribute("string", "nearest")}
RESIZE_11 = MODE | {
    "coordinate_transformation_mode": Attribute("string", "half_pixel"),
    "cubic_coeff_a": Attribute("float", -0.75),
    "exclude_outside": Attribute("int", 0),
    "extrapolation_value": Attribute("float", 0.0),
    "nearest_mode": Attribute("string", "round_prefer_floor"),
}
UPSAMPLE = OpSpec(
    "Upsample",
    (9, 10),
    ("X", "scales"),
    ("Y",),
    infer=infer_resize,
    evaluate=evaluate_plain,
    attributes=MODE,
    cases=upsample_cases,
    upgrade=plain_to_resize,
)
SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "Upsample",
        (1,),
        ("X",),
        ("Y",),
        infer=infer_sides,
        evaluate=evaluate_sides,
        attributes=MODE
        | {
            "height_scale": Attribute("float", required=True),
            "width_scale": Attribute("float", required=True),
        },
        upgrade=join_sides,
    ),
    older(
        UPSAMPLE,
        (7,),
        {"scales": Lift(1, "float32")},
        {"scales": Attribute("floats", required=True)},
    ),
    UPSAMPLE,
    OpSpec(
        "Resize",
        (10,),
        ("X", "scales"),
        ("Y",),
        infer=infer_resize,
        evaluate=evaluate_plain,
        attributes=MODE,
        upgrade=plain_to_resize,
    ),
    OpSpec(
        "Resize",
        (11,),
        ("X", "roi", "scales", "sizes?"),
        ("Y",),
        infer=infer_resize,
        evaluate=evaluate_resize,
        attributes=RESIZE_11,
        upgrade=omit_empty,
    ),
    OpSpec(
        "Resize",
        (13, 18, 19),
        ("X", "roi?", "scales?", "sizes?"),
        ("Y",),
        infer=infer_resize,
        evaluate=evaluate_resize,
        attributes=RESIZE_11
        | {
            "antialias": Attribute("int", 0),
            "axes": Attribute("ints"),
            "keep_aspect_ratio_policy": Attribute("string", "stretch"),
        },
        cases=resize_cases,
    ),
)
