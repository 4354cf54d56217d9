"""Importance matrices in both file forms, byte for byte as llama-imatrix lays them out."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from halfbyte.converters.gguf.imatrix import (
    ImportanceEntry,
    ImportanceMatrix,
    read_importance,
    write_importance,
)


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str, dims: list[int], offset: int) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", 0, offset)


def floats(*values: float) -> bytes:
    raw = struct.pack(f"<{len(values)}f", *values)
    return raw + bytes(-len(raw) % 32)


HEAD = (
    b"GGUF"
    + struct.pack("<IQQ", 3, 4, 4)
    + pair("general.type", 8, text("imatrix"))
    + pair("imatrix.datasets", 9, struct.pack("<IQ", 8, 2) + text("a.txt") + text("é.txt"))
    + pair("imatrix.chunk_count", 4, struct.pack("<I", 3))
    + pair("imatrix.chunk_size", 4, struct.pack("<I", 8))
    + info("blk.0.ffn_down_exps.weight.in_sum2", [3, 2], 0)
    + info("blk.0.ffn_down_exps.weight.counts", [1, 2], 32)
    + info("blk.0.ffn_up.weight.in_sum2", [2], 64)
    + info("blk.0.ffn_up.weight.counts", [1], 96)
)
DATA = floats(2, 4, 8, 0, 0, 0) + floats(20, 0) + floats(1.5, 48) + floats(24)
GGUF = HEAD + bytes(-len(HEAD) % 32) + DATA


def entry(name: str, calls: int, *values: float) -> bytes:
    head = struct.pack("<i", len(name)) + name.encode()
    return head + struct.pack(f"<ii{len(values)}f", calls, len(values), *values)


TENTH = np.float32(1) / np.float32(10)
DAT = (
    struct.pack("<i", 2)
    # 20 tokens are 3 chunks of 8, rounded up; the expert without tokens holds 1 x 3
    + entry(
        "blk.0.ffn_down_exps.weight", 3, *(TENTH * np.float32(3 * n) for n in (1, 2, 4)), 3, 3, 3
    )
    + entry("blk.0.ffn_up.weight", 3, 0.1875, 6)
    + struct.pack("<ii", 3, len("é.txt".encode()))
    + "é.txt".encode()
)


def matrix() -> ImportanceMatrix:
    # Not in the order of their names: the writer sorts.
    entries = {
        "blk.0.ffn_up.weight": ImportanceEntry(np.float32([[1.5, 48]]), np.array([24])),
        "blk.0.ffn_down_exps.weight": ImportanceEntry(
            np.float32([[2, 4, 8], [0, 0, 0]]), np.array([20, 0])
        ),
    }
    return ImportanceMatrix(entries, ("a.txt", "é.txt"), 3, 8)


def test_gguf_form(tmp_path: Path) -> None:
    write_importance(matrix(), tmp_path / "i.gguf")
    assert (tmp_path / "i.gguf").read_bytes() == GGUF


def test_older_form(tmp_path: Path) -> None:
    write_importance(matrix(), tmp_path / "i.dat", "dat")
    found = (tmp_path / "i.dat").read_bytes()
    assert found == DAT


def test_forms_are_told_by_content(tmp_path: Path) -> None:
    path = tmp_path / "anything"
    path.write_bytes(GGUF)
    found = read_importance(path)
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("a.txt", "é.txt"), 3, 8)
    assert found.path == str(path) and not found.per_call
    for name, held in matrix().entries.items():
        assert np.array_equal(found.entries[name].sums, held.sums)
        assert np.array_equal(found.entries[name].counts, held.counts)
    path.write_bytes(DAT)
    found = read_importance(path)
    assert (found.datasets, found.chunk_count, found.per_call) == (("é.txt",), 3, True)
    assert found.entries["blk.0.ffn_up.weight"].sums.tolist() == [[0.1875, 6]]


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_what_is_read_is_written_again(tmp_path: Path, form: str) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes({"gguf": GGUF, "dat": DAT}[form])
    write_importance(read_importance(first), second, form)
    if form == "gguf":
        assert second.read_bytes() == GGUF
    else:
        # The older form tells no chunk size; rounding in float32 may move the last bit.
        one, two = read_importance(first), read_importance(second)
        assert one.names == two.names
        for name in one.names:
            np.testing.assert_allclose(one.importance(name), two.importance(name), rtol=3e-7)


def test_no_data_sets(tmp_path: Path) -> None:
    entries = {"blk.0.attn_q.weight": ImportanceEntry(np.float32([[4]]), np.array([2]))}
    plain = ImportanceMatrix(entries)
    for form in ("gguf", "dat"):
        write_importance(plain, tmp_path / form, form)
        assert read_importance(tmp_path / form).datasets == ()
    assert (tmp_path / "dat").read_bytes()[-8:] == bytes(8)
