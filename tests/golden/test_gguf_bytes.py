"""A whole small file, byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from halfbyte.converters.gguf.container import read_container
from halfbyte.converters.gguf.metadata_value import typed
from halfbyte.converters.gguf.writer import write_gguf
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.tensor import ArrayPart, Tensor, tensor_from_array

GOLDEN = bytes.fromhex(
    "47475546" "03000000" "0200000000000000" "0600000000000000"
    # general.architecture = "x"
    "1400000000000000" "67656e6572616c2e617263686974656374757265" "08000000" "0100000000000000" "78"
    # n = u32 7; f = f32 1.5; b = true; s = ["a", ""]; i = i32 [-1, 2]
    "0100000000000000" "6e" "04000000" "07000000"
    "0100000000000000" "66" "06000000" "0000c03f"
    "0100000000000000" "62" "07000000" "01"
    "0100000000000000" "73" "09000000" "08000000" "0200000000000000"
    "0100000000000000" "61" "0000000000000000"
    "0100000000000000" "69" "09000000" "05000000" "0200000000000000" "ffffffff" "02000000"
    # v.weight [3] F32 at 0; w.weight [32, 1] Q8_0 at 32
    "0800000000000000" "762e776569676874" "01000000" "0300000000000000"
    "00000000" "0000000000000000"
    "0800000000000000" "772e776569676874" "02000000" "2000000000000000" "0100000000000000"
    "08000000" "2000000000000000"
)  # fmt: skip
PADDING = bytes(-len(GOLDEN) % 32)
VECTOR = bytes.fromhex("0000803f" "00000040" "000040c0") + bytes(20)  # fmt: skip
BLOCK = bytes.fromhex("003c") + bytes(range(32)) + bytes(30)
PAIRS = {
    "general.architecture": "x",
    "n": 7,
    "f": 1.5,
    "b": True,
    "s": ["a", ""],
    "i": [-1, 2],
}


def test_written_bytes(tmp_path: Path) -> None:
    block = np.frombuffer(BLOCK[:34], np.uint8).reshape(1, 34)
    vector = tensor_from_array("v.weight", np.array([1, 2, -3], np.float32))
    quantized = Tensor("w.weight", (1, 32), encoding_from_name("Q8_0"), {"data": ArrayPart(block)})
    path = tmp_path / "golden.gguf"
    write_gguf(path, {key: typed(value) for key, value in PAIRS.items()}, [vector, quantized])
    assert path.read_bytes() == GOLDEN + PADDING + VECTOR + BLOCK


def test_read_values(tmp_path: Path) -> None:
    path = tmp_path / "golden.gguf"
    path.write_bytes(GOLDEN + PADDING + VECTOR + BLOCK)
    container = read_container(path)
    assert container.metadata == {key: typed(value) for key, value in PAIRS.items()}
    assert [(t.name, t.shape, t.kind.name) for t in container.tensors] == [
        ("v.weight", (3,), "F32"),
        ("w.weight", (1, 32), "Q8_0"),
    ]
    vector, quantized = map(container.tensor, container.tensors)
    np.testing.assert_array_equal(vector.numpy(), np.array([1, 2, -3], np.float32))
    np.testing.assert_array_equal(quantized.numpy(), np.arange(32, dtype=np.float32)[None])
