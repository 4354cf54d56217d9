"""Numbered malformed importance matrices in both forms: only FormatError, little memory."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.gguf.ggml_types import ValueType
from halfbyte.converters.gguf.imatrix import (
    ImportanceEntry,
    ImportanceMatrix,
    read_importance,
    write_importance,
)
from halfbyte.converters.gguf.metadata_value import MetadataValue, typed
from halfbyte.converters.gguf.writer import write_gguf
from halfbyte.errors import FormatError
from halfbyte.ir.tensor import tensor_from_array

MEMORY_LIMIT = 1 << 20
INF, NAN = float("inf"), float("nan")


def i32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}i", *numbers)


def entry(
    name: bytes = b"a", calls: int = 1, values: tuple[float, ...] = (1,), count: int | None = None
) -> bytes:
    length = len(values) if count is None else count
    head = i32(len(name)) + name + i32(calls, length)
    return head + struct.pack(f"<{len(values)}f", *values)


END = i32(1, 5) + b"a.txt"
DAT: dict[str, tuple[bytes, str]] = {
    "01 empty file": (b"", "the file is empty"),
    "02 three bytes": (b"\1\0\0", "the number of entries needs 4 bytes, 3 are left"),
    "03 no entries": (i32(0), "the number of entries is 0, at least 1"),
    "04 negative number of entries": (i32(-1) + entry(), "the number of entries is -1"),
    "05 huge number of entries": (i32(2**31 - 1) + entry(), "announces 2147483647 entries"),
    "06 one entry too many": (i32(2) + entry(), "announces 2 entries"),
    "07 end instead of an entry": (i32(2) + entry() + END * 4, "has 1954051118 values"),
    "08 negative length of a name": (i32(1, -1) + entry(), "length of the name of entry 0 is -1"),
    "09 least length of a name": (i32(1, -(2**31)) + entry(), "is -2147483648, at least 1"),
    "10 empty name": (i32(1) + entry(b"") + END, "length of the name of entry 0 is 0"),
    "11 name beyond the end": (i32(1, 4000) + entry() + bytes(99), "name of entry 0 has 4000"),
    "12 huge name": (i32(1, 2**31 - 1) + bytes(99), "has 2147483647 bytes"),
    "13 long name": (i32(1) + entry(b"x" * 5000), "has 5000 bytes.*limit 4096"),
    "14 name with NUL": (i32(1) + entry(b"a\0b"), "has a NUL byte"),
    "15 name is not UTF-8": (i32(1) + entry(b"\xff\xfe"), "is not UTF-8"),
    "16 negative calls": (i32(1) + entry(calls=-1), "calls of weight 'a' is -1"),
    "17 no values": (i32(1) + entry(values=()) + bytes(9), "length of weight 'a' is 0"),
    "18 negative number of values": (i32(1) + entry(count=-1), "length of weight 'a' is -1"),
    "19 huge number of values": (i32(1) + entry(count=2**31 - 1), "has 2147483647 values"),
    "20 one value too many": (i32(1) + entry(count=2), "has 2 values, 4 bytes are left"),
    "21 NaN": (i32(1) + entry(values=(1, NAN)), "weight 'a' has the sum nan"),
    "22 infinity": (i32(1) + entry(values=(INF, 1)), "weight 'a' has the sum inf"),
    "23 negative infinity": (i32(1) + entry(values=(-INF,)), "has the sum -inf"),
    "24 negative sum": (i32(1) + entry(values=(1, -1e-30)), "has the sum -1"),
    "25 a weight twice": (i32(2) + entry() + entry(), "weight 'a' appears twice"),
    "26 negative chunks": (i32(1) + entry() + i32(-1, 0), "the number of chunks is -1"),
    "27 cut-off chunks": (i32(1) + entry() + b"\1\0", "the number of chunks needs 4 bytes"),
    "28 negative length of a path": (i32(1) + entry() + i32(1, -5), "path is -5"),
    "29 path beyond the end": (i32(1) + entry() + i32(1, 9) + b"short", "path has 9 bytes, 5"),
    "30 huge path": (i32(1) + entry() + i32(1, 2**31 - 1), "path has 2147483647 bytes"),
    "31 bytes after the end": (i32(1) + entry() + END + b"\0", "1 bytes follow the end"),
    "32 a text": (b"It was the best of times, it was the worst of times", "announces"),
    "33 zeros": (bytes(100), "the number of entries is 0"),
}


def check(path: Path, match: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=match) as caught:
            read_importance(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < MEMORY_LIMIT


@pytest.mark.parametrize("case", DAT)
def test_older_form(tmp_path: Path, case: str) -> None:
    data, match = DAT[case]
    path = tmp_path / "x.dat"
    path.write_bytes(data)
    check(path, match)


KEYS: dict[str, Any] = {
    "general.type": typed("imatrix"),
    "imatrix.datasets": MetadataValue(["a"], ValueType.ARRAY, ValueType.STRING),
    "imatrix.chunk_count": typed(1),
    "imatrix.chunk_size": typed(512),
}
TENSORS: dict[str, Any] = {
    "a.in_sum2": np.ones(6, np.float32),
    "a.counts": np.ones(1, np.float32),
}
NONE = object()
GGUF: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "40 no type": ({"general.type": NONE}, {}, "has no general.type"),
    "41 a model": ({"general.type": typed("model")}, {}, "has general.type 'model'"),
    "42 type is a number": ({"general.type": typed(7)}, {}, "has general.type '7'"),
    "43 no data sets": ({"imatrix.datasets": NONE}, {}, "key imatrix.datasets is missing"),
    "44 no chunk count": ({"imatrix.chunk_count": NONE}, {}, "imatrix.chunk_count is missing"),
    "45 no chunk size": ({"imatrix.chunk_size": NONE}, {}, "imatrix.chunk_size is missing"),
    "46 data sets are a text": (
        {"imatrix.datasets": typed("a")}, {}, "is STRING, ARRAY of STRING is required"
    ),
    "47 data sets are numbers": (
        {"imatrix.datasets": typed([1, 2])}, {}, "is ARRAY of INT32, ARRAY of STRING"
    ),
    "48 signed chunk count": ({"imatrix.chunk_count": typed(-1)}, {}, "is INT32, UINT32"),
    "49 chunk count of 64 bits": ({"imatrix.chunk_count": typed(2**40)}, {}, "is UINT64, UINT32"),
    "50 chunk size is a list": ({"imatrix.chunk_size": typed([1])}, {}, "is ARRAY of INT32"),
    "51 no entries": ({}, {"a.in_sum2": NONE, "a.counts": NONE}, "has no entries"),
    "52 tensors of a model only": (
        {}, {"a.in_sum2": NONE, "a.counts": NONE, "a": np.ones(4, np.float32)}, "has no entries"
    ),
    "53 no counts": ({}, {"a.counts": NONE}, "weight 'a' has .in_sum2, its .counts is missing"),
    "54 no sums": ({}, {"a.in_sum2": NONE}, "weight 'a' has .counts, its .in_sum2 is missing"),
    "55 sums in float16": ({}, {"a.in_sum2": np.ones(6, np.float16)}, "is F16, F32 is required"),
    "56 counts are integers": ({}, {"a.counts": np.ones(1, np.int32)}, "is I32, F32 is required"),
    "57 counts do not divide": ({}, {"a.counts": np.ones((4, 1), np.float32)}, "6 sums, .* 4"),
    "58 more counts than sums": ({}, {"a.counts": np.ones((12, 1), np.float32)}, "6 sums, .* 12"),
    "59 no sums at all": ({}, {"a.in_sum2": np.ones(0, np.float32)}, "has no values"),
    "60 no counts at all": ({}, {"a.counts": np.ones(0, np.float32)}, "has no values"),
    "61 NaN": ({}, {"a.in_sum2": np.float32([1, NAN, 1])}, "weight 'a' has the sum nan"),
    "62 infinity": ({}, {"a.in_sum2": np.float32([1, INF])}, "weight 'a' has the sum inf"),
    "63 negative sum": ({}, {"a.in_sum2": np.float32([1, -1])}, "weight 'a' has the sum -1"),
    "64 count is NaN": ({}, {"a.counts": np.float32([NAN])}, "has count nan"),
    "65 count is infinite": ({}, {"a.counts": np.float32([INF])}, "has count inf"),
    "66 negative count": ({}, {"a.counts": np.float32([[1], [-1]])}, "has count -1"),
    "67 count beyond int64": ({}, {"a.counts": np.float32([1e30])}, "has count 1.0"),
    "68 entry without a name": (
        {}, {".in_sum2": np.ones(1, np.float32), ".counts": np.ones(1, np.float32)}, "has no name"
    ),
}  # fmt: skip


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**base, **changes}.items() if value is not NONE}


@pytest.mark.parametrize("case", GGUF)
def test_gguf_form(tmp_path: Path, case: str) -> None:
    keys, arrays, match = GGUF[case]
    path = tmp_path / "x.gguf"
    tensors = [tensor_from_array(n, a) for n, a in merged(TENSORS, arrays).items()]
    write_gguf(path, merged(KEYS, keys), tensors)
    check(path, match)


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_70_truncated_at_every_byte(tmp_path: Path, form: str) -> None:
    entries = {
        "blk.0.a": ImportanceEntry(np.float32([[1, 2], [3, 4]]), np.array([1, 2])),
        "blk.1.a": ImportanceEntry(np.float32([[5, 6, 7]]), np.array([4])),
    }
    whole = tmp_path / "whole"
    write_importance(ImportanceMatrix(entries, ("set.txt",), 1, 4), whole, form)
    data = whole.read_bytes()
    # The end of the older form may be missing, or the data set alone; GGUF's last padding too.
    tail = 4 + 4 + len("set.txt")
    fine = {"dat": {len(data) - tail, len(data) - tail + 4}, "gguf": set()}[form]
    padding = 28 if form == "gguf" else 0
    path = tmp_path / "cut"
    for length in range(len(data) - padding):
        path.write_bytes(data[:length])
        if length in fine:
            assert read_importance(path).datasets == ()
        else:
            with pytest.raises(FormatError):
                read_importance(path)


def test_71_every_byte_changed_gives_a_matrix_or_a_clear_error(tmp_path: Path) -> None:
    entries = {"blk.0.a": ImportanceEntry(np.float32([[1, 2]]), np.array([2]))}
    for form in ("gguf", "dat"):
        whole = tmp_path / "whole"
        write_importance(ImportanceMatrix(entries, ("set.txt",), 1, 4), whole, form)
        data = bytearray(whole.read_bytes())
        path = tmp_path / "changed"
        for position in range(len(data)):
            for value in (0, 0x7F, 0xFF):
                changed = data.copy()
                changed[position] = value
                path.write_bytes(changed)
                try:
                    found = read_importance(path)
                except FormatError:
                    continue
                assert all(np.isfinite(found.importance(name)).all() for name in found.names)
