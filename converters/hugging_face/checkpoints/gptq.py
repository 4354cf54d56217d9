"""GPTQ: `qweight` [in * bits / 32, out], `qzeros` [groups, out * bits / 32], `scales`, `g_idx`.

Codes and zero points are dense bit streams down their column or along their row, lowest bits
first. `gptq` (v1) stores each zero point less one, modulo 2^bits; `gptq_v2` stores it as it is.
`g_idx` [in] says the group of each input; where it counts them in order, nothing is kept of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.converters.hugging_face.checkpoints.checkpoint import Layout, Quantization
from halfbyte.converters.hugging_face.checkpoints.gptq_layout import gptq_layout
from halfbyte.converters.hugging_face.checkpoints.profile import FLOATS, CheckpointProfile
from halfbyte.converters.hugging_face.checkpoints.stored_weights import (
    StoredWeight,
    by_module,
    part_of,
    replaced,
    scale_dtype,
)
from halfbyte.converters.hugging_face.checkpoints.words import (
    WORD_BITS,
    ColumnCodes,
    WordBytes,
    pack_words,
    word_count,
)
from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.profile import Profile
from halfbyte.ir.tensor import ArrayPart, Part, Tensor
from halfbyte.ir.transposed import TransposedPart

BITS = (2, 3, 4, 8)
V1, V2 = "gptq", "gptq_v2"
PLANAR = "gptq_p"
ENDINGS = ("qweight", "qzeros", "scales", "g_idx")


def holds(encoding: Encoding, tensor: Tensor) -> bool:
    """Whether GPTQ holds a weight in an encoding: whole words, whole groups."""
    if not isinstance(encoding, Affine):
        return False
    out, columns = tensor.shape[-2], tensor.columns
    whole = columns * encoding.bits % WORD_BITS == 0 and out * encoding.bits % WORD_BITS == 0
    groups = encoding.group_size == 0 or columns % encoding.group_size == 0
    return encoding.bits in BITS and encoding.zero_point in ("none", "uint8") and whole and groups


class Gptq:
    """Entry `gptq` of CHECKPOINTS."""

    def read(self, tensors: Mapping[str, Tensor], found: Quantization) -> dict[str, Tensor]:
        """Return the tensors with each quantized weight as one; see Checkpoint."""
        made: dict[str, Tensor] = {}
        gone: dict[str, str] = {}
        for module, held in by_module(tensors, "qweight", ENDINGS):
            weight = _Weight(module, held, found).tensor()
            made[weight.name] = weight
            gone |= {f"{module}.{ending}": weight.name for ending in held}
        return replaced(tensors, made, gone)

    def profile(self) -> Profile:
        """Return what GPTQ holds: 2, 3, 4 and 8 bits, linear layers only."""
        return CheckpointProfile("hf:gptq", holds)

    def layout(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Layout:
        """Return how to store the tensors of an output; see Checkpoint."""
        return gptq_layout(tensors)


class _Weight(StoredWeight):
    """One quantized weight as GPTQ stores it."""

    def settings(self) -> dict[str, Any]:
        """Return what the config says of this module: the general settings, then its own."""
        said = dict(self.found.settings)
        dynamic = said.get("dynamic")
        for pattern, own in dynamic.items() if isinstance(dynamic, dict) else ():
            wanted = pattern.removeprefix("+:")
            if not wanted.startswith("-:") and isinstance(own, dict) and self._matches(wanted):
                return {**said, **own}
        return said

    def _matches(self, pattern: str) -> bool:
        try:
            return re.match(pattern, self.module) is not None
        except re.error as error:
            rule = f"has an override {pattern!r} that is no regular expression ({error})"
            raise self.found.error(self.module, f"{rule}; correct the config") from error

    def tensor(self) -> Tensor:
        """Return the weight [out, in].

        Raises:
            FormatError: its arrays do not fit each other or the config.
        """
        words = self.array("qweight", ("int32", "uint32"))
        zeros = self.array("qzeros", ("int32", "uint32"))
        scales = self.array("scales", FLOATS)
        groups, out = scales.shape
        bits = self._bits(zeros.columns, out)
        columns = self._columns(words.shape[0], bits)
        self.require_shape("qweight", (word_count(columns, bits), out), f"{bits} bits and scales")
        self.require_shape("qzeros", (groups, word_count(out, bits)), f"{bits} bits and scales")
        size = self.group_size(self.settings().get("group_size"), columns, groups, "scales")
        order = self.order("g_idx", columns, groups, size)
        codes = WordBytes(TransposedPart(part_of(words)), -(-columns * bits // 8))
        parts: dict[str, Part] = {"codes": codes, "scales": TransposedPart(part_of(scales))}
        lift = self._lift(bits, out)
        symmetric = lift is None
        if lift is not None:
            parts["zero_points"] = ColumnCodes(part_of(zeros), bits, out, lift)
        if order is not None:
            parts["g_idx"] = ArrayPart(order)
        zero: Any = "none" if symmetric else "uint8"
        encoding = Affine(bits, size, zero, scale_dtype(scales), order is not None)
        return Tensor(f"{self.module}.weight", (out, columns), encoding, parts)

    def _bits(self, width: int, out: int) -> int:
        said = self.settings().get("bits")
        fitting = [bits for bits in BITS if word_count(out, bits) == width]
        bits = said if said is not None else (fitting[0] if len(fitting) == 1 else None)
        if bits not in BITS or isinstance(bits, bool):
            rule = f"has {bits!r} bits, one of {list(BITS)} was required"
            raise self.found.error(f"{self.module}.qweight", f"{rule}; correct the config")
        return int(bits)

    def _columns(self, words: int, bits: int) -> int:
        """Return the inputs; a short last word, which `g_idx` tells, is padded."""
        most = words * WORD_BITS // bits
        if "g_idx" in self:
            held = self.array("g_idx", ("int32",), 1).shape[0]
            if word_count(held, bits) == words:
                return held
            self.require_shape("g_idx", (most,), f"{bits} bits and qweight")
        return most

    def _lift(self, bits: int, out: int) -> int | None:
        """Return what to add to stored zero points; None where all stand for 2^(bits - 1)."""
        lift = 0 if self._version(bits) in (V2, PLANAR) else 1
        words = np.asarray(part_of(self.held["qzeros"]).read()).view(np.uint32)
        for tried in (lift, 0) if self.settings().get("sym") else (lift,):
            middle = np.full((1, out), (1 << (bits - 1)) - tried, np.uint8)
            if np.all(words == pack_words(middle, bits).view(np.uint32)):
                if tried != lift:
                    note = f"{self.module}: zero points are those of {V2}, read so"
                    self.found.notes.append(note)
                return None
        return lift

    def _version(self, bits: int) -> str:
        said = self.found.settings
        version = said.get("checkpoint_format") or said.get("format") or V1
        # Bit planes of 2, 4 and 8 bits make the same words as codes side by side.
        planar = version == PLANAR and bits != 3
        if version not in (V1, V2) and not planar:
            what = f"checkpoint_format {version!r} of {bits} bits"
            raise UnsupportedError(what, str(self.found.where), [V1, V2])
        return str(version)


GPTQ = Gptq()
