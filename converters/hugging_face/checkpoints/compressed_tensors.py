"""compressed-tensors: each module has a scheme, by its name or class, and each scheme a format.

`pack-quantized`: `weight_packed` [out, words] holds signed codes + 2^(bits - 1) along the row,
`weight_zero_point` [words, groups] zero points, packed down the outputs in the same way;
`weight_scale` [out, groups], `weight_shape`, for act-order `weight_g_idx` [in]. Words are a dense
stream of bits; releases up to 0.10 put whole codes into each word, which differs for 3, 5, 6 and 7
bits. `int-quantized`, `float-quantized`, `naive-quantized`: see `ct_plain.py`. How values between
layers are rounded is carried along; here they stay float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.converters.hugging_face.checkpoints.checkpoint import (
    ACTIVATIONS,
    Layout,
    Quantization,
)
from halfbyte.converters.hugging_face.checkpoints.compressed_tensors_float import (
    FLOAT_TYPES,
    GLOBAL,
    INPUT_GLOBAL,
    fp4_weight,
)
from halfbyte.converters.hugging_face.checkpoints.ct_activations import carried_activations
from halfbyte.converters.hugging_face.checkpoints.ct_config import Group, Groups
from halfbyte.converters.hugging_face.checkpoints.ct_layout import compressed_layout, holds
from halfbyte.converters.hugging_face.checkpoints.ct_plain import plain_weight, row_scales
from halfbyte.converters.hugging_face.checkpoints.ct_words import RowCodes, codes_in
from halfbyte.converters.hugging_face.checkpoints.profile import CheckpointProfile
from halfbyte.converters.hugging_face.checkpoints.stored_weights import (
    StoredWeight,
    by_module,
    part_of,
    replaced,
    require_scales,
)
from halfbyte.converters.hugging_face.checkpoints.words import (
    ByteWords,
    ColumnCodes,
    WordBytes,
    word_count,
)
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.profile import Profile
from halfbyte.ir.tensor import ArrayPart, Part, Tensor
from halfbyte.ir.transposed import TransposedPart

BITS = tuple(range(2, 9))
PACKED_ENDINGS = (
    *("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
    *(GLOBAL, INPUT_GLOBAL),
)
PLAIN_ENDINGS = ("weight", "weight_scale", "weight_zero_point")


class CompressedTensors:
    """Entry `compressed-tensors` of CHECKPOINTS."""

    def read(self, tensors: Mapping[str, Tensor], found: Quantization) -> dict[str, Tensor]:
        """Return the tensors with each quantized weight as one; see Checkpoint."""
        groups = Groups(found)
        made: dict[str, Tensor] = {}
        gone: dict[str, str] = {}
        for marker, endings in (("weight_packed", PACKED_ENDINGS), ("weight_scale", PLAIN_ENDINGS)):
            for module, held in by_module(tensors, marker, endings):
                if marker not in held or f"{module}.weight" in made:
                    continue
                weight = _weight(StoredWeight(module, held, found), groups.of(module))
                made[weight.name] = weight
                gone |= {f"{module}.{ending}": weight.name for ending in held}
        require_scales(tensors, made, "weight_scale", found)
        carried = carried_activations(tensors, gone, groups, found.settings)
        if carried:
            found.carried[ACTIVATIONS] = carried
            found.notes.append("values between layers stay float here, the config rounds them")
        scales = carried.get("scales", {})
        return {n: t for n, t in replaced(tensors, made, gone).items() if n not in scales}

    def profile(self) -> Profile:
        """Return what is held: 2 to 8 bits, linear layers only."""
        return CheckpointProfile("hf:compressed-tensors", holds, others=FLOAT_TYPES)

    def layout(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Layout:
        """Return how to store the tensors of an output; see Checkpoint."""
        return compressed_layout(tensors, config)


def _weight(stored: StoredWeight, group: Group) -> Tensor:
    if "weight_packed" in stored:
        return fp4_weight(stored, group) or _packed(stored, group)
    return plain_weight(stored, group)


def _packed(stored: StoredWeight, group: Group) -> Tensor:
    """Return the weight [out, in] of a pack-quantized module.

    Raises:
        FormatError: its arrays do not fit each other or the config.
    """
    words = stored.array("weight_packed", ("int32",))
    shape = stored.array("weight_shape", ("int64", "int32"), 1)
    numbers = np.asarray(part_of(shape).read()).reshape(-1)
    if len(numbers) != 2 or int(numbers.min()) < 1 or int(numbers[0]) != words.shape[0]:
        rule = f"holds {numbers.tolist()}, [{words.shape[0]}, inputs] was required"
        raise stored.found.error(f"{stored.module}.weight_shape", f"{rule}; download it again")
    out, columns = int(numbers[0]), int(numbers[1])
    bits = _bits(stored, group, words.shape[1], columns)
    dense = _is_dense(stored, words.shape[1], columns, bits)
    groups, size, scales = row_scales(stored, group, (out, columns))
    parts: dict[str, Part] = {"scales": scales}
    if dense:
        parts = {"codes": WordBytes(part_of(words), -(-columns * bits // 8)), **parts}
    else:
        parts = {"codes": RowCodes(part_of(words), bits, columns), **parts}
    if "weight_zero_point" in stored or group.weights.get("symmetric") is False:
        zeros = stored.array("weight_zero_point", ("int32",))
        width = word_count(out, bits) if dense else -(-out // codes_in(bits))
        stored.require_shape("weight_zero_point", (width, groups), "weight_shape and scales")
        words_of_zeros: Part = TransposedPart(part_of(zeros))
        if not dense:
            stream = RowCodes(words_of_zeros, bits, out)
            words_of_zeros = ByteWords(stream, word_count(out, bits))
        parts["zero_points"] = ColumnCodes(words_of_zeros, bits, out)
    order = stored.order("weight_g_idx", columns, groups, size)
    if order is not None:
        parts["g_idx"] = ArrayPart(order)
    zero: Any = "uint8" if "zero_points" in parts else "none"
    encoding = Affine(bits, size, zero, scales.dtype.name, order is not None)
    return Tensor(f"{stored.module}.weight", (out, columns), encoding, parts)


def _bits(stored: StoredWeight, group: Group, width: int, columns: int) -> int:
    said = group.weights.get("num_bits")
    if said is None:
        fitting = [bits for bits in BITS if word_count(columns, bits) == width]
        said = fitting[0] if len(fitting) == 1 else None
    if said not in BITS or isinstance(said, bool) or group.weights.get("type", "int") != "int":
        what = f"{said!r} bits of type {group.weights.get('type', 'int')!r}"
        rule = f"has {what}, 2 to 8 of 'int' were required; correct the config"
        raise stored.found.error(f"{stored.module}.weight_packed", rule)
    return int(said)


def _is_dense(stored: StoredWeight, width: int, columns: int, bits: int) -> bool:
    """Return whether codes are a dense stream, by the width of the words alone if that tells."""
    dense, whole = word_count(columns, bits), -(-columns // codes_in(bits))
    if width not in (dense, whole):
        rule = f"has {width} words a row, {dense} were required for {columns} codes of {bits} bits"
        name = f"{stored.module}.weight_packed"
        raise stored.found.error(name, f"{rule}; correct the config or download it again")
    if dense != whole:
        return width == dense
    release = str(stored.found.settings.get("version", "")).split(".")
    return not (
        release[0] == "0" and release[1:2] and release[1].isdigit() and int(release[1]) < 11
    )


COMPRESSED_TENSORS = CompressedTensors()
