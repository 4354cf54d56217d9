"""Encoders: gguf-py's bytes for blocks, numpy's roundings for dense types."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from halfbyte.ir.encodings import encoding_from_name
from halfbyte.kernels import cpu
from support.kernel_cases import BLOCK_KINDS, needs_extension

pytestmark = needs_extension


def rows_of(name: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    normal = rng.standard_normal((64, 256)).astype(np.float32)
    return {
        "normal": normal,
        "tiny": normal * np.float32(1e-6),
        "huge": normal * np.float32(1e5),
        "zero": np.zeros_like(normal),
        "gridded": np.rint(normal * 4) / np.float32(8) + np.float32(3),
        "denormal scale": normal * np.float32(1e-36),
    }[name]


@pytest.mark.parametrize("case", ["normal", "tiny", "huge", "zero", "gridded", "denormal scale"])
@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_bytes_equal_gguf_py(kind: str, case: str) -> None:
    rows = rows_of(case)
    with np.errstate(over="ignore"):
        expected = quants.quantize(rows, GGMLQuantizationType[kind])
    np.testing.assert_array_equal(cpu.encode(kind, rows), expected)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_importance_lowers_the_weighted_error(kind: str) -> None:
    rows = rows_of("normal")
    importance = np.random.default_rng(1).random(256).astype(np.float32) ** 4
    plain = cpu.decode(kind, cpu.encode(kind, rows), 256)
    weighted = cpu.decode(kind, cpu.encode(kind, rows, importance), 256)
    error = [float((importance * (d - rows) ** 2).sum()) for d in (plain, weighted)]
    assert error[1] < 0.95 * error[0]


def test_q8_0_takes_no_notice_of_importance() -> None:
    rows = rows_of("normal")
    weighted = cpu.encode("Q8_0", rows, np.arange(256, dtype=np.float32))
    np.testing.assert_array_equal(weighted, cpu.encode("Q8_0", rows))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q5_1"])
def test_any_number_of_blocks_fills_the_lanes(kind: str, weighted: bool) -> None:
    encoding = encoding_from_name(kind)
    rng = np.random.default_rng(4)
    for rows, columns in ((1, 256), (1, 1792), (7, 512), (9, 768), (19, 256)):
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        importance = rng.random(columns).astype(np.float32) if weighted else None
        expected = encoding.encode_reference(values, importance)["data"]
        np.testing.assert_array_equal(cpu.encode(kind, values, importance), expected)


def awkward_floats() -> np.ndarray:
    """Every float16, their neighbours and midpoints, and special values; 16 wide."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = halves[np.isfinite(halves)]
    steps = np.array([-4097, -4096, -4095, -1, 0, 1, 4095, 4096, 4097], np.int32)
    near = (finite.view(np.int32)[:, None] + steps).view(np.float32).ravel()
    special = np.array([65519.99, 65520, 1e9, -1e9, np.inf, -np.inf, 1e-45, 3e-8], np.float32)
    values = np.concatenate([near[np.isfinite(near)], special])
    return values[: len(values) // 16 * 16].reshape(-1, 16)


def test_float16_rounds_as_numpy() -> None:
    rows = awkward_floats()
    with np.errstate(over="ignore"):
        expected = rows.astype(np.float16)
    encoded = cpu.encode("float16", rows).view(np.uint16)
    np.testing.assert_array_equal(encoded, expected.view(np.uint16))


def test_bfloat16_rounds_as_ml_dtypes() -> None:
    rows = awkward_floats()
    encoded = cpu.encode("bfloat16", rows).view(np.uint16)
    np.testing.assert_array_equal(encoded, rows.astype(ml_dtypes.bfloat16).view(np.uint16))


def test_nan_rules() -> None:
    patterns = [0x7F800001, 0xFF812345, 0x7FC00000, 0xFFFFFFFF] * 9
    nans = np.array(patterns, np.uint32).view(np.float32).reshape(1, -1)
    halves = cpu.encode("float16", nans).view(np.uint16)[0, :4]
    assert halves.tolist() == [0x7E00, 0xFE00, 0x7E00, 0xFE00]
    words = cpu.encode("bfloat16", nans).view(np.uint16)[0, :4]
    assert words.tolist() == [0x7FC0, 0xFFC1, 0x7FC0, 0xFFFF]


def test_float32_is_copied_and_empty_rows_encode() -> None:
    rows = rows_of("normal")
    np.testing.assert_array_equal(cpu.encode("float32", rows).view(np.float32), rows)
    assert cpu.encode("Q4_0", rows[:0]).shape == (0, 144)


@pytest.mark.parametrize(
    ("kind", "rows", "importance", "message"),
    [
        ("affine", np.zeros((1, 32), np.float32), None, "kind 'affine' has no encoder"),
        ("Q4_0", np.zeros(32, np.float32), None, "rows has 1 dimensions, required [rows, columns]"),
        ("Q4_0", np.zeros((1, 33), np.float32), None, "33 columns, required a multiple of"),
        ("Q4_0", np.zeros((1, 32)), None, "rows is of format d, required a C-contiguous float32"),
        ("Q4_0", np.zeros((32, 32), np.float32).T[:, ::2], None, "rows is not C-contiguous"),
        ("Q4_0", np.zeros((1, 32), np.float32), np.ones(3, np.float32), "importance has shape [3]"),
    ],
)
def test_encode_rejects(kind, rows, importance, message) -> None:
    with pytest.raises(ValueError) as caught:
        cpu.encode(kind, rows, importance)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["Q4_0", "float16"])
def test_rows_that_are_not_aligned(kind: str) -> None:
    rows = rows_of("normal")[:3]
    moved = np.frombuffer(b"?" + rows.tobytes(), np.float32, rows.size, 1).reshape(rows.shape)
    np.testing.assert_array_equal(cpu.encode(kind, moved), cpu.encode(kind, rows))
