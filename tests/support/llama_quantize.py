"""llama.cpp's whole-file quantizer through ctypes, from the llama-cpp-python package."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.ggml_library import TYPE_IDS

COUNT_OF_TYPES = 43
_LOG_TYPE = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_LINE = re.compile(r"\] (\S+) +- \[[^\]]*\], type = +(\S+), size = [^\n(]*(?:\((\S+)\))?\n")
_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


@contextmanager
def _logged(library: Any) -> Iterator[list[str]]:
    """Collect what the library logs, instead of printing it."""
    lines: list[str] = []

    @_LOG_TYPE
    def collect(level: int, text: bytes, data: int) -> None:
        lines.append(text.decode("utf-8", "replace"))

    @_LOG_TYPE
    def drop(level: int, text: bytes, data: int) -> None:
        """Drop the text."""

    library.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        _DROPS.append(drop)
        library.llama_log_set(drop, ctypes.c_void_p(0))


_DROPS: list[Any] = []  # the library keeps a pointer to the last one


def _imatrix(library: Any, importance: Mapping[str, np.ndarray]) -> Any:
    entries = (library.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        assert values.dtype == np.float32 and values.flags.c_contiguous
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


def _overrides(library: Any, types: Mapping[str, str]) -> Any:
    entries = (library.llama_model_tensor_override * (len(types) + 1))()
    for entry, (pattern, name) in zip(entries, types.items(), strict=False):
        entry.pattern, entry.type = pattern.encode(), TYPE_IDS[name]
    entries[len(types)].type = COUNT_OF_TYPES
    return entries


def _pairs(library: Any, pairs: Mapping[str, Any]) -> Any:
    """Return text and whole numbers as overrides of metadata."""
    entries = (library.llama_model_kv_override * (len(pairs) + 1))()
    for entry, (key, value) in zip(entries, pairs.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, str):
            entry.tag, entry.value.val_str = 3, value.encode()[:127]
        else:
            entry.tag, entry.value.val_i64 = 0, int(value)
    return entries


def llama_quantize(
    source: Path,
    target: Path,
    file_type: int,
    *,
    importance: Mapping[str, np.ndarray] | None = None,
    tensor_types: Mapping[str, str] | None = None,
    pairs: Mapping[str, Any] | None = None,
    output_type: str = "",
    token_embedding_type: str = "",
    **flags: bool,
) -> str:
    """Quantize a file and return the log; flags: fields of the library's parameters."""
    library = pytest.importorskip("llama_cpp")
    params = library.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 1
    if output_type:
        params.output_tensor_type = TYPE_IDS[output_type]
    if token_embedding_type:
        params.token_embedding_type = TYPE_IDS[token_embedding_type]
    for name, value in flags.items():
        setattr(params, name, value)
    if importance is not None:
        params.imatrix = _imatrix(library, importance)
    if tensor_types is not None:
        params.tt_overrides = _overrides(library, tensor_types)
    if pairs is not None:
        params.kv_overrides = _pairs(library, pairs)
    with _logged(library) as lines:
        done = library.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(params)
        )
    log = "".join(lines)
    assert done == 0, log[-2000:]
    return log


def chosen_types(source: Path, file_type: int, **options: Any) -> dict[str, str]:
    """Return the type that llama-quantize chooses for each tensor; nothing is written."""
    log = llama_quantize(source, source.with_suffix(".none"), file_type, dry_run=True, **options)
    found = {name: new or old for name, old, new in _LINE.findall(log)}
    assert found, log[-2000:]
    upper = {name.lower(): name for name in TYPE_IDS}
    return {n: _NAMES.get(kind, upper.get(kind.lower(), kind)) for n, kind in found.items()}
