"""NVIDIA ModelOpt: FP8 and NVFP4, read only.

FP8: `weight` float8_e4m3fn, `weight_scale` float32, one for the tensor. NVFP4: `weight` uint8
[out, in / 2], `weight_scale` float8_e4m3fn [out, in / 16], `weight_scale_2` one float32 factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.converters.hugging_face.checkpoints.checkpoint import Layout, Quantization
from halfbyte.converters.hugging_face.checkpoints.float8_parts import float8_weight, nothing
from halfbyte.converters.hugging_face.checkpoints.fp4_parts import nvfp4_weight
from halfbyte.converters.hugging_face.checkpoints.profile import CheckpointProfile
from halfbyte.converters.hugging_face.checkpoints.stored_weights import (
    StoredWeight,
    by_module,
    replaced,
)
from halfbyte.errors import UnsupportedError
from halfbyte.ir.profile import Profile
from halfbyte.ir.tensor import Tensor

FACTOR, INPUT, BEFORE = "weight_scale_2", "input_scale", "pre_quant_scale"
ENDINGS = ("weight", "weight_scale", FACTOR, INPUT, BEFORE)


class ModelOpt:
    """Entry `modelopt` of CHECKPOINTS."""

    def read(self, tensors: Mapping[str, Tensor], found: Quantization) -> dict[str, Tensor]:
        """Return the tensors with each quantized weight as one; see Checkpoint."""
        made: dict[str, Tensor] = {}
        gone: dict[str, str] = {}
        inputs = 0
        for module, held in by_module(tensors, "weight_scale", ENDINGS):
            if BEFORE in held:
                raise UnsupportedError(
                    f"{BEFORE} of {module!r}, a factor of the layer's input", str(found.where),
                    ["FP8", "NVFP4"], "take the model it was made from",
                )  # fmt: skip
            stored = StoredWeight(module, held, found)
            if FACTOR in held:
                weight = nvfp4_weight(stored, "weight", FACTOR, False)
            else:
                weight = float8_weight(stored, "weight_scale", None)
            inputs += INPUT in held
            made[weight.name] = weight
            gone |= {f"{module}.{ending}": weight.name for ending in held}
        if inputs:
            found.notes.append(f"{inputs} scales of activations left out: activations stay float")
        return replaced(tensors, made, gone)

    def profile(self) -> Profile:
        """Return a profile of dense weights: the format is read only."""
        return CheckpointProfile("hf:modelopt", nothing)

    def layout(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Layout:
        """Raise UnsupportedError: the format is read only."""
        raise UnsupportedError("writing modelopt", "--to hf", ["compressed-tensors", "fp8"])


MODELOPT = ModelOpt()
