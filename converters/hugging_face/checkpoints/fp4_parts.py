"""FP4 weights with scales beside them, as several kinds of checkpoint store them."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from halfbyte.converters.hugging_face.checkpoints.checkpoint import StoredArray
from halfbyte.converters.hugging_face.checkpoints.part_forms import constant, number_of
from halfbyte.converters.hugging_face.checkpoints.schemes import module_of
from halfbyte.converters.hugging_face.checkpoints.stored_weights import (
    AGAIN,
    StoredWeight,
    part_of,
)
from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.encodings.fp4 import MicroFloat4, ScaledFloat4
from halfbyte.ir.encodings.grid import stored as stored_exactly
from halfbyte.ir.encodings.power_scales import NAN_BYTE
from halfbyte.ir.tensor import ArrayPart, ComputedPart, Part, Tensor

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
# Weights that servers load as one matrix with one factor: endings of module names.
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


def nvfp4_weight(stored: StoredWeight, codes: str, factor: str, divides: bool) -> Tensor:
    """Return an nvfp4 weight; divides: `factor` holds the reciprocal of the tensor's scale.

    Raises:
        FormatError: the arrays do not fit each other, or a scale is NaN.
    """
    packed = stored.array(codes, ("uint8",))
    rows, columns = packed.shape[0], 2 * packed.shape[1]
    scales = stored.array("weight_scale", ("float8_e4m3fn",))
    stored.require_shape("weight_scale", (rows, -(-columns // 16)), "groups of 16")
    held = stored.held.get(factor)
    whole = stored.array(factor, ("float32",), 0 if held is None else len(held.shape))
    if whole.size != 1:
        stored.require_shape(factor, (1,), "one scale for the tensor")
    value = np.float32(number_of(whole))
    with np.errstate(divide="ignore"):
        value = np.float32(1) / value if divides else value
    if not np.isfinite(value) or value == 0:
        rule = f"holds {number_of(whole)!r}, a finite number other than 0 was required; {AGAIN}"
        raise stored.found.error(f"{stored.module}.{factor}", rule)
    parts: dict[str, Part] = {
        "codes": part_of(packed),
        "scales": _checked(stored, part_of(scales), 0x7F),
        "tensor_scales": constant(value, rows),
    }
    return Tensor(f"{stored.module}.weight", (rows, columns), ScaledFloat4(), parts)


def mxfp4_weight(stored: StoredWeight, codes: str) -> Tensor:
    """Return an mxfp4 weight.

    Raises:
        FormatError: the arrays do not fit each other, or a scale is NaN.
    """
    packed = stored.array(codes, ("uint8",))
    rows, columns = packed.shape[0], 2 * packed.shape[1]
    scales = stored.array("weight_scale", ("uint8",))
    stored.require_shape("weight_scale", (rows, -(-columns // 32)), "groups of 32")
    parts: dict[str, Part] = {
        "codes": part_of(packed),
        "scales": _checked(stored, part_of(scales), NAN_BYTE),
    }
    return Tensor(f"{stored.module}.weight", (rows, columns), MicroFloat4(), parts)


def _checked(stored: StoredWeight, source: Part, nan: int) -> Part:
    """Return a part of which no byte may be `nan`, the sign bit of E4M3 left aside."""
    mask = 0x7F if source.dtype == E4M3 else 0xFF

    def read(start: int, stop: int) -> Array:
        found = np.ascontiguousarray(source.read(start, stop))
        if (found.view(np.uint8) & mask == nan).any():
            rule = "holds a scale that is NaN; download it again"
            raise stored.found.error(f"{stored.module}.weight_scale", rule)
        return found

    return ComputedPart(source.dtype, source.shape, read)


def shared_factors(tensors: Sequence[Tensor]) -> dict[str, np.float32]:
    """Return the tensor scale of each nvfp4 weight by name: the largest of those fused with it."""
    found: dict[str, np.float32] = {}
    groups: dict[str, list[str]] = {}
    for tensor in tensors:
        if isinstance(tensor.encoding, ScaledFloat4):
            factors = np.unique(tensor.parts["tensor_scales"].read())
            found[tensor.name] = np.float32(factors.max(initial=0))
            groups.setdefault(_fused_name(module_of(tensor)), []).append(tensor.name)
    for names in groups.values():
        largest = max(found[name] for name in names)
        found |= dict.fromkeys(names, largest)
    return found


def _fused_name(module: str) -> str:
    parent, _, last = module.rpartition(".")
    return next((f"{parent}.{names[0]}" for names in _FUSED if last in names), module)


def fp4_arrays(tensor: Tensor, factor: np.float32 | None) -> list[StoredArray]:
    """Return codes and scales of an FP4 weight as compressed-tensors has them."""
    module = module_of(tensor)
    arrays = [StoredArray(f"{module}.weight_packed", tensor.parts["codes"])]
    if factor is None:
        return [*arrays, StoredArray(f"{module}.weight_scale", tensor.parts["scales"])]
    whole = ArrayPart(np.array([np.float32(1) / factor], np.float32))
    return [
        *arrays,
        StoredArray(f"{module}.weight_scale", _rescaled(tensor, factor)),
        StoredArray(f"{module}.weight_global_scale", whole),
    ]


def _rescaled(tensor: Tensor, factor: np.float32) -> Part:
    """Return the scales of groups beside another scale of the tensor."""
    scales, own = tensor.parts["scales"], tensor.parts["tensor_scales"]

    def read(start: int, stop: int) -> Array:
        block, tensor_scale = scales.read(start, stop), own.read(start, stop)
        if (tensor_scale == factor).all():
            return block
        restated = (block.astype(np.float32) * (tensor_scale / factor)).astype(np.float32)
        try:
            return stored_exactly(restated, E4M3, "scales")
        except QuantizationError as error:
            rule = f"{error.rule} beside the scale of the weights it is fused with"
            raise QuantizationError(tensor.name, f"{rule}; choose mxfp4 for it") from error

    return ComputedPart(scales.dtype, scales.shape, read)
