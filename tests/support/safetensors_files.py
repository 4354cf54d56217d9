"""Safetensors files put together by hand, sound and broken."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save


def raw_file(
    header: bytes | Mapping[str, Any], data: bytes = b"", length: int | None = None
) -> bytes:
    """Return length, header and data as they are given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    """Return a header entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def edit_header(content: bytes, change: Any) -> bytes:
    """Return the file with its header changed in place by `change(header)`."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    return raw_file(header, content[8 + length :])


def write_folder(
    folder: Path,
    weights: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a Hugging Face folder with the safetensors package."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(save(dict(weights), {"format": "pt"}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content)
    return folder
