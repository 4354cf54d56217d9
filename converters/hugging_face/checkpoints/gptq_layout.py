"""Writing GPTQ: its arrays and its quantization_config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from halfbyte import __version__
from halfbyte.converters.hugging_face.checkpoints.checkpoint import (
    Description,
    Layout,
    StoredArray,
)
from halfbyte.converters.hugging_face.checkpoints.gathered import GatheredPart
from halfbyte.converters.hugging_face.checkpoints.schemes import (
    Scheme,
    exactly,
    module_of,
    schemes_of,
)
from halfbyte.converters.hugging_face.checkpoints.words import (
    WORD,
    WORD_BITS,
    as_words,
    pack_words,
    word_count,
)
from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.encodings.grid import group_count
from halfbyte.ir.streamed_parts import row_step
from halfbyte.ir.tensor import ArrayPart, Tensor

SETTINGS_FILE = "quantize_config.json"


def gptq_layout(tensors: Sequence[Tensor]) -> Layout:
    """Return how GPTQ stores tensors: v1 where all zero points are 2^(bits - 1), else v2."""
    schemes = schemes_of(tensors, "hf:gptq")
    v2 = not all(scheme.symmetric for scheme in schemes.quantized.values())
    said: dict[str, Any] = {
        "quant_method": "gptq",
        **_settings(schemes.base),
        "checkpoint_format": "gptq_v2" if v2 else "gptq",
        "lm_head": bool(schemes.head),
        "true_sequential": True,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"halfbyte:{__version__}"]},
    }
    dynamic = {f"+:{exactly(name)}": _settings(s) for name, s in schemes.others.items()}
    dynamic |= {f"-:{exactly(name)}": {} for name in schemes.floats}
    if dynamic:
        said["dynamic"] = dynamic
    files = {SETTINGS_FILE: said}
    return Layout(
        Description({"quantization_config": said}, files), lambda tensor: _arrays(tensor, v2)
    )


def _settings(scheme: Scheme) -> dict[str, Any]:
    return {
        "bits": scheme.bits,
        "group_size": scheme.group_size or -1,
        "desc_act": scheme.act_order,
        "sym": scheme.symmetric,
    }


def _arrays(tensor: Tensor, v2: bool) -> list[StoredArray]:
    """Return qweight, scales, qzeros and g_idx of a weight [out, in]."""
    encoding = tensor.encoding
    assert isinstance(encoding, Affine)
    out, columns = tensor.shape
    groups = group_count(columns, encoding.group_size)
    module, step = module_of(tensor), row_step(columns, WORD_BITS)
    words = word_count(columns, encoding.bits)

    def codes(start: int, stop: int) -> Array:
        packed: Array = as_words(tensor.parts["codes"].read(start, stop), words).T
        return packed

    def scales(start: int, stop: int) -> Array:
        stored: Array = tensor.parts["scales"].read(start, stop).T
        return stored

    order: Any = np.arange(columns, dtype=np.int32) // (encoding.group_size or columns)
    if encoding.act_order:
        order = np.asarray(tensor.parts["g_idx"].read()).astype(np.int32)
    dtype = tensor.parts["scales"].dtype
    return [
        StoredArray(f"{module}.qweight", GatheredPart(WORD, (words, out), step, codes)),
        StoredArray(f"{module}.scales", GatheredPart(dtype, (groups, out), step, scales)),
        StoredArray(f"{module}.qzeros", zero_words(tensor, 0 if v2 else 1)),
        StoredArray(f"{module}.g_idx", ArrayPart(order)),
    ]


def zero_words(tensor: Tensor, less: int) -> GatheredPart:
    """Return zero points less `less`, packed along the outputs: [groups, words]."""
    encoding = tensor.encoding
    assert isinstance(encoding, Affine)
    out, bits = tensor.rows, encoding.bits
    groups = group_count(tensor.columns, encoding.group_size)

    def words(start: int, stop: int) -> Array:
        first, last = start * WORD_BITS // bits, min(out, stop * WORD_BITS // bits)
        zeros = np.full((last - first, groups), 1 << (bits - 1), np.uint8)
        if not encoding.symmetric:
            zeros = tensor.parts["zero_points"].read(first, last)
            require_zeros(tensor.name, zeros, bits)
        stored = (zeros - np.uint8(less)) & np.uint8((1 << bits) - 1)
        return pack_words(np.ascontiguousarray(stored.T), bits)

    step = row_step(tensor.columns, WORD_BITS) * bits // WORD_BITS
    return GatheredPart(WORD, (groups, word_count(out, bits)), step, words)


def require_zeros(name: str, zeros: Array, bits: int) -> None:
    """Check that zero points are codes of `bits` bits.

    Raises:
        QuantizationError: one is not.
    """
    if zeros.size and int(zeros.max()) >= 1 << bits:
        rule = f"has zero point {int(zeros.max())}, {bits} bits hold 0..{(1 << bits) - 1}"
        raise QuantizationError(name, f"{rule}; choose a type of more bits")
