"""Encoded weights with numpy references for the kernel tests. Imports no part but kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from halfbyte.kernels import cpu
from halfbyte.kernels.layouts import LAYOUTS

needs_extension = pytest.mark.skipif(not cpu.available(), reason="compiled kernels are not built")

BLOCK_KINDS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
K_KINDS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
SMALL_KINDS = ["Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "IQ4_NL", "IQ4_XS"]
IQ_KINDS = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"]
DENSE_DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}


@dataclass(frozen=True)
class Case:
    """An encoded weight: constructor arguments, and its exact float32 values."""

    name: str
    kind: str
    data: np.ndarray
    values: np.ndarray
    affine: dict[str, Any] = field(default_factory=dict)

    @property
    def weight(self) -> cpu.LinearWeight:
        rows, columns = self.values.shape
        return cpu.LinearWeight(self.kind, self.data, rows, columns, **self.affine)


def block_case(kind: str, rows: int, columns: int, seed: int = 0) -> Case:
    """Return random blocks whose scales are finite and of ordinary size."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, columns)).astype(np.float32) * np.float32(0.1)
    data = quants.quantize(values, GGMLQuantizationType[kind])
    return Case(kind, kind, data, quants.dequantize(data, GGMLQuantizationType[kind]))


def k_case(kind: str, rows: int, columns: int, seed: int = 0) -> Case:
    """Return random blocks of 256 whose scales are finite and of ordinary size."""
    layout = LAYOUTS[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, columns // layout.values, layout.bytes), np.uint8)
    for name in ("d", "dmin"):
        if name in layout.offsets:
            at = layout.offsets[name]
            half = rng.uniform(1e-4, 1e-3, blocks.shape[:2]).astype("<f2")
            blocks[..., at : at + 2] = half[..., None].view(np.uint8)
    data = blocks.reshape(rows, -1)
    return Case(kind, kind, data, quants.dequantize(data, GGMLQuantizationType[kind]))


def iq_case(kind: str, rows: int, columns: int, seed: int = 0) -> Case:
    """Return random points, signs and scales of ordinary size."""
    if kind != "IQ1_M":
        return k_case(kind, rows, columns, seed)
    layout = LAYOUTS[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, columns // 256, layout.bytes), np.uint8)
    words = blocks[..., layout.offsets["scales"] :].reshape(rows, -1, 4, 2)
    half = rng.uniform(1e-4, 1e-3, words.shape[:2]).astype("<f2").view(np.uint16)
    nibbles = (half[..., None] >> (4 * np.arange(4, dtype=np.uint16))).astype(np.uint8) & 15
    words[..., 1] = (words[..., 1] & 15) | (nibbles << 4)
    blocks[..., layout.offsets["scales"] :] = words.reshape(rows, -1, 8)
    data = blocks.reshape(rows, -1)
    return Case(kind, kind, data, quants.dequantize(data, GGMLQuantizationType[kind]))


def small_case(kind: str, rows: int, columns: int, seed: int = 0) -> Case:
    """Return random blocks of ordinary size; values by numpy, gguf-py lacks some of these types."""
    from halfbyte.ir.encodings import encoding_from_name

    layout = LAYOUTS[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, columns // layout.values, layout.bytes), np.uint8)
    if kind == "MXFP4":
        blocks[..., 0] = rng.integers(117, 123, blocks.shape[:2])
    elif kind == "NVFP4":
        blocks[..., :4] = rng.integers(1, 48, (*blocks.shape[:2], 4))
    else:
        at = layout.offsets["d"]
        half = rng.uniform(1e-4, 1e-3, blocks.shape[:2]).astype("<f2")
        blocks[..., at : at + 2] = half[..., None].view(np.uint8)
    data = blocks.reshape(rows, -1)
    encoding: Any = encoding_from_name(kind)
    return Case(kind, kind, data, encoding.decode_reference({"data": data}, columns))


def dense_case(kind: str, rows: int, columns: int, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((rows, columns)).astype(DENSE_DTYPES[kind])
    return Case(f"{kind} {columns}", kind, data, data.astype(np.float32))


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return uint8 [rows, ceil(columns * bits / 8)], least significant bits first."""
    spread = (codes[..., None] >> np.arange(bits)) & 1
    return np.packbits(spread.reshape(codes.shape[0], -1), axis=1, bitorder="little")


def affine_case(
    bits: int,
    rows: int,
    columns: int,
    group_size: int,
    *,
    scale: Any = np.float32,
    zero: Any = None,
    act_order: bool = False,
    seed: int = 0,
) -> Case:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (rows, columns))
    groups = -(-columns // (group_size or columns))
    scales = (0.01 + rng.random((rows, groups))).astype(scale)
    group = np.arange(columns, dtype=np.int32) // (group_size or columns)
    affine: dict[str, Any] = {"bits": bits, "group_size": group_size, "scales": scales}
    if act_order:
        group = rng.permutation(group).astype(np.int32)
        affine["g_idx"] = group
    zeros = np.full((rows, groups), 1 << (bits - 1), np.float32)
    if zero is not None:
        stored = rng.integers(0, 1 << bits, (rows, groups)).astype(zero)
        affine["zero_points"] = stored
        zeros = stored.astype(np.float32)
    values = (codes.astype(np.float32) - zeros[:, group]) * scales.astype(np.float32)[:, group]
    name = f"int{bits} g{group_size} {np.dtype(scale)} zero {zero} order {act_order} {columns}"
    return Case(name, "affine", pack_codes(codes, bits), values, affine)


def affine_cases(rows: int, columns: int) -> list[Case]:
    bf16 = ml_dtypes.bfloat16
    cases = [affine_case(bits, rows, columns, 32, seed=bits) for bits in range(1, 9)]
    return [
        *cases,
        affine_case(4, rows, columns, 0),
        affine_case(8, rows, columns, 64, scale=np.float16, zero=np.uint8),
        affine_case(4, rows, columns, 32, scale=bf16, zero=np.uint8),
        affine_case(4, rows, columns, 64, scale=np.float16, zero=np.float16),
        affine_case(3, rows, columns, 32, zero=np.float32),
        affine_case(4, rows, columns, 16),
        affine_case(4, rows, columns, 32, zero=np.uint8, act_order=True),
        affine_case(5, rows, columns - 3, 48, zero=np.uint8),
        affine_case(4, rows, columns - 7, 0),
    ]


def all_cases(rows: int = 37, columns: int = 192) -> list[Case]:
    """Return every kind, odd sizes included."""
    return [
        *(dense_case(kind, rows, columns) for kind in DENSE_DTYPES),
        *(dense_case(kind, rows, columns - 5) for kind in DENSE_DTYPES),
        *(block_case(kind, rows, columns) for kind in BLOCK_KINDS),
        *(k_case(kind, rows, -(-columns // 256) * 256) for kind in K_KINDS),
        *(small_case(kind, rows, -(-columns // 256) * 256) for kind in SMALL_KINDS),
        *(iq_case(kind, rows, -(-columns // 256) * 256) for kind in IQ_KINDS),
        *affine_cases(rows, columns),
    ]


def int8_rounded(x: np.ndarray) -> np.ndarray:
    """Return x as the int8 compute sees it: per row and 32 columns rounded to amax / 127 steps."""
    blocks = x.reshape(len(x), -1, 32)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
    return (np.rint(blocks * inverse) * scale).reshape(x.shape)
