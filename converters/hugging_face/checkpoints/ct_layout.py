"""Writing compressed-tensors: its arrays and its quantization_config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.converters.hugging_face.checkpoints.checkpoint import (
    ACTIVATIONS,
    Description,
    Layout,
    StoredArray,
)
from halfbyte.converters.hugging_face.checkpoints.compressed_tensors_float import (
    FP4_FORMATS,
    fp4_arguments,
)
from halfbyte.converters.hugging_face.checkpoints.ct_activations import stored_scales
from halfbyte.converters.hugging_face.checkpoints.ct_config import (
    FLOAT,
    INTEGER,
    LINEAR,
    MIXED,
    PACKED,
)
from halfbyte.converters.hugging_face.checkpoints.ct_plain import (
    float_arrays,
    holds_bytes,
    integer_arrays,
)
from halfbyte.converters.hugging_face.checkpoints.fp4_parts import fp4_arrays, shared_factors
from halfbyte.converters.hugging_face.checkpoints.gptq_layout import require_zeros
from halfbyte.converters.hugging_face.checkpoints.schemes import (
    Scheme,
    Schemes,
    module_of,
    schemes_of,
)
from halfbyte.converters.hugging_face.checkpoints.words import (
    WORD,
    WORD_BITS,
    ByteWords,
    pack_words,
    word_count,
)
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.encoding import Array, Encoding
from halfbyte.ir.encodings.float8 import Float8
from halfbyte.ir.encodings.fp4 import Float4
from halfbyte.ir.encodings.grid import group_count
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import ArrayPart, Tensor

# The release whose packing is written: readers that know of two tell them apart by it.
VERSION = "0.20.0"
HEAD = "lm_head"


def holds(encoding: Encoding, tensor: Tensor) -> bool:
    """Whether a weight can have an encoding: whole groups, nothing reordered."""
    if not isinstance(encoding, Affine):
        return isinstance(encoding, Float4) or holds_bytes(encoding, tensor)
    whole = encoding.group_size == 0 or tensor.columns % encoding.group_size == 0
    return encoding.zero_point in ("none", "uint8") and whole and not encoding.act_order


def compressed_layout(tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Layout:
    """Return how compressed-tensors stores tensors."""
    schemes = schemes_of(tensors, "hf:compressed-tensors")
    carried = config.get(ACTIVATIONS) or {}
    activations = carried.get("input_activations")
    groups = _groups(schemes, activations)
    formats = {group["format"] for group in groups.values()}
    said = {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else MIXED,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "config_groups": groups,
        "ignore": _ignored(schemes, tensors, config),
        "kv_cache_scheme": carried.get("kv_cache_scheme"),
        "sparsity_config": {},
        "transform_config": {},
        "version": VERSION,
    }

    factors = shared_factors(tensors)

    def arrays(tensor: Tensor) -> list[StoredArray]:
        if isinstance(tensor.encoding, Float4):
            return fp4_arrays(tensor, factors.get(tensor.name))
        scheme = schemes.quantized[module_of(tensor)]
        kind = _format(scheme, activations)
        if kind == FLOAT:
            return float_arrays(tensor)
        return integer_arrays(tensor) if kind == INTEGER else _packed(tensor, scheme)

    inputs = any(group["input_activations"] is not None for group in groups.values())
    kept = {n for n, s in schemes.quantized.items() if not _rounds(s, activations)}
    kept |= {module_of(tensor) for tensor in tensors if not tensor.encoding.is_quantized}
    further = stored_scales(carried, lambda module: inputs and module not in kept)
    return Layout(Description({"quantization_config": said}), arrays, further)


def _format(scheme: Scheme, activations: Mapping[str, Any] | None) -> str:
    """Return the format of a scheme; servers take bytes of integers only with rounded inputs."""
    if scheme.name:
        return FP4_FORMATS.get(scheme.name, FLOAT)
    rounded = activations is not None and activations.get("type", "int") == "int"
    plain = scheme.bits == 8 and scheme.symmetric and not scheme.group_size
    return INTEGER if rounded and plain else PACKED


def _groups(schemes: Schemes, activations: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return config_groups: the scheme of most layers for all, others for layers by name."""
    found = {"group_0": _group(schemes.base, [LINEAR], activations)}
    for scheme in dict.fromkeys(schemes.others.values()):
        names = [name for name, other in schemes.others.items() if other == scheme]
        found[f"group_{len(found)}"] = _group(scheme, names, activations)
    return found


def _group(
    scheme: Scheme, targets: list[str], activations: Mapping[str, Any] | None
) -> dict[str, Any]:
    inputs = activations if _rounds(scheme, activations) else None
    return {
        "targets": targets,
        "weights": _weights(scheme),
        "input_activations": None if inputs is None else dict(inputs),
        "output_activations": None,
        "format": _format(scheme, activations),
    }


def _rounds(scheme: Scheme, activations: Mapping[str, Any] | None) -> bool:
    """Whether inputs of a scheme are rounded."""
    return _format(scheme, activations) == INTEGER or _are_floats(scheme, activations)


def _are_floats(scheme: Scheme, activations: Mapping[str, Any] | None) -> bool:
    """Whether inputs of a scheme are rounded to floats: float8 meets float8, float4 float4."""
    if not scheme.name or activations is None or activations.get("type") != "float":
        return False
    return (scheme.name in FP4_FORMATS) == (activations.get("num_bits") == 4)


def _weights(scheme: Scheme) -> dict[str, Any]:
    """Return the arguments that say how weights of a scheme are stored."""
    size, block, strategy = scheme.group_size, None, "group" if scheme.group_size else "channel"
    if scheme.name in FP4_FORMATS:
        return fp4_arguments(scheme.name)
    if scheme.name:
        encoding = encoding_from_name(scheme.name)
        assert isinstance(encoding, Float8)
        size = encoding.group_size
        if encoding.shared == 0:
            strategy = "tensor"
        elif encoding.shared > 1:
            size, block, strategy = 0, [encoding.shared, encoding.shared], "block"
        else:
            strategy = "group" if size else "channel"
    return {
        "num_bits": scheme.bits,
        "type": "float" if scheme.name else "int",
        "symmetric": scheme.symmetric,
        "strategy": strategy,
        "group_size": size or None,
        "block_structure": block,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }


def _ignored(schemes: Schemes, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> list[str]:
    heads = [module_of(t) for t in tensors if t.role is Role.OUTPUT_HEAD and not schemes.head]
    if not heads and not schemes.head and config.get("tie_word_embeddings"):
        heads = [HEAD]
    return [*schemes.floats, *heads]


def _packed(tensor: Tensor, scheme: Scheme) -> list[StoredArray]:
    """Return the arrays of a pack-quantized weight [out, in]."""
    encoding = tensor.encoding
    assert isinstance(encoding, Affine)
    out, columns = tensor.shape
    module = module_of(tensor)
    words = ByteWords(tensor.parts["codes"], word_count(columns, encoding.bits))
    found = [
        StoredArray(f"{module}.weight_packed", words),
        StoredArray(f"{module}.weight_scale", tensor.parts["scales"]),
        StoredArray(f"{module}.weight_shape", ArrayPart(np.array([out, columns], np.int64))),
    ]
    if not scheme.symmetric:
        groups = group_count(columns, encoding.group_size)
        zeros = StoredArray(f"{module}.weight_zero_point", _ZeroWords(tensor, groups))
        found.insert(2, zeros)
    return found


class _ZeroWords:
    """Zero points packed down the outputs: words [outputs * bits / 32, groups]."""

    def __init__(self, tensor: Tensor, groups: int) -> None:
        assert isinstance(tensor.encoding, Affine)
        self._tensor, self._encoding = tensor, tensor.encoding
        self.dtype = WORD
        self.shape = (word_count(tensor.rows, tensor.encoding.bits), groups)

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return words [start, stop) of every group."""
        bits = self._encoding.bits
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        # Codes straddle words: whole runs of 32 outputs, `bits` words, are packed and cut.
        first, last = (
            start // bits * WORD_BITS,
            min(self._tensor.rows, -(-stop // bits) * WORD_BITS),
        )
        zeros = np.full((last - first, self.shape[1]), 1 << (bits - 1), np.uint8)
        if not self._encoding.symmetric:
            zeros = self._tensor.parts["zero_points"].read(first, last)
            require_zeros(self._tensor.name, zeros, bits)
        packed = pack_words(np.ascontiguousarray(zeros.T), bits).T
        skipped = start - start // bits * bits
        kept: Array = packed[skipped : skipped + stop - start]
        return kept
