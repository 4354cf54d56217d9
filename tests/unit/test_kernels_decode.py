"""Decoding and gathering equal the numpy references bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.kernels import cpu
from support.kernel_cases import (
    DENSE_DTYPES,
    Case,
    affine_case,
    all_cases,
    block_case,
    needs_extension,
)

pytestmark = needs_extension
CASES = all_cases()


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_decode_is_exact(case: Case) -> None:
    columns = case.values.shape[1]
    same_bits(cpu.decode(case.kind, case.data, columns, **case.affine), case.values)
    same_bits(case.weight.decode(5, 9), case.values[5:9])


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_every_small_float_decodes_as_numpy_says(kind: str) -> None:
    dtype = np.dtype(DENSE_DTYPES[kind])
    raw = np.arange(1 << (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}").view(dtype)
    data = raw.reshape(4, -1)
    values = data.astype(np.float32)
    decoded = cpu.decode(kind, data, data.shape[1])
    np.testing.assert_array_equal(decoded, values)
    finite = np.isfinite(values)
    same_bits(decoded[finite], values[finite])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gather_rows(case: Case) -> None:
    ids = np.array([[3, 0, 36], [7, 7, 1]])
    same_bits(cpu.gather_rows(case.weight, ids), case.values[ids])


def test_gather_many_rows_in_pieces() -> None:
    case = block_case("Q8_0", 50, 1024)
    ids = np.random.default_rng(0).integers(0, 50, 300)
    same_bits(cpu.gather_rows(case.weight, ids), case.values[ids])


def test_a_large_weight_decodes_in_pieces() -> None:
    case = block_case("Q4_1", 700, 256)
    same_bits(case.weight.decode(), case.values)


def test_read_only_and_memory_mapped_bytes(tmp_path) -> None:
    case = block_case("Q4_0", 8, 64)
    path = tmp_path / "weight.bin"
    case.data.tofile(path)
    mapped = np.memmap(path, np.uint8, "r", shape=case.data.shape)
    same_bits(cpu.decode("Q4_0", mapped, 64), case.values)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([8]), "gather_rows: id 8, required 0 to 7; check the ids"),
        (np.array([-1]), "gather_rows: id -1, required 0 to 7; check the ids"),
        (
            np.array([1], np.int32),
            "gather_rows: ids is of int32, required a C-contiguous int64 array; "
            "convert it with numpy first",
        ),
    ],
)
def test_gather_rejects(ids: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        cpu.gather_rows(block_case("Q4_0", 8, 64).weight, ids)
    assert str(caught.value) == message


def make(kind: str = "Q4_0", rows: int = 2, columns: int = 64, size: int = 72, **affine):
    return cpu.LinearWeight(kind, np.zeros(size, np.uint8), rows, columns, **affine)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "Q9_9"}, "kind 'Q9_9' is unknown, required one of float32, float16"),
        ({"columns": 48}, "48 columns, required a multiple of the block of 32"),
        ({"size": 71}, "data has shape [71], required 72 elements; check the shapes"),
        ({"rows": -1}, "rows and columns must be positive"),
        ({"kind": "affine"}, "an affine weight needs scales [rows, groups]"),
    ],
)
def test_weight_rejects(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 9}, "bits must be 1 to 8"),
        ({"group_size": -1}, "group_size must be positive"),
        ({"scales": np.ones((2, 2), np.float64)}, "scales is float64, required float32 or float16"),
        ({"scales": np.ones((2, 1), np.float32)}, "scales (as bytes) has shape [8], required 16"),
        ({"scales": np.ones((2, 4), np.float32)[:, ::2]}, "is not C-contiguous"),
        ({"zero_points": np.ones((2, 1), np.uint8)}, "zero_points (as bytes) has shape [2]"),
        ({"g_idx": np.ones(63, np.int32)}, "g_idx has shape [63], required 64 elements"),
        ({"g_idx": np.full(64, 2, np.int32)}, "g_idx holds a group outside [0, 2)"),
        ({"g_idx": np.zeros(64, np.int64)}, "g_idx is of int64, required a C-contiguous int32"),
    ],
)
def test_affine_weight_rejects(change: dict, message: str) -> None:
    case = affine_case(4, 2, 64, 32)
    with pytest.raises(ValueError) as caught:
        cpu.LinearWeight("affine", case.data, 2, 64, **{**case.affine, **change})
    assert message in str(caught.value)


def test_decode_rejects_rows_outside_the_weight() -> None:
    weight = block_case("Q4_0", 8, 64).weight
    with pytest.raises(ValueError, match=r"decode: rows \[4, 9\) of a weight with 8 rows"):
        weight.decode(4, 9)
    with pytest.raises(ValueError, match="out has shape"):
        weight.decode(0, 2, np.empty((3, 64), np.float32))
