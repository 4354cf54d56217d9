"""AWQ's `gemm` layout: `qweight` [in, out / 8], `qzeros` [groups, out / 8], `scales` [groups, out].

A word holds the codes of eight neighbouring outputs; nibble i, the lowest first, is that of output
ORDER[i]. Zero points lie in the same order and are stored as they are. Always 4 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte import __version__
from halfbyte.converters.hugging_face.checkpoints.checkpoint import (
    Description,
    Layout,
    Quantization,
    StoredArray,
)
from halfbyte.converters.hugging_face.checkpoints.gathered import GatheredPart
from halfbyte.converters.hugging_face.checkpoints.gptq import GPTQ
from halfbyte.converters.hugging_face.checkpoints.gptq_layout import require_zeros
from halfbyte.converters.hugging_face.checkpoints.profile import FLOATS, CheckpointProfile
from halfbyte.converters.hugging_face.checkpoints.schemes import Schemes, module_of, schemes_of
from halfbyte.converters.hugging_face.checkpoints.stored_weights import (
    StoredWeight,
    by_module,
    part_of,
    replaced,
    scale_dtype,
)
from halfbyte.converters.hugging_face.checkpoints.words import BYTE, WORD
from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings.affine import Affine, pack_bits, unpack_bits
from halfbyte.ir.encodings.encoding import Array, Encoding
from halfbyte.ir.encodings.grid import group_count
from halfbyte.ir.profile import Profile
from halfbyte.ir.roles import Role
from halfbyte.ir.streamed_parts import row_step
from halfbyte.ir.tensor import Part, Tensor
from halfbyte.ir.transposed import TransposedPart

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
BITS, MIDDLE = 4, 8
ALL_MIDDLE = 0x88888888
ENDINGS = ("qweight", "qzeros", "scales")


def pack_outputs(codes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return words [columns, outputs / 8] of codes [outputs, columns]."""
    outputs, columns = codes.shape
    lanes = codes.reshape(outputs // 8, 8, columns)
    words = np.zeros((outputs // 8, columns), np.uint32)
    for nibble, output in enumerate(ORDER):
        words |= lanes[:, output].astype(np.uint32) << np.uint32(4 * nibble)
    packed: NDArray[np.int32] = words.view(np.int32).T
    return packed


def unpack_outputs(words: Array) -> NDArray[np.uint8]:
    """Return codes [outputs, columns] of transposed words [outputs / 8, columns]."""
    unsigned = np.ascontiguousarray(words).view(np.uint32)
    codes = np.empty((unsigned.shape[0], 8, unsigned.shape[1]), np.uint8)
    for nibble, output in enumerate(ORDER):
        codes[:, output] = (unsigned >> np.uint32(4 * nibble)) & np.uint32(15)
    return codes.reshape(-1, unsigned.shape[1])


@dataclass(frozen=True)
class OutputNibbles:
    """Words [columns, outputs / 8] as rows of the outputs: a byte per code, or packed by two."""

    words: TransposedPart
    packed: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return uint8."""
        return BYTE

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (outputs, bytes of a row)."""
        words, columns = self.words.shape
        return 8 * words, -(-columns // 2) if self.packed else columns

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Return outputs [start, stop)."""
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        first = start // 8
        codes = unpack_outputs(self.words.read(first, -(-stop // 8)))
        codes = codes[start - 8 * first : stop - 8 * first]
        return pack_bits(codes, BITS) if self.packed else codes


class Awq:
    """Entry `awq` of CHECKPOINTS."""

    def read(self, tensors: Mapping[str, Tensor], found: Quantization) -> dict[str, Tensor]:
        """Return the tensors with each quantized weight as one; see Checkpoint."""
        version = found.settings.get("checkpoint_format") or found.settings.get("version") or "gemm"
        if str(version).startswith("gptq"):
            return GPTQ.read(tensors, found)
        if str(version).lower() not in ("gemm", "awq"):
            what = f"the AWQ layout {version!r}"
            raise UnsupportedError(what, str(found.where), ["gemm", "gptq"])
        made: dict[str, Tensor] = {}
        gone: dict[str, str] = {}
        for module, held in by_module(tensors, "qweight", ENDINGS):
            weight = _weight(StoredWeight(module, held, found))
            made[weight.name] = weight
            gone |= {f"{module}.{ending}": weight.name for ending in held}
        return replaced(tensors, made, gone)

    def profile(self) -> Profile:
        """Return what AWQ holds: 4 bits, linear layers only."""
        return CheckpointProfile("hf:awq", holds)

    def layout(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Layout:
        """Return how to store the tensors of an output; see Checkpoint."""
        schemes = schemes_of(tensors, "hf:awq")
        if schemes.others:
            name = min(schemes.others)
            sizes = [scheme.group_size or -1 for scheme in (schemes.others[name], schemes.base)]
            what = f"group size {sizes[0]} of {name!r} beside {sizes[1]}"
            raise UnsupportedError(what, "--to hf:awq", ["one group size for all weights"])
        return Layout(Description({"quantization_config": _settings(schemes, tensors)}), _arrays)


def holds(encoding: Encoding, tensor: Tensor) -> bool:
    """Whether AWQ holds a weight in an encoding: 4 bits, whole words, whole groups."""
    if not isinstance(encoding, Affine):
        return False
    whole = tensor.shape[-2] % 8 == 0
    groups = encoding.group_size == 0 or tensor.columns % encoding.group_size == 0
    plain = encoding.zero_point in ("none", "uint8") and not encoding.act_order
    return encoding.bits == BITS and plain and whole and groups


def _weight(stored: StoredWeight) -> Tensor:
    """Return a weight [out, in].

    Raises:
        FormatError: its arrays do not fit each other or the config.
    """
    said = stored.found.settings
    bits = said.get("bits", said.get("w_bit", BITS))
    if bits != BITS:
        rule = f"has {bits!r} bits, {BITS} were required in the gemm layout; correct the config"
        raise stored.found.error(f"{stored.module}.qweight", rule)
    words = stored.array("qweight", ("int32", "uint32"))
    zeros = stored.array("qzeros", ("int32", "uint32"))
    scales = stored.array("scales", FLOATS)
    columns, out = words.shape[0], 8 * words.shape[1]
    groups = scales.shape[0]
    stored.require_shape("scales", (groups, out), "qweight")
    stored.require_shape("qzeros", (groups, out // 8), "scales")
    asked = said.get("group_size", said.get("q_group_size"))
    size = stored.group_size(asked, columns, groups, "scales")
    parts: dict[str, Part] = {
        "codes": OutputNibbles(TransposedPart(part_of(words)), packed=True),
        "scales": TransposedPart(part_of(scales)),
    }
    read = np.asarray(part_of(zeros).read()).view(np.uint32)
    symmetric = bool(np.all(read == np.uint32(ALL_MIDDLE)))
    if not symmetric:
        parts["zero_points"] = OutputNibbles(TransposedPart(part_of(zeros)), packed=False)
    encoding = Affine(BITS, size, "none" if symmetric else "uint8", scale_dtype(scales))
    return Tensor(f"{stored.module}.weight", (out, columns), encoding, parts)


def _settings(schemes: Schemes, tensors: Sequence[Tensor]) -> dict[str, Any]:
    skipped: list[str] | None = None
    if schemes.floats:
        heads = [module_of(t) for t in tensors if t.role is Role.OUTPUT_HEAD and not schemes.head]
        skipped = [*schemes.floats, *heads]
    return {
        "quant_method": "awq",
        "bits": BITS,
        "group_size": schemes.base.group_size or -1,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": skipped,
        "meta": {"quantizer": [f"halfbyte:{__version__}"]},
    }


def _arrays(tensor: Tensor) -> list[StoredArray]:
    """Return qweight, scales and qzeros of a weight [out, in]."""
    encoding = tensor.encoding
    assert isinstance(encoding, Affine)
    out, columns = tensor.shape
    groups, step = group_count(columns, encoding.group_size), row_step(columns, 8)
    module = module_of(tensor)

    def codes(start: int, stop: int) -> Array:
        packed = tensor.parts["codes"].read(8 * start, 8 * stop)
        return pack_outputs(unpack_bits(packed, BITS, columns))

    def scales(start: int, stop: int) -> Array:
        stored: Array = tensor.parts["scales"].read(start, stop).T
        return stored

    def zeros(start: int, stop: int) -> Array:
        if encoding.symmetric:
            return np.full((groups, stop - start), np.uint32(ALL_MIDDLE)).view(np.int32)
        held = tensor.parts["zero_points"].read(8 * start, 8 * stop)
        require_zeros(tensor.name, held, BITS)
        return pack_outputs(held)

    dtype = tensor.parts["scales"].dtype
    words = (columns, out // 8)
    return [
        StoredArray(f"{module}.qweight", GatheredPart(WORD, words, step // 8, codes)),
        StoredArray(f"{module}.scales", GatheredPart(dtype, (groups, out), step, scales)),
        StoredArray(f"{module}.qzeros", GatheredPart(WORD, (groups, out // 8), step // 8, zeros)),
    ]


AWQ = Awq()
