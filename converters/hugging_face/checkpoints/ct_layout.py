"""Writing compressed-tensors: its arrays and its quantization_config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.converters.hugging_face.checkpoints.checkpoint import (
    Description,
    Layout,
    StoredArray,
)
from halfbyte.converters.hugging_face.checkpoints.ct_config import LINEAR, PACKED
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
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.encodings.grid import group_count
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import ArrayPart, Tensor

# The release whose packing is written: readers that know of two tell them apart by it.
VERSION = "0.20.0"
HEAD = "lm_head"


def holds(encoding: Affine, tensor: Tensor) -> bool:
    """Whether a weight can have an affine encoding: whole groups, nothing reordered."""
    whole = encoding.group_size == 0 or tensor.columns % encoding.group_size == 0
    return encoding.zero_point in ("none", "uint8") and whole and not encoding.act_order


def compressed_layout(tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Layout:
    """Return how compressed-tensors stores tensors."""
    schemes = schemes_of(tensors, "hf:compressed-tensors")
    said = {
        "quant_method": "compressed-tensors",
        "format": PACKED,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "config_groups": _groups(schemes),
        "ignore": _ignored(schemes, tensors, config),
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
        "version": VERSION,
    }
    mixed = {tensor.name for tensor in tensors if not _is_symmetric(tensor, schemes)}
    return Layout(
        Description({"quantization_config": said}),
        lambda tensor: _packed(tensor, tensor.name in mixed),
    )


def _is_symmetric(tensor: Tensor, schemes: Schemes) -> bool:
    scheme = schemes.quantized.get(module_of(tensor))
    return scheme is None or scheme.symmetric


def _groups(schemes: Schemes) -> dict[str, Any]:
    """Return config_groups: the scheme of most layers for all, others for layers by name."""
    found = {"group_0": _group(schemes.base, [LINEAR])}
    for scheme in dict.fromkeys(schemes.others.values()):
        names = [name for name, other in schemes.others.items() if other == scheme]
        found[f"group_{len(found)}"] = _group(scheme, names)
    return found


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    return {
        "targets": targets,
        "weights": {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": scheme.symmetric,
            "strategy": "group" if scheme.group_size else "channel",
            "group_size": scheme.group_size or None,
            "block_structure": None,
            "dynamic": False,
            "actorder": None,
            "observer": "minmax",
            "observer_kwargs": {},
        },
        "input_activations": None,
        "output_activations": None,
        "format": PACKED,
    }


def _ignored(schemes: Schemes, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> list[str]:
    heads = [module_of(t) for t in tensors if t.role is Role.OUTPUT_HEAD and not schemes.head]
    if not heads and not schemes.head and config.get("tie_word_embeddings"):
        heads = [HEAD]
    return [*schemes.floats, *heads]


def _packed(tensor: Tensor, with_zeros: bool) -> list[StoredArray]:
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
    if with_zeros:
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
        return packed[skipped : skipped + stop - start]
