"""Integer products of types with a scale per 16 values, whose whole numbers leave no rounding."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from halfbyte.kernels import cpu
from halfbyte.kernels.layouts import LAYOUTS
from support.kernel_cases import needs_extension

pytestmark = needs_extension
KINDS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def whole_weight(kind: str, rows: int, columns: int) -> tuple[cpu.LinearWeight, np.ndarray]:
    """Return random blocks whose values are whole numbers, and those values."""
    layout = LAYOUTS[kind]
    rng = np.random.default_rng(5)
    blocks = rng.integers(0, 256, (rows, columns // layout.values, layout.bytes), np.uint8)
    for name in {"d", "dmin"} & layout.offsets.keys():
        at = layout.offsets[name]
        blocks[..., at : at + 2] = np.array([1], "<f2").view(np.uint8)
    return weight_of(kind, blocks, columns)


def weight_of(kind: str, blocks: np.ndarray, columns: int) -> tuple[cpu.LinearWeight, np.ndarray]:
    data = blocks.reshape(len(blocks), -1)
    values = quants.dequantize(data, GGMLQuantizationType[kind])
    return cpu.LinearWeight(kind, data, len(data), columns), values


def whole_activations(rows: int, columns: int) -> np.ndarray:
    """Return whole numbers that are their own codes: each 32 columns reach 127."""
    rng = np.random.default_rng(6)
    x = rng.integers(-127, 128, (rows, columns)).astype(np.float32)
    x[:, ::32] = 127
    return x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 2, 7])
def test_whole_numbers_come_out_exactly(kind: str, m: int) -> None:
    weight, values = whole_weight(kind, 37, 512)
    x = whole_activations(m, 512)
    exact = x.astype(np.float64) @ values.T.astype(np.float64)
    assert np.abs(exact).max() < 2**24
    np.testing.assert_array_equal(cpu.linear(x, weight, compute="int8"), exact)


@pytest.mark.parametrize("code", [0, 255])
@pytest.mark.parametrize("scale", [0x7F, 0x80])
@pytest.mark.parametrize("m", [1, 5])
def test_the_largest_sums_of_q6_k(code: int, scale: int, m: int) -> None:
    layout = LAYOUTS["Q6_K"]
    blocks = np.full((9, 1, layout.bytes), code, np.uint8)
    at = layout.offsets["scales"]
    blocks[..., at : at + 16] = scale
    blocks[..., layout.offsets["d"] :] = np.array([1], "<f2").view(np.uint8)
    weight, values = weight_of("Q6_K", blocks, 256)
    x = np.zeros((m, 256), np.float32)
    x[:, 32:64] = 127
    exact = x.astype(np.float64) @ values.T.astype(np.float64)
    np.testing.assert_array_equal(cpu.linear(x, weight, compute="int8"), exact)
    np.testing.assert_array_equal(cpu.linear(-x, weight, compute="int8"), -exact)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q6_K"])
def test_each_half_of_32_columns_has_its_scale(kind: str) -> None:
    weight, values = whole_weight(kind, 16, 256)
    x = np.repeat(np.eye(16, dtype=np.float32), 16, axis=1) * 127
    exact = x.astype(np.float64) @ values.T.astype(np.float64)
    np.testing.assert_array_equal(cpu.linear(x, weight, compute="int8"), exact)
