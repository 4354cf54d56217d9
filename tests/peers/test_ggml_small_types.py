"""IQ4, ternary, FP4, one and two bits: bytes and values equal llama.cpp's library and gguf-py."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.ir.encodings import encoding_from_name
from halfbyte.kernels.layouts import LAYOUTS
from support.ggml_library import dequantize, quantize
from support.weight_rows import stress_rows

pytestmark = pytest.mark.peer
SEARCHED = ["IQ4_NL", "IQ4_XS"]
TERNARY = ["TQ1_0", "TQ2_0"]
FOUR_BIT_FLOATS = ["MXFP4", "NVFP4"]
LOW_BIT = ["Q1_0", "Q2_0"]
ALL = SEARCHED + TERNARY + FOUR_BIT_FLOATS + LOW_BIT
COLUMNS = 512
TINY = np.float32(2.0**-125)  # below it upstream's exponent of MXFP4 is undefined behaviour


def rows_and_limits(rows: int = 24, seed: int = 0):
    yield from stress_rows(COLUMNS, rows=rows, seed=seed)
    rng = np.random.default_rng(seed)
    powers = np.exp2(rng.integers(-20, 9, (rows, COLUMNS))).astype(np.float32)
    signs = np.where(rng.random(powers.shape) < 0.5, np.float32(-1), np.float32(1))
    yield "powers of two", powers * signs
    yield "ties of E2M1", rng.integers(-24, 25, powers.shape).astype(np.float32) / np.float32(4)
    below = np.nextafter(powers, np.float32(0))
    for step in range(3):
        below = np.nextafter(below, np.float32(0))
        yield f"{step + 2} below powers of two", below * signs


def encoded(name: str, method: str, rows: np.ndarray, importance: np.ndarray | None = None):
    encoding = encoding_from_name(name)
    keywords = {"compat": True} if name == "NVFP4" else {}
    return getattr(encoding, method)(rows, importance, **keywords)["data"]


def expected(name: str, rows: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    row_bytes = encoding_from_name(name).part_specs(1, COLUMNS)["data"].shape[1]
    return quantize(name, rows, row_bytes, importance)


def without_undefined(name: str, rows: np.ndarray) -> np.ndarray:
    if name != "MXFP4":
        return rows
    blocks = rows.reshape(len(rows), -1, 32)
    return np.where(np.abs(blocks).max(2, keepdims=True) < TINY, 0, blocks).reshape(rows.shape)


@pytest.mark.parametrize("method", ["encode", "encode_reference"])
@pytest.mark.parametrize("name", ALL)
def test_bytes_equal_llama_cpp(name: str, method: str) -> None:
    for case, rows in rows_and_limits():
        rows = without_undefined(name, rows)
        ours = encoded(name, method, rows)
        np.testing.assert_array_equal(ours, expected(name, rows), err_msg=case)


@pytest.mark.parametrize("method", ["encode", "encode_reference"])
@pytest.mark.parametrize("name", ALL)
def test_bytes_equal_llama_cpp_with_importance(name: str, method: str) -> None:
    rng = np.random.default_rng(1)
    plain = rng.random(COLUMNS).astype(np.float32) ** 2 * 10
    holes = np.where(rng.random(COLUMNS) < 0.3, np.float32(0), plain)
    steep = np.exp2(rng.uniform(-60, 20, COLUMNS)).astype(np.float32)
    for number, importance in enumerate([plain, holes, steep, np.zeros_like(plain)]):
        for case, rows in rows_and_limits(rows=5, seed=number):
            rows = without_undefined(name, rows)
            ours = encoded(name, method, rows, importance)
            theirs = expected(name, rows, importance)
            np.testing.assert_array_equal(ours, theirs, err_msg=f"importance {number}, {case}")


def random_blocks(name: str) -> np.ndarray:
    layout = LAYOUTS[name]
    blocks = np.random.default_rng(3).integers(0, 256, (64, 512 // layout.values, layout.bytes))
    blocks = blocks.astype(np.uint8)
    if name == "NVFP4":
        blocks[..., :4] %= 0x7F  # NaN and signs of scales never stand in a file
    elif name == "MXFP4":
        blocks[..., 0] %= 0xF0
    else:
        blocks[..., layout.offsets["d"] + 1] &= 0xBF  # keep the scale finite
    return blocks.reshape(64, -1)


@pytest.mark.parametrize("method", ["decode", "decode_reference"])
@pytest.mark.parametrize("name", ALL)
def test_values_equal_llama_cpp_and_gguf_py(name: str, method: str) -> None:
    data = random_blocks(name)
    ours = getattr(encoding_from_name(name), method)({"data": data}, COLUMNS).view(np.uint32)
    np.testing.assert_array_equal(ours, dequantize(name, data, COLUMNS).view(np.uint32))
    gguf = pytest.importorskip("gguf")
    kind = getattr(gguf.GGMLQuantizationType, name, None)
    if kind is not None and kind in gguf.quants._type_traits:
        np.testing.assert_array_equal(ours, gguf.quants.dequantize(data, kind).view(np.uint32))


@pytest.mark.parametrize("name", [name for name in ALL if name != "TQ1_0"])
def test_bytes_of_any_file_survive_unpack_and_pack(name: str) -> None:
    data, encoding = random_blocks(name), encoding_from_name(name)
    assert encoding.pack(encoding.unpack({"data": data}, COLUMNS))["data"].tobytes() == (
        data.tobytes()
    )


def test_upstream_loses_what_nvfp4_keeps_by_default() -> None:
    encoding = encoding_from_name("NVFP4")
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((8, 512)).astype(np.float32)
    for scale in (3e-4, 600.0):
        values = np.clip(rows * np.float32(scale), -2600, 2600)
        ours = encoding.decode(encoding.encode(values), 512)
        theirs = dequantize("NVFP4", expected("NVFP4", values), 512)
        errors = [float(np.square(d - values).sum()) for d in (ours, theirs)]
        assert errors[0] < 0.9 * errors[1], scale
    usual = rows * np.float32(0.02)
    assert encoding.encode(usual)["data"].tobytes() == expected("NVFP4", usual).tobytes()
