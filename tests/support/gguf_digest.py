"""What a GGUF file says, in a form short enough to store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.converters.gguf.container import Container, read_container
from halfbyte.converters.gguf.metadata_value import MetadataValue, pack_value

LONGEST = 120
UNORDERED = ("tokenizer.chat_templates",)
"""Lists that llama.cpp's script writes in the random order of a set."""


def said(key: str, entry: MetadataValue) -> Any:
    """Return type and value of a pair; long values as a digest."""
    if key in UNORDERED:
        entry = MetadataValue(sorted(entry.value), entry.type, entry.element_type)
    value = entry.value.tolist() if isinstance(entry.value, np.ndarray) else entry.value
    if len(json.dumps(value)) > LONGEST:
        value = "sha256:" + hashlib.sha256(pack_value(entry)).hexdigest()[:24]
    element = "" if entry.element_type is None else f"[{entry.element_type.name}]"
    return [entry.type.name + element, value]


def metadata(path: Path) -> dict[str, Any]:
    """Return all pairs of a file."""
    return {key: said(key, entry) for key, entry in read_container(path).metadata.items()}


def tensor_digests(path: Path) -> dict[str, Any]:
    """Return type, shape and digest of the bytes of every tensor, sorted by name."""
    container: Container = read_container(path)
    found = {}
    for info in sorted(container.tensors, key=lambda info: info.name):
        raw = np.ascontiguousarray(container.tensor(info).read()["data"])
        content = hashlib.sha256(raw.view(np.uint8).tobytes()).hexdigest()[:24]
        found[info.name] = [info.kind.name, list(info.shape), content]
    return found


def digest(document: Any) -> str:
    """Return one digest of a document."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:24]
