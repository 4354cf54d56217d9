"""MLX: `weight` [out, words] uint32, `scales` and, in mode affine, `biases` [out, groups].

Codes lie along the row, lowest bits first. The modes mxfp4, mxfp8 and nvfp4 have scales of one byte
and no biases. Embeddings are quantized, too; which modules are, the names of the arrays say, how,
the shapes together with `quantization` of config.json (module by module where it says so). Experts
of a layer are one array [experts, out, words] below `switch_mlp`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.converters.hugging_face.checkpoints.checkpoint import Layout, Quantization
from halfbyte.converters.hugging_face.checkpoints.mlx_layout import (
    BITS,
    EXPERTS,
    FORMS,
    GROUP_SIZES,
    MODES,
    STACK,
    holds,
    mlx_layout,
)
from halfbyte.converters.hugging_face.checkpoints.part_forms import constant, viewed
from halfbyte.converters.hugging_face.checkpoints.profile import FLOATS, CheckpointProfile
from halfbyte.converters.hugging_face.checkpoints.stored_weights import (
    StoredWeight,
    by_module,
    part_of,
    replaced,
    scale_dtype,
)
from halfbyte.converters.hugging_face.checkpoints.words import WORD_BITS, WordBytes
from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.affine_offset import AffineOffset
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.encodings.fp4 import ScaledFloat4
from halfbyte.ir.part_views import matrix_of
from halfbyte.ir.profile import Profile
from halfbyte.ir.tensor import Part, Tensor

ENDINGS = ("weight", "scales", "biases")
AFFINE = "affine"


class Mlx:
    """Entry `mlx` of CHECKPOINTS."""

    def read(self, tensors: Mapping[str, Tensor], found: Quantization) -> dict[str, Tensor]:
        """Return the tensors with each quantized weight as one; see Checkpoint."""
        made: dict[str, Tensor] = {}
        gone: dict[str, str] = {}
        for module, held in by_module(tensors, "scales", ENDINGS):
            weight = _Weight(module, held, found).tensor()
            made[weight.name] = weight
            gone |= {f"{module}.{ending}": weight.name for ending in held}
        return _split(replaced(tensors, made, gone))

    def profile(self) -> Profile:
        """Return what MLX holds: affine codes, FP4 and FP8 modes, embeddings too."""
        return CheckpointProfile("hf:mlx", holds, True, False, FORMS)

    def layout(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Layout:
        """Return how to store the tensors of an output; see Checkpoint."""
        return mlx_layout(tensors)


def _split(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with each stack of experts as matrices named like checkpoints' own."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if STACK not in name or len(tensor.shape) != 3:
            found[name] = tensor
            continue
        for expert in range(tensor.shape[0]):
            single = name.replace(STACK, f"{EXPERTS}{expert}.")
            found[single] = matrix_of(tensor, expert).renamed(single)
    return found


class _Weight(StoredWeight):
    """One quantized weight as MLX stores it."""

    def settings(self) -> dict[str, Any]:
        """Return what the config says of this module: its own settings over the general ones."""
        own = self.found.settings.get(self.module)
        return {**self.found.settings, **(own if isinstance(own, dict) else {})}

    def tensor(self) -> Tensor:
        """Return the weight [out, in], or [experts, out, in].

        Raises:
            FormatError: its arrays do not fit each other or the config.
            UnsupportedError: the mode is not known.
        """
        mode = self.settings().get("mode") or AFFINE
        dims = len(self.held["weight"].shape) if "weight" in self else 2
        words = self.array("weight", ("uint32",), 3 if dims == 3 else 2)
        rows = words.shape[:-1]
        if mode == AFFINE:
            encoding, parts = self._affine(words, rows)
        elif isinstance(mode, str) and mode in MODES:
            encoding, parts = self._floats(mode, words, rows)
        else:
            raise UnsupportedError(
                f"mode {mode!r} of {self.module!r}", str(self.found.where), [AFFINE, *MODES]
            )
        columns = words.columns * WORD_BITS // _code_bits(encoding)
        return Tensor(f"{self.module}.weight", (*rows, columns), encoding, parts)

    def _affine(self, words: Tensor, rows: tuple[int, ...]) -> tuple[Encoding, dict[str, Part]]:
        scales = self.array("scales", FLOATS, len(words.shape))
        biases = self.array("biases", (scale_dtype(scales),), len(words.shape))
        self.require_shape("scales", (*rows, scales.columns), "weight")
        self.require_shape("biases", scales.shape, "scales")
        bits, group = self._grid(words.columns, scales.columns)
        parts: dict[str, Part] = {
            "codes": WordBytes(part_of(words), 4 * words.columns),
            "scales": part_of(scales),
            "biases": part_of(biases),
        }
        return AffineOffset(bits, group, scale_dtype(scales)), parts

    def _grid(self, words: int, groups: int) -> tuple[int, int]:
        """Return bits and columns of a group: as said, if the shapes agree, else by the shapes."""
        said = self.settings()
        bits, group = said.get("bits"), said.get("group_size")
        fitting = [
            (b, g)
            for b in BITS
            for g in GROUP_SIZES
            if words * WORD_BITS == b * g * groups
            and (bits is None or bits == b)
            and (group is None or group == g)
        ]
        if len(fitting) != 1:
            rule = (
                f"has {words} words and {groups} groups a row, bits {bits!r} and group_size "
                f"{group!r} of the config make others; correct the config or download it again"
            )
            raise self.found.error(f"{self.module}.weight", rule)
        return fitting[0]

    def _floats(
        self, mode: str, words: Tensor, rows: tuple[int, ...]
    ) -> tuple[Encoding, dict[str, Part]]:
        encoding = encoding_from_name(mode)
        columns = words.columns * WORD_BITS // _code_bits(encoding)
        scales = self.array("scales", ("uint8",), len(words.shape))
        groups = columns // encoding.block_shape[1]
        self.require_shape("scales", (*rows, groups), f"weight in mode {mode}")
        specs = encoding.part_specs(words.rows, columns)
        parts: dict[str, Part] = {
            name: viewed(part_of(source), specs[name].dtype)
            for name, source in (("codes", words), ("scales", scales))
        }
        if isinstance(encoding, ScaledFloat4):
            import numpy as np

            parts["tensor_scales"] = constant(np.float32(1), words.rows)
        return encoding, parts


def _code_bits(encoding: Encoding) -> int:
    return encoding.bits if isinstance(encoding, AffineOffset) else MODES[encoding.name]


MLX = Mlx()
