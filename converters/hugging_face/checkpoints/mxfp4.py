"""gpt-oss: experts as `NAME_blocks` uint8 [experts, out, in / 32, 16] and `NAME_scales`.

Read only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.converters.hugging_face.checkpoints.checkpoint import Layout, Quantization
from halfbyte.converters.hugging_face.checkpoints.float8_parts import nothing
from halfbyte.converters.hugging_face.checkpoints.profile import CheckpointProfile
from halfbyte.converters.hugging_face.checkpoints.stored_weights import AGAIN, part_of, replaced
from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings.fp4 import MicroFloat4
from halfbyte.ir.part_views import ReshapedPart
from halfbyte.ir.profile import Profile
from halfbyte.ir.tensor import Part, Tensor

BLOCKS, SCALES = "_blocks", "_scales"


class Mxfp4Blocks:
    """Entry `mxfp4` of CHECKPOINTS."""

    def read(self, tensors: Mapping[str, Tensor], found: Quantization) -> dict[str, Tensor]:
        """Return the tensors with each quantized weight as one; see Checkpoint."""
        made: dict[str, Tensor] = {}
        gone: dict[str, str] = {}
        for name, blocks in tensors.items():
            stem = name.removesuffix(BLOCKS)
            if stem == name:
                continue
            scales = tensors.get(stem + SCALES)
            shape = blocks.shape
            if scales is None or len(shape) < 3 or shape[-1] != 16 or scales.shape != shape[:-1]:
                there = "no scales" if scales is None else f"scales {list(scales.shape)}"
                rule = f"has shape {list(shape)} and {there}, [..., groups, 16] and scales [..., "
                raise found.error(name, f"{rule}groups] were required; {AGAIN}")
            kinds = {part_of(tensor).dtype.name for tensor in (blocks, scales)}
            if kinds != {"uint8"}:
                raise found.error(name, f"is {sorted(kinds)}, uint8 was required; {AGAIN}")
            columns = 32 * shape[-2]
            rows = blocks.size // max(columns // 2, 1)
            parts: dict[str, Part] = {
                "codes": ReshapedPart(part_of(blocks), (rows, columns // 2)),
                "scales": ReshapedPart(part_of(scales), (rows, columns // 32)),
            }
            made[stem] = Tensor(stem, (*shape[:-2], columns), MicroFloat4(), parts)
            gone |= {name: stem, stem + SCALES: stem}
        return replaced(tensors, made, gone)

    def profile(self) -> Profile:
        """Return a profile of dense weights: the format is read only."""
        return CheckpointProfile("hf:mxfp4", nothing)

    def layout(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Layout:
        """Raise UnsupportedError: the format is read only."""
        raise UnsupportedError("writing gpt-oss files", "--to hf", ["compressed-tensors", "mlx"])


MXFP4_BLOCKS = Mxfp4Blocks()
