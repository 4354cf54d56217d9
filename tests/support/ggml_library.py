"""llama.cpp's own file quantizer through ctypes, from the llama-cpp-python package."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

TYPE_IDS = {"F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "BF16": 30}
TYPE_IDS |= {"Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
TYPE_IDS |= {"IQ2_XXS": 16, "IQ2_XS": 17, "IQ2_S": 22, "IQ3_XXS": 18, "IQ3_S": 21}
TYPE_IDS |= {"IQ1_S": 19, "IQ1_M": 29}
TYPE_IDS |= {"IQ4_NL": 20, "IQ4_XS": 23, "TQ1_0": 34, "TQ2_0": 35}
TYPE_IDS |= {"MXFP4": 39, "NVFP4": 40, "Q1_0": 41, "Q2_0": 42}


@functools.cache
def ggml_base() -> ctypes.CDLL:
    """Return libggml-base, or skip the test where the package is not installed."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        pytest.skip("llama-cpp-python is not installed")
    folder = Path(spec.origin).parent / "lib"
    ending = {"win32": "ggml-base.dll", "darwin": "libggml-base.dylib"}.get(
        sys.platform, "libggml-base.so"
    )
    library = ctypes.CDLL(str(folder / ending))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return library


def quantize(
    name: str, rows: np.ndarray, row_bytes: int, importance: np.ndarray | None
) -> np.ndarray:
    """Return llama.cpp's bytes [rows, row_bytes] for float32 rows."""
    rows = np.ascontiguousarray(rows, np.float32)
    out = np.zeros((len(rows), row_bytes), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    written = ggml_base().ggml_quantize_chunk(
        TYPE_IDS[name],
        rows.ctypes.data,
        out.ctypes.data,
        0,
        len(rows),
        rows.shape[1],
        None if weights is None else weights.ctypes.data,
    )
    assert written == out.nbytes
    return out


def dequantize(name: str, data: np.ndarray, columns: int) -> np.ndarray:
    """Return ggml's float32 values [rows, columns] for encoded rows."""
    function = getattr(ggml_base(), f"dequantize_row_{name.lower().replace('_k', '_K')}")
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    data = np.ascontiguousarray(data)
    out = np.zeros((len(data), columns), np.float32)
    function(data.ctypes.data, out.ctypes.data, out.size)
    return out
