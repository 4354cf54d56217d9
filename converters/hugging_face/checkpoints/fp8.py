"""Hugging Face's `fp8`: `weight` float8_e4m3fn [out, in] and `weight_scale_inv`, a factor of it.

One factor for each block of `weight_block_size` (edge blocks are partial), or one for the tensor
where that is null; float32, bfloat16, or powers of two (E8M0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.converters.hugging_face.checkpoints.checkpoint import (
    Description,
    Layout,
    Quantization,
    StoredArray,
)
from halfbyte.converters.hugging_face.checkpoints.float8_parts import (
    BLOCK,
    block_arrays,
    float8_weight,
)
from halfbyte.converters.hugging_face.checkpoints.profile import CheckpointProfile
from halfbyte.converters.hugging_face.checkpoints.schemes import schemes_of
from halfbyte.converters.hugging_face.checkpoints.stored_weights import (
    StoredWeight,
    by_module,
    replaced,
    require_scales,
)
from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.float8 import Float8
from halfbyte.ir.profile import Profile
from halfbyte.ir.tensor import Tensor

SCALE = "weight_scale_inv"
ENDINGS = ("weight", SCALE)
HELD = tuple(
    encoding_from_name(name) for name in ("fp8-block128", "fp8-block128-ue8m0", "fp8-tensor")
)


class Fp8:
    """Entry `fp8` of CHECKPOINTS."""

    def read(self, tensors: Mapping[str, Tensor], found: Quantization) -> dict[str, Tensor]:
        """Return the tensors with each quantized weight as one; see Checkpoint."""
        made: dict[str, Tensor] = {}
        gone: dict[str, str] = {}
        block = found.settings.get("weight_block_size", [BLOCK, BLOCK])
        for module, held in by_module(tensors, SCALE, ENDINGS):
            weight = float8_weight(StoredWeight(module, held, found), SCALE, block)
            made[weight.name] = weight
            gone |= {f"{module}.{ending}": weight.name for ending in held}
        require_scales(tensors, made, SCALE, found)
        return replaced(tensors, made, gone)

    def profile(self) -> Profile:
        """Return what is held: blocks of 128 x 128 or one scale for the tensor."""
        return CheckpointProfile("hf:fp8", lambda encoding, tensor: encoding in HELD, others=HELD)

    def layout(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Layout:
        """Return how to store the tensors of an output; see Checkpoint."""
        schemes = schemes_of(tensors, "hf:fp8")
        blocks = {_has_blocks(t.encoding) for t in tensors if t.encoding.is_quantized}
        if len(blocks) > 1:
            raise UnsupportedError(
                "blocks in some weights and one scale in others", "--to hf:fp8",
                ["fp8-block128 or fp8-tensor for all weights"],
            )  # fmt: skip
        said = {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": [BLOCK, BLOCK] if blocks == {True} else None,
            "modules_to_not_convert": [*schemes.floats, *([] if schemes.head else ["lm_head"])],
        }
        return Layout(Description({"quantization_config": said}), _arrays)


def _has_blocks(encoding: object) -> bool:
    return isinstance(encoding, Float8) and encoding.shared > 1


def _arrays(tensor: Tensor) -> list[StoredArray]:
    return block_arrays(tensor, SCALE, np.dtype(np.float32))


FP8 = Fp8()
