"""Writing MLX: its arrays and its `quantization`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from halfbyte.converters.hugging_face.checkpoints.checkpoint import (
    Description,
    Layout,
    StoredArray,
)
from halfbyte.converters.hugging_face.checkpoints.part_forms import viewed
from halfbyte.converters.hugging_face.checkpoints.schemes import MLX, module_of, schemes_of
from halfbyte.converters.hugging_face.checkpoints.words import word_count
from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.affine import SCALE_SUFFIX, Affine
from halfbyte.ir.encodings.affine_offset import AffineOffset
from halfbyte.ir.encodings.encoding import Array, Encoding
from halfbyte.ir.encodings.fp4 import ScaledFloat4
from halfbyte.ir.encodings.ggml_fp4 import MXFP4, NVFP4
from halfbyte.ir.encodings.grid import stored
from halfbyte.ir.encodings.transcode import transcode
from halfbyte.ir.part_views import StackedPart
from halfbyte.ir.tensor import ComputedPart, Part, Tensor

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
# Modes of one-byte scales, which are our names of the same encodings -> bits of a code.
MODES = {"mxfp4": 4, "mxfp8": 8, "nvfp4": 4}
EXPERTS, STACK = ".experts.", ".switch_mlp."
UINT32 = np.dtype(np.uint32)
FORMS: tuple[Encoding, ...] = (
    *(AffineOffset(b, g, scale) for b in BITS for g in GROUP_SIZES for scale in SCALE_SUFFIX),
    *(encoding_from_name(mode) for mode in MODES),
    MXFP4(),
    NVFP4(),
)


def holds(encoding: Encoding, tensor: Tensor) -> bool:
    """Whether a weight in an encoding can be restated in MLX's groups, which are whole.

    Scales of `nvfp4` chosen anew need a scale of the tensor, which MLX has no place for.
    """
    form = mlx_form(encoding)
    if encoding == ScaledFloat4() and tensor.encoding not in (ScaledFloat4(), NVFP4()):
        return False
    return form is not None and tensor.columns % form.block_shape[1] == 0


def mlx_form(encoding: Encoding) -> Encoding | None:
    """Return the encoding in which MLX holds the same values, None where there is none.

    Zero points other than the middle need offsets of float32 to be exact.
    """
    if isinstance(encoding, MXFP4):
        return encoding_from_name("mxfp4")
    if isinstance(encoding, NVFP4):
        return ScaledFloat4()
    if not isinstance(encoding, Affine):
        return encoding if encoding in FORMS else None
    group = next((g for g in (128, 64, 32) if encoding.group_size % g == 0), 0)
    known = encoding.bits in BITS and encoding.group_size and group and not encoding.act_order
    if not known or encoding.zero_point == "float":
        return None
    scale = encoding.scale_dtype if encoding.symmetric else "float32"
    return AffineOffset(encoding.bits, group, scale)


def mlx_layout(tensors: Sequence[Tensor]) -> Layout:
    """Return how MLX stores tensors: general settings are those of most weights."""
    forms = {tensor.name: _restated(tensor) for tensor in tensors if tensor.encoding.is_quantized}
    schemes = schemes_of(list(forms.values()), MLX)
    names = {scheme: name for name, scheme in schemes.quantized.items()}
    said = _settings(forms[f"{names[schemes.base]}.weight"].encoding)
    for module in schemes.quantized:
        own = _settings(forms[f"{module}.weight"].encoding)
        if own != said:
            said = {**said, module.replace(EXPERTS + "0.", STACK): own}
    base = {key: value for key, value in said.items() if not isinstance(value, dict)}
    said = {key: value for key, value in said.items() if value != base}
    stacks = _stacks(forms)

    def arrays(tensor: Tensor) -> list[StoredArray]:
        if tensor.name in stacks:
            return _arrays(*stacks[tensor.name])
        if EXPERTS in tensor.name:
            return []
        form = forms[tensor.name]
        return _arrays(module_of(form), [form])

    config = {"quantization": said, "quantization_config": said}
    return Layout(Description(config), arrays)


def _settings(encoding: Encoding) -> dict[str, Any]:
    if isinstance(encoding, AffineOffset):
        return {"group_size": encoding.group_size, "bits": encoding.bits, "mode": "affine"}
    size = encoding.block_shape[1]
    return {"group_size": size, "bits": MODES[encoding.name], "mode": encoding.name}


def _restated(tensor: Tensor) -> Tensor:
    form = mlx_form(tensor.encoding)
    assert form is not None
    return transcode(tensor, form)


def _stacks(forms: dict[str, Tensor]) -> dict[str, tuple[str, list[Tensor]]]:
    """Return by the name of each first expert: the stack's module and all its matrices."""
    found: dict[str, tuple[str, list[Tensor]]] = {}
    for name, tensor in forms.items():
        before, mark, after = name.partition(EXPERTS)
        number, _, rest = after.partition(".")
        if mark and number.isdigit():
            first = f"{before}{EXPERTS}0.{rest}"
            module = f"{before}{STACK}{rest}".removesuffix(".weight")
            found.setdefault(first, (module, []))[1].append(tensor)
    return found


def _arrays(module: str, matrices: Sequence[Tensor]) -> list[StoredArray]:
    """Return weight, scales and biases of one matrix, or of a stack of them."""
    encoding = matrices[0].encoding
    bits = encoding.bits if isinstance(encoding, AffineOffset) else MODES[encoding.name]
    columns = matrices[0].columns
    if columns * bits % 32:
        rule = f"has rows of {columns} codes of {bits} bits, whole words were required"
        raise QuantizationError(matrices[0].name, rule)
    parts: dict[str, list[Part]] = {"weight": [], "scales": []}
    for matrix in matrices:
        parts["weight"].append(viewed(matrix.parts["codes"], UINT32))
        if isinstance(encoding, AffineOffset):
            parts["scales"].append(matrix.parts["scales"])
            parts.setdefault("biases", []).append(matrix.parts["biases"])
        else:
            parts["scales"].append(viewed(_own_scales(matrix), np.dtype(np.uint8)))
    assert parts["weight"][0].shape[1] == word_count(columns, bits)
    return [StoredArray(f"{module}.{end}", *_stacked(sources)) for end, sources in parts.items()]


def _stacked(sources: list[Part]) -> tuple[Part, tuple[int, ...] | None]:
    if len(sources) == 1:
        return sources[0], None
    return StackedPart(tuple(sources)), (len(sources), *sources[0].shape)


def _own_scales(tensor: Tensor) -> Part:
    """Return the part `scales`; MLX has no scale for a matrix, so it goes into those of groups."""
    scales = tensor.parts["scales"]
    if not isinstance(tensor.encoding, ScaledFloat4):
        return scales
    factors = tensor.parts["tensor_scales"]

    def read(start: int, stop: int) -> Array:
        block = scales.read(start, stop).astype(np.float32) * factors.read(start, stop)
        try:
            return stored(block, scales.dtype, "scales times the scale of the tensor")
        except QuantizationError as error:
            rule = f"{error.rule}; choose mxfp4, NVFP4 or affine codes for MLX"
            raise QuantizationError(tensor.name, rule) from error

    return ComputedPart(scales.dtype, scales.shape, read)
