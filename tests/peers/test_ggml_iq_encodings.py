"""IQ encodings: values equal to ggml and gguf-py, the numpy encoder's bytes to llama.cpp's."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.ir.encodings import encoding_from_name
from halfbyte.kernels.codebooks import GRID_KINDS
from support.ggml_library import dequantize, quantize
from support.random_blocks import random_blocks
from support.weight_rows import stress_rows

pytestmark = pytest.mark.peer
COLUMNS = 256


def importances(name: str) -> list[np.ndarray | None]:
    rng = np.random.default_rng(1)
    plain = rng.random(COLUMNS).astype(np.float32) ** 2 * 10
    holes = np.where(rng.random(COLUMNS) < 0.3, np.float32(0), plain)
    given = [np.ones(COLUMNS, np.float32), plain, holes, np.zeros(COLUMNS, np.float32)]
    return given if encoding_from_name(name).needs_importance else [None, *given]


def zero_groups(rows: int = 6) -> np.ndarray:
    """Return rows in which some groups of 16 and 32 are zeros."""
    rng = np.random.default_rng(4)
    values = rng.standard_normal((rows, COLUMNS)).astype(np.float32)
    return np.where(np.repeat(rng.random((rows, 16)) < 0.4, 16, axis=1), np.float32(0), values)


@pytest.mark.parametrize("method", ["encode", "encode_reference"])
@pytest.mark.parametrize("name", GRID_KINDS)
def test_bytes_equal_llama_cpp(name: str, method: str) -> None:
    encode = getattr(encoding_from_name(name), method)
    row_bytes = encoding_from_name(name).part_specs(1, COLUMNS)["data"].shape[1]
    options = {"compat": True} if name == "IQ3_S" else {}
    for number, importance in enumerate(importances(name)):
        cases = [*stress_rows(COLUMNS, rows=4, seed=number), ("zero groups", zero_groups())]
        rows = np.concatenate([rows for _, rows in cases])
        names = [case for case, rows in cases for _ in rows]
        ours = encode(rows, importance, **options)["data"]
        theirs = quantize(name, rows, row_bytes, importance)
        wrong = sorted({names[i] for i in np.flatnonzero((ours != theirs).any(axis=1))})
        assert not wrong, f"importance {number}: {wrong}"


@pytest.mark.parametrize("method", ["decode", "decode_reference"])
@pytest.mark.parametrize("name", GRID_KINDS)
def test_values_equal_llama_cpp_and_gguf_py(name: str, method: str) -> None:
    gguf = pytest.importorskip("gguf")
    data = random_blocks(name, 64, 2, seed=3)
    ours = getattr(encoding_from_name(name), method)({"data": data}, 512).view(np.uint32)
    np.testing.assert_array_equal(ours, dequantize(name, data, 512).view(np.uint32))
    theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name]).view(np.uint32)
    np.testing.assert_array_equal(ours, theirs)
