"""Bytes of the ggml block types equal gguf-py's and llama.cpp's own quantizer."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.ir.encodings import encoding_from_name
from halfbyte.kernels.layouts import LAYOUTS
from support.ggml_library import dequantize, quantize
from support.weight_rows import stress_rows

pytestmark = pytest.mark.peer
LEGACY = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
K_TYPES = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
COLUMNS = 256


def importances(seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    plain = rng.random(COLUMNS).astype(np.float32) ** 2 * 10
    holes = np.where(rng.random(COLUMNS) < 0.3, np.float32(0), plain)
    gaps = np.where(np.repeat(rng.random(COLUMNS // 16) < 0.5, 16), np.float32(0), plain)
    wide = np.exp(rng.standard_normal(COLUMNS) * 5).astype(np.float32)
    return [np.ones(COLUMNS, np.float32), plain, holes, gaps, wide, np.zeros(COLUMNS, np.float32)]


def gguf_type(name: str):
    gguf = pytest.importorskip("gguf")
    return gguf.quants, gguf.GGMLQuantizationType[name]


@pytest.mark.parametrize("method", ["encode", "encode_reference"])
@pytest.mark.parametrize("name", LEGACY + K_TYPES)
def test_bytes_equal_llama_cpp(name: str, method: str) -> None:
    encoding = encoding_from_name(name)
    row_bytes = encoding.part_specs(1, COLUMNS)["data"].shape[1]
    for case, rows in stress_rows(COLUMNS):
        ours = getattr(encoding, method)(rows)["data"]
        np.testing.assert_array_equal(ours, quantize(name, rows, row_bytes, None), err_msg=case)


@pytest.mark.parametrize("method", ["encode", "encode_reference"])
@pytest.mark.parametrize("name", LEGACY + K_TYPES)
def test_bytes_equal_llama_cpp_with_importance(name: str, method: str) -> None:
    encoding = encoding_from_name(name)
    row_bytes = encoding.part_specs(1, COLUMNS)["data"].shape[1]
    for number, importance in enumerate(importances()):
        for case, rows in stress_rows(COLUMNS, rows=6, seed=number):
            ours = getattr(encoding, method)(rows, importance)["data"]
            theirs = quantize(name, rows, row_bytes, importance)
            np.testing.assert_array_equal(ours, theirs, err_msg=f"importance {number}, {case}")


@pytest.mark.parametrize("method", ["encode", "encode_reference"])
@pytest.mark.parametrize("name", K_TYPES)
def test_scales_below_zero_keep_their_bytes(name: str, method: str) -> None:
    # Two values in a group, one without importance: the fit is ill-posed, its scale may be
    # negative, and such an integer spills over its bits.
    encoding, rng = encoding_from_name(name), np.random.default_rng(2)
    row_bytes = encoding.part_specs(1, COLUMNS)["data"].shape[1]
    for _ in range(8):
        runs = rng.standard_normal((64, COLUMNS // 16)).astype(np.float32)
        importance = rng.random(COLUMNS).astype(np.float32)
        importance.reshape(-1, 16)[rng.random(COLUMNS // 16) < 0.5] = 0
        rows = np.repeat(runs, 16, axis=1)
        ours = getattr(encoding, method)(rows, importance)["data"]
        np.testing.assert_array_equal(ours, quantize(name, rows, row_bytes, importance))


@pytest.mark.parametrize("name", LEGACY)
def test_bytes_equal_gguf_py(name: str) -> None:
    # gguf-py takes the last of equal extremes' signs and casts NaN on subnormal scales and zeros
    # of mixed sign as its numpy pleases: those cases are held to llama.cpp's library only.
    quants, kind = gguf_type(name)
    encoding = encoding_from_name(name)
    for case, rows in stress_rows(COLUMNS):
        if case in ("vanishing", "single subnormals") or case.startswith(
            ("signed zeros", "sparse")
        ):
            continue
        np.testing.assert_array_equal(
            encoding.encode(rows)["data"], quants.quantize(rows, kind), err_msg=case
        )


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_half_types_equal_llama_cpp_and_gguf_py(name: str) -> None:
    quants, kind = gguf_type(name)
    encoding = encoding_from_name(name)
    for case, rows in stress_rows(COLUMNS, rows=6):
        data = encoding.encode(rows)["data"].view(np.uint8)
        np.testing.assert_array_equal(data, quantize(name, rows, 2 * COLUMNS, None), err_msg=case)
        theirs = quants.quantize(rows, kind).view(np.uint8)
        np.testing.assert_array_equal(data, theirs, err_msg=case)


@pytest.mark.parametrize("method", ["decode", "decode_reference"])
@pytest.mark.parametrize("name", LEGACY)
def test_values_equal_llama_cpp_and_gguf_py(name: str, method: str) -> None:
    quants, kind = gguf_type(name)
    encoding = encoding_from_name(name)
    row_bytes = encoding.part_specs(1, COLUMNS)["data"].shape[1]
    data = np.random.default_rng(3).integers(0, 256, (64, row_bytes), np.uint8)
    blocks = data.reshape(64, -1, row_bytes * 32 // COLUMNS)
    blocks[..., 1] &= 0xBF  # keep the scale finite
    blocks[..., 3] &= 0xBF
    ours = getattr(encoding, method)({"data": data}, COLUMNS).view(np.uint32)
    np.testing.assert_array_equal(ours, dequantize(name, data, COLUMNS).view(np.uint32))
    np.testing.assert_array_equal(ours, quants.dequantize(data, kind).view(np.uint32))


@pytest.mark.parametrize("method", ["decode", "decode_reference"])
@pytest.mark.parametrize("name", K_TYPES)
def test_values_of_k_types_equal_llama_cpp_and_gguf_py(name: str, method: str) -> None:
    quants, kind = gguf_type(name)
    encoding, columns = encoding_from_name(name), 512
    layout = LAYOUTS[name]
    blocks = np.random.default_rng(3).integers(0, 256, (64, 2, layout.bytes), np.uint8)
    for field in ("d", "dmin"):
        if field in layout.offsets:
            blocks[..., layout.offsets[field] + 1] &= 0xBF  # keep the scale finite
    data = blocks.reshape(64, -1)
    ours = getattr(encoding, method)({"data": data}, columns).view(np.uint32)
    np.testing.assert_array_equal(ours, dequantize(name, data, columns).view(np.uint32))
    np.testing.assert_array_equal(ours, quants.dequantize(data, kind).view(np.uint32))
    assert (
        encoding.pack(encoding.unpack({"data": data}, columns))["data"].tobytes() == data.tobytes()
    )
