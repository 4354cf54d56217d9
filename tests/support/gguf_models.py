"""Small models and files for GGUF tests."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halfbyte.converters.format import ReadOptions, WriteOptions, WrittenTensor
from halfbyte.converters.gguf.format import GGUF
from halfbyte.converters.gguf.metadata_value import pack_pair, pack_string, typed
from halfbyte.converters.gguf.profile import GgufProfile
from halfbyte.ir.model import Model
from halfbyte.quant.plan import apply_plan, make_plan

TensorEntry = tuple[str, Sequence[int], int, bytes]


def fitted(model: Model, type_name: str = "", overrides: Sequence[tuple[str, str]] = ()) -> Model:
    """Return the model as the plan for a GGUF file of this type has it."""
    plan = make_plan(model, GgufProfile(), type_name, overrides, requantize=True)
    return apply_plan(model, plan)


def write(
    model: Model,
    path: Path,
    type_name: str = "",
    threads: int = 1,
    overrides: Sequence[tuple[str, str]] = (),
) -> list[WrittenTensor]:
    """Write the model as GGUF after planning."""
    return GGUF.write(fitted(model, type_name, overrides), path, WriteOptions(threads=threads))


def read(path: Path) -> Model:
    """Read a GGUF file."""
    return GGUF.read(path, ReadOptions())


def gguf_bytes(
    pairs: Mapping[str, Any], tensors: Sequence[TensorEntry] = (), *, alignment: int = 32
) -> bytes:
    """Return a file of little-endian bytes; tensors are (name, ggml dims, type id, data)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    head += b"".join(pack_pair(key, typed(value)) for key, value in pairs.items())
    body = b""
    for name, dims, kind, data in tensors:
        head += pack_string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", kind, len(body))
        body += data + bytes(-len(data) % alignment)
    return head + bytes(-len(head) % alignment) + body if tensors else head
