"""An ONNX file is told by its content."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from halfbyte.converters import detect
from halfbyte.converters.onnx.detect import is_onnx
from support.onnx_wire import blob, graph, model, node, number, opset


def test_order_of_fields_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "anything"
    content = graph([node("Abs", ["x"], ["y"])])
    for data in (
        model(content),
        blob(8, opset(9)) + blob(7, content) + number(1, 3),
        blob(7, content),
        blob(2, "producer") + blob(14, b"") + blob(7, content),
        number(1, 3) + blob(7, content)[:9],
    ):
        path.write_bytes(data)
        assert is_onnx(path)
        assert detect(path).name == "onnx"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF" + bytes(60),
        b"PK\3\4" + bytes(60),
        b"\x80\2" + bytes(60),
        b"\x89HDF" + bytes(60),
        b"\x7fELF" + bytes(60),
        b"{}",
        b"<html>",
        bytes(64),
        b"\xff" * 64,
        number(1, 5),
        number(1, 5000) + blob(7, graph([])),
        blob(7, b"\x08\x01"),
        blob(7, b'"\x01x'),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_other_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert not is_onnx(path)


def test_safetensors_whose_length_looks_like_a_field(tmp_path: Path) -> None:
    path = tmp_path / "m"
    header = json.dumps({"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    for tag in (0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72, 0xA2, 0xCA, 0xD2):
        for high in range(8):
            length = high << 8 | tag
            path.write_bytes(struct.pack("<Q", length) + header.ljust(length)[:length])
            assert not is_onnx(path), length
