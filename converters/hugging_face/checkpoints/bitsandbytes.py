"""bitsandbytes: NF4 and FP4 with a largest magnitude per 64 values, and int8 with one per row.

4 bits: `weight` uint8 [values / 2, 1] holds the flattened matrix, its even values in the high
nibble; `weight.absmax` one scale for each block of flattened values, which may span rows;
`weight.quant_map` the 16 values; `weight.quant_state.bitsandbytes__nf4` JSON as bytes. Nested:
absmax are codes of `nested_quant_map` with `nested_absmax` for each 256 of them and an offset.
8 bits: `weight` int8 [out, in], `SCB` [out] the largest magnitude of each row, at code 127.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.converters.hugging_face.checkpoints.checkpoint import Layout, Quantization
from halfbyte.converters.hugging_face.checkpoints.float8_parts import nothing
from halfbyte.converters.hugging_face.checkpoints.part_forms import viewed
from halfbyte.converters.hugging_face.checkpoints.profile import CheckpointProfile
from halfbyte.converters.hugging_face.checkpoints.stored_weights import (
    AGAIN,
    StoredWeight,
    part_of,
    replaced,
)
from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.encodings.nf4 import TABLES, Quantile4, pack_high_first
from halfbyte.ir.part_views import ReshapedPart
from halfbyte.ir.profile import Profile
from halfbyte.ir.stored_codes import CodeRows
from halfbyte.ir.tensor import ArrayPart, ComputedPart, Part, Tensor

ABSMAX, MAP = "weight.absmax", "weight.quant_map"
NESTED, NESTED_MAP = "weight.nested_absmax", "weight.nested_quant_map"
STATES = {f"weight.quant_state.bitsandbytes__{kind}": kind for kind in ("nf4", "fp4")}
SMALL = (ABSMAX, MAP, NESTED, NESTED_MAP, *STATES)
SCB, FORMAT = "SCB", "weight_format"
_BYTE, _SINGLE = np.dtype(np.uint8), np.dtype(np.float32)


class BitsAndBytes:
    """Entry `bitsandbytes` of CHECKPOINTS."""

    def read(self, tensors: Mapping[str, Tensor], found: Quantization) -> dict[str, Tensor]:
        """Return the tensors with each quantized weight as one; see Checkpoint."""
        made: dict[str, Tensor] = {}
        gone: dict[str, str] = {}
        for name in tensors:
            for ending, endings in ((ABSMAX, SMALL), (SCB, (SCB, FORMAT))):
                module = name.removesuffix(f".{ending}")
                if module == name:
                    continue
                held = {
                    e: tensors[f"{module}.{e}"]
                    for e in ("weight", *endings)
                    if f"{module}.{e}" in tensors
                }
                stored = StoredWeight(module, held, found)
                weight = _four_bits(stored) if ending == ABSMAX else _eight_bits(stored)
                made[weight.name] = weight
                gone |= {f"{module}.{e}": weight.name for e in held}
        return replaced(tensors, made, gone)

    def profile(self) -> Profile:
        """Return a profile of dense weights: the format is read only."""
        return CheckpointProfile("hf:bitsandbytes", nothing)

    def layout(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Layout:
        """Raise UnsupportedError: the format is read only."""
        raise UnsupportedError("writing bitsandbytes", "--to hf", ["gptq", "awq", "mlx", "fp8"])


def _state(stored: StoredWeight) -> tuple[dict[str, Any], str]:
    """Return the JSON of a quant_state, and the name of its table here."""
    ending = next((ending for ending in STATES if ending in stored), next(iter(STATES)))
    text = stored.array(ending, ("uint8",), 1)
    name = f"{stored.module}.{ending}"
    try:
        state = json.loads(bytes(np.asarray(part_of(text).read()).reshape(-1)))
    except (ValueError, UnicodeDecodeError) as error:
        raise stored.found.error(name, f"is no JSON ({error}); {AGAIN}") from error
    shape = state.get("shape") if isinstance(state, dict) else None
    sides = shape if isinstance(shape, list) else []
    if len(sides) != 2 or not all(isinstance(n, int) and 0 < n < 1 << 40 for n in sides):
        rule = f"names no shape of two dimensions ({shape!r}); {AGAIN}"
        raise stored.found.error(name, rule)
    if not isinstance(state.get("blocksize"), int) or state["blocksize"] < 1:
        raise stored.found.error(name, f"names no blocksize; {AGAIN}")
    return state, "nf4" if STATES[ending] == "nf4" else "bnb-fp4"


def _four_bits(stored: StoredWeight) -> Tensor:
    state, table = _state(stored)
    rows, columns = state["shape"]
    block = state["blocksize"]
    values = stored.array(MAP, ("float32",), 1)
    found = np.asarray(part_of(values).read()).reshape(-1)
    if not np.array_equal(found, TABLES[table]):
        rule = f"is another table than that of {table}; take the model it was made from"
        raise stored.found.error(f"{stored.module}.{MAP}", rule)
    packed = stored.held["weight"]
    data = viewed(ReshapedPart(part_of(packed), (1, math.prod(part_of(packed).shape))), _BYTE)
    if data.shape[1] != -(-rows * columns // 2):
        rule = f"has {data.shape[1]} bytes, {-(-rows * columns // 2)} were required by shape"
        raise stored.found.error(f"{stored.module}.weight", f"{rule} {[rows, columns]}; {AGAIN}")
    group = math.gcd(columns, block) if columns % block else block
    parts: dict[str, Part] = {
        "codes": _rows_of_nibbles(data, rows, columns),
        "scales": _group_scales(_absmax(stored, state), (rows, columns), block, group),
    }
    return Tensor(f"{stored.module}.weight", (rows, columns), Quantile4(table, group), parts)


def _rows_of_nibbles(data: Part, rows: int, columns: int) -> Part:
    """Return the bytes [rows, ceil(columns / 2)] of a flat stream, high nibble first."""
    if columns % 2 == 0:
        return ReshapedPart(data, (rows, columns // 2))

    def read(start: int, stop: int) -> Array:
        first, last = start * columns, stop * columns
        held = np.asarray(ReshapedPart(data, (data.shape[1],)).read(first // 2, -(-last // 2)))
        nibbles = np.stack([held >> 4, held & 15], axis=1).reshape(-1)[first % 2 :]
        return pack_high_first(nibbles[: last - first].reshape(stop - start, columns))

    return ComputedPart(_BYTE, (rows, -(-columns // 2)), read)


def _absmax(stored: StoredWeight, state: dict[str, Any]) -> Array:
    """Return the scales of the flat blocks, float32."""
    blocks = -(-state["shape"][0] * state["shape"][1] // state["blocksize"])
    nested = NESTED in stored
    scales = stored.array(ABSMAX, ("uint8",) if nested else ("float32",), 1)
    stored.require_shape(ABSMAX, (blocks,), f"{blocks} blocks of {state['blocksize']}")
    found = np.asarray(part_of(scales).read()).reshape(-1)
    if nested:
        size = state.get("nested_blocksize") or 256
        outer = np.asarray(part_of(stored.array(NESTED, ("float32",), 1)).read()).reshape(-1)
        levels = np.asarray(part_of(stored.array(NESTED_MAP, ("float32",), 1)).read()).reshape(-1)
        stored.require_shape(NESTED, (-(-blocks // size),), f"groups of {size}")
        stored.require_shape(NESTED_MAP, (256,), "codes of a byte")
        offset = np.float32(state.get("nested_offset") or 0)
        found = levels[found] * outer.repeat(size)[:blocks] + offset
    if not np.isfinite(found).all():
        rule = "holds a scale that is NaN or infinite; download it again"
        raise stored.found.error(f"{stored.module}.{ABSMAX}", rule)
    return found.astype(_SINGLE)


def _group_scales(absmax: Array, shape: tuple[int, int], block: int, group: int) -> Part:
    """Return [rows, groups] of the scales of flat blocks; groups lie within rows and blocks."""
    rows, columns = shape
    per_row = -(-columns // group)
    if columns % block == 0:
        return ArrayPart(absmax.reshape(rows, per_row))

    def read(start: int, stop: int) -> Array:
        first = np.arange(start, stop)[:, None] * columns + np.arange(per_row) * group
        return np.asarray(absmax[first // block])

    return ComputedPart(_SINGLE, (rows, per_row), read)


def _eight_bits(stored: StoredWeight) -> Tensor:
    codes = stored.array("weight", ("int8",))
    rows, columns = codes.shape
    scales = stored.array(SCB, ("float32",), 1)
    stored.require_shape(SCB, (rows,), "the outputs")
    if FORMAT in stored:
        layout = int(np.asarray(part_of(stored.held[FORMAT]).read()).reshape(-1)[0])
        if layout:
            raise UnsupportedError(
                f"weight_format {layout} of {stored.module!r}", str(stored.found.where), ["0"]
            )
    found = np.asarray(part_of(scales).read()).reshape(rows, 1) / np.float32(127)
    if not np.isfinite(found).all():
        rule = "holds a scale that is NaN or infinite; download it again"
        raise stored.found.error(f"{stored.module}.{SCB}", rule)
    parts: dict[str, Part] = {"codes": CodeRows(codes, False, 8, 0x80), "scales": ArrayPart(found)}
    encoding = Affine(8, 0, "none", "float32")
    return Tensor(f"{stored.module}.weight", (rows, columns), encoding, parts)


BITSANDBYTES = BitsAndBytes()
