"""Normalizations over the last axes, alone or with the residual addition before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import dtype_name, numpy_dtype
from halfbyte.ir.graph import Dim, Node
from halfbyte.ir.ops.spec import (
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    adapts,
    axis_of,
    broadcast,
    common_dtype,
    input_at,
    normal,
    required_input,
)


def _check_scale(node: Node, index: int, shape: tuple[Dim, ...] | None) -> None:
    scale = input_at(node, index)
    if scale is None or scale.shape is None or shape is None:
        return
    axis = axis_of(node, node.attributes.get("axis", -1), len(shape))
    if broadcast(node, [scale.shape, shape[axis:]]) is not None and len(scale.shape) > len(shape):
        raise GraphError(node.label, f"scale has rank {len(scale.shape)}, at most {len(shape)}")


def infer_normalization(node: Node) -> list[ValueType]:
    """Infer: first output like the input; mean and deviation of LayerNormalization after it."""
    data = required_input(node, 0)
    _check_scale(node, 1, data.shape)
    dtype = common_dtype(node, [0])
    rest = None
    if data.shape is not None:
        axis = axis_of(node, node.attributes.get("axis", -1), len(data.shape))
        rest = (*data.shape[:axis], *(1,) * (len(data.shape) - axis))
    stash = dtype_name(node.attributes.get("stash_type", 1))
    return [ValueType(dtype, data.shape)] + [ValueType(stash, rest)] * (len(node.outputs) - 1)


def infer_rms_normalization(node: Node) -> list[ValueType]:
    """Infer: like the input, in the dtype of the scale."""
    (kind,) = infer_normalization(node)
    scale = required_input(node, 1)
    return [ValueType(kind.dtype if adapts(scale) else scale.dtype, kind.shape)]


def infer_add_normalization(node: Node) -> list[ValueType]:
    """Infer: the normalized sum and the sum."""
    shape = broadcast(node, [required_input(node, 0).shape, required_input(node, 1).shape])
    _check_scale(node, 2, shape)
    return [ValueType(common_dtype(node, [0, 1]), shape)] * len(node.outputs)


def _axes(data: Array, axis: int) -> tuple[int, ...]:
    return tuple(range(axis % data.ndim, data.ndim))


def rms_norm(data: Array, scale: Array, epsilon: float, axis: int) -> Array:
    """Return data / sqrt(mean(data^2) + epsilon) * scale, computed in float64.

    16-bit data is rounded once more before the scale is applied, as ai.onnx has it.
    """
    wide = np.asarray(data, np.float64)
    mean = np.mean(wide * wide, axis=_axes(data, axis), keepdims=True)
    normalized = np.asarray(wide / np.sqrt(mean + epsilon))
    if data.dtype.itemsize < 4:
        normalized = normalized.astype(data.dtype).astype(np.float64)
    return np.asarray(normalized * np.asarray(scale, np.float64))


def evaluate_rms_norm(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate RMSNormalization."""
    data, scale = (np.asarray(v) for v in inputs)
    result = rms_norm(data, scale, attributes["epsilon"], attributes["axis"])
    return [result.astype(scale.dtype)]


def evaluate_add_rms_norm(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return RMSNormalization of the sum, and the sum."""
    total = np.asarray(inputs[0] + inputs[1])
    result = rms_norm(total, inputs[2], attributes["epsilon"], attributes["axis"])
    return [result.astype(total.dtype), total]


def layer_norm(
    data: Array, scale: Array, bias: Array | None, attributes: Mapping[str, Any]
) -> list[Array]:
    """Return the normalized data, the mean and 1 / deviation, computed in float64."""
    axes = _axes(data, attributes["axis"])
    wide = np.asarray(data, np.float64)
    mean = wide.mean(axis=axes, keepdims=True)
    centered = wide - mean
    inverse = 1.0 / np.sqrt(
        (centered * centered).mean(axis=axes, keepdims=True) + attributes["epsilon"]
    )
    result = centered * inverse * np.asarray(scale, np.float64)
    if bias is not None:
        result = result + np.asarray(bias, np.float64)
    stash = numpy_dtype(dtype_name(attributes["stash_type"]))
    return [result.astype(data.dtype), mean.astype(stash), inverse.astype(stash)]


def evaluate_layer_norm(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate LayerNormalization."""
    bias = inputs[2] if len(inputs) > 2 else None
    return layer_norm(inputs[0], inputs[1], bias, attributes)


def evaluate_add_layer_norm(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Return LayerNormalization of the sum, and the sum."""
    total = np.asarray(inputs[0] + inputs[1])
    bias = inputs[3] if len(inputs) > 3 else None
    return [layer_norm(total, inputs[2], bias, attributes)[0], total]


NORM_ATTRIBUTES = {
    "axis": Attribute("int", -1),
    "epsilon": Attribute("float", 1e-5),
    "stash_type": Attribute("int", 1),
}
DATA, SCALE, BIAS = (3, 5, 32), (32,), (32,)


SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "RMSNormalization",
        (23,),
        ("X", "scale"),
        ("Y",),
        infer=infer_rms_normalization,
        evaluate=evaluate_rms_norm,
        attributes=NORM_ATTRIBUTES,
        cases=lambda: [
            Case("plain", [normal(100, *DATA), normal(101, *SCALE)]),
            Case("heads", [normal(102, 2, 3, 4, 16), normal(103, 16)], {"epsilon": 1e-6}),
            Case("odd", [normal(104, 2, 37) * 100, normal(105, 37)]),
        ],
    ),
    OpSpec(
        "LayerNormalization",
        (17,),
        ("X", "Scale", "B?"),
        ("Y", "Mean?", "InvStdDev?"),
        infer=infer_normalization,
        evaluate=evaluate_layer_norm,
        attributes=NORM_ATTRIBUTES,
        cases=lambda: [
            Case("plain", [normal(106, *DATA), normal(107, *SCALE), normal(108, *BIAS)]),
            Case("no_bias", [normal(109, *DATA) + 5, normal(110, *SCALE)], {"epsilon": 1e-12}),
            Case("axis", [normal(111, 2, 3, 4), normal(112, 3, 4)], {"axis": 1}),
        ],
    ),
    OpSpec(
        "AddRMSNormalization",
        (1,),
        ("A", "B", "scale"),
        ("Y", "sum"),
        infer=infer_add_normalization,
        evaluate=evaluate_add_rms_norm,
        attributes=NORM_ATTRIBUTES,
        domain="halfbyte",
        cases=lambda: [
            Case("plain", [normal(113, *DATA), normal(114, *DATA), normal(115, *SCALE)], outputs=2)
        ],
    ),
    OpSpec(
        "AddLayerNormalization",
        (1,),
        ("A", "B", "scale", "bias?"),
        ("Y", "sum"),
        infer=infer_add_normalization,
        evaluate=evaluate_add_layer_norm,
        attributes=NORM_ATTRIBUTES,
        domain="halfbyte",
        cases=lambda: [
            Case(
                "plain",
                [normal(116, *DATA), normal(117, *DATA), normal(118, *SCALE), normal(119, *BIAS)],
                outputs=2,
            )
        ],
    ),
)
