"""llama.cpp's whole-file quantizer through ctypes, from the llama-cpp-python package."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.ggml_library import TYPE_IDS

COUNT_OF_TYPES = 43


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silent(level: int, text: bytes, data: int) -> None:
    """Drop what the library logs."""


def _imatrix(library: Any, importance: Mapping[str, np.ndarray]) -> Any:
    entries = (library.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        held = np.ascontiguousarray(values, np.float32)
        assert held is values, "the array must outlive the call"
        entry.name = name.encode()
        entry.data = held.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = held.size
    return entries


def _overrides(library: Any, types: Mapping[str, int]) -> Any:
    entries = (library.llama_model_tensor_override * (len(types) + 1))()
    for entry, (pattern, kind) in zip(entries, types.items(), strict=False):
        entry.pattern, entry.type = pattern.encode(), kind
    entries[len(types)].type = COUNT_OF_TYPES
    return entries


def llama_quantize(
    source: Path,
    target: Path,
    file_type: int,
    *,
    importance: Mapping[str, np.ndarray] | None = None,
    tensor_types: Mapping[str, int] | None = None,
    output_type: str = "",
    token_embedding_type: str = "",
    **flags: bool,
) -> bool:
    """Quantize a file; return whether it was done. flags: fields of the library's parameters."""
    library = pytest.importorskip("llama_cpp")
    library.llama_log_set(_silent, ctypes.c_void_p(0))
    params = library.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 1
    if output_type:
        params.output_tensor_type = TYPE_IDS[output_type]
    if token_embedding_type:
        params.token_embedding_type = TYPE_IDS[token_embedding_type]
    for name, value in flags.items():
        setattr(params, name, value)
    held = []
    if importance is not None:
        held.append(_imatrix(library, importance))
        params.imatrix = held[-1]
    if tensor_types is not None:
        held.append(_overrides(library, tensor_types))
        params.tt_overrides = held[-1]
    done = library.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    return bool(done == 0)
