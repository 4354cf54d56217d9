"""Numbered malformed GGUF files: only HalfbyteError, little memory, little time."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.gguf.container import MAX_NESTING, read_container
from halfbyte.converters.gguf.metadata_value import pack_pair, pack_string, typed
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError
from support.gguf_models import gguf_bytes, read, write
from support.random_models import random_model

MEMORY_LIMIT = 8 << 20
HUGE = [2**64 - 1, 2**63, 2**61, 2**32 + 1]
ONE_PAIR = pack_pair("k", typed(1))


def header(tensors: int, pairs: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def one_pair(kind: int, value: bytes, key: bytes = b"k") -> bytes:
    return header(0, 1) + pair(key, kind, value)


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return one_pair(9, struct.pack("<IQ", kind, count) + values)


def info(name: bytes, dims: list[int], kind: int = 0, offset: int = 0, count: int = -1) -> bytes:
    number = len(dims) if count < 0 else count
    packed = b"".join(struct.pack("<Q", dim) for dim in dims)
    start = struct.pack("<Q", len(name)) + name + struct.pack("<I", number)
    return start + packed + struct.pack("<IQ", kind, offset)


def tensors(*infos: bytes, data: int = 64, pairs: bytes = b"", pair_count: int = 0) -> bytes:
    head = header(len(infos), pair_count) + pairs + b"".join(infos)
    return head + bytes(-len(head) % 32) + bytes(data)


def alignment(value: Any) -> bytes:
    return tensors(
        info(b"t", [1]), pairs=pack_pair("general.alignment", typed(value)), pair_count=1
    )


CASES: dict[str, tuple[bytes, str]] = {
    "01 empty file": (b"", "the file is empty"),
    "02 other magic": (b"GGML" + bytes(60), "starts with b'GGML'"),
    "03 magic only": (b"GGUF", "the version needs 4 bytes, 0 are left"),
    "04 version 0": (header(0, 0, 0), "GGUF version 0"),
    "05 version 1": (header(0, 0, 1), "GGUF version 1"),
    "06 version 4": (header(0, 0, 4), "GGUF version 4"),
    "07 version 4, big-endian": (b"GGUF" + struct.pack(">IQQ", 4, 0, 0), "GGUF version 4"),
    **{
        f"08 tensors {count}": (header(count, 0) + bytes(100), "tensors and 0 pairs announced")
        for count in HUGE
    },
    **{
        f"09 pairs {count}": (header(0, count) + bytes(100), "0 tensors and .* pairs announced")
        for count in HUGE
    },
    **{
        f"10 key of {count} bytes": (
            header(0, 1) + struct.pack("<Q", count) + bytes(99), "key 0 has .* bytes"
        )
        for count in HUGE
    },
    **{
        f"11 string of {count} bytes": (one_pair(8, struct.pack("<Q", count)), "has .* bytes")
        for count in HUGE
    },
    **{
        f"12 array of {count} of type {kind}": (array(kind, count), "elements, 0 bytes are left")
        for count in HUGE
        for kind in (0, 6, 8, 9, 12)
    },
    "13 empty key": (header(0, 1) + pair(b"", 4, bytes(4)) + bytes(9), "is empty or has a NUL"),
    "14 key with NUL": (one_pair(4, bytes(4), b"a\0b"), "is empty or has a NUL byte"),
    "15 key not UTF-8": (one_pair(4, bytes(4), b"\xff\xfe"), "is not UTF-8"),
    "16 duplicate key": (header(0, 2) + ONE_PAIR * 2, "key 'k' appears twice"),
    "17 value type 13": (one_pair(13, bytes(8)), "has value type 13, known are 0-12"),
    "18 value type -1": (one_pair(2**32 - 1, bytes(8)), "has value type 4294967295"),
    "19 element type 13": (array(13, 1, bytes(8)), "has value type 13"),
    "20 arrays nested 10,000 deep": (
        one_pair(9, struct.pack("<IQ", 9, 1) * 10_000), f"deeper than {MAX_NESTING}"
    ),
    "21 string array cut off": (
        array(8, 2, struct.pack("<Q", 1) + b"a" + bytes(7)), "cut off at string 1 of 2"
    ),
    "22 string array of a long string": (
        array(8, 2, struct.pack("<QQ", 0, 2**63)), "string 1 of key 'k' has .* too many"
    ),
    "23 alignment 0": (alignment(0), "general.alignment is UINT32 0"),
    "24 alignment 3": (alignment(3), "general.alignment is UINT32 3"),
    "25 alignment 2^31": (alignment(2**31), "ends at byte 2147483652, the file has"),
    "26 alignment 2^32 as u64": (alignment(2**32), "general.alignment is UINT64"),
    "27 alignment as i32": (alignment(np.int32(32)), "general.alignment is INT32 32"),
    "28 alignment as text": (alignment("32"), "general.alignment is STRING '32'"),
    "29 alignment as an array": (alignment([32]), "general.alignment is ARRAY"),
    "30 five dimensions": (tensors(info(b"t", [1] * 5)), "has 5 dimensions, at most 4"),
    "31 2^32 - 1 dimensions": (tensors(info(b"t", [], count=2**32 - 1)), "4294967295 dimensions"),
    "32 dimension 2^64 - 1": (tensors(info(b"t", [2**64 - 1])), "more values than 64 bits count"),
    "33 dimension 2^63": (tensors(info(b"t", [2**63])), "more values than 64 bits count"),
    "34 product past 2^63": (tensors(info(b"t", [2**32, 2**31])), "more values than 64 bits"),
    "35 product past 2^63 beside a zero": (
        tensors(info(b"t", [2**62, 0, 8])), "more values than 64 bits count"
    ),
    "36 [32, 2^42 + 1]": (tensors(info(b"t", [32, 2**42 + 1])), "the file has"),
    "37 quantized near 2^63": (tensors(info(b"t", [2**62, 1], 8)), "the file has"),
    "38 half a block": (tensors(info(b"t", [31], 2)), "rows of 31, Q4_0 needs a multiple of 32"),
    "39 empty tensor name": (tensors(info(b"", [1])), "is empty or has a NUL byte"),
    "40 tensor name with NUL": (tensors(info(b"a\0b", [1])), "is empty or has a NUL byte"),
    "41 tensor name not UTF-8": (tensors(info(b"\xc3", [1])), "is not UTF-8"),
    "42 tensor name of 65 bytes": (tensors(info(b"n" * 65, [1])), "longer than 64 bytes"),
    "43 duplicate tensor": (
        tensors(info(b"t", [8]), info(b"t", [8], 0, 32)), "tensor 't' appears twice"
    ),
    "44 type -1": (tensors(info(b"t", [1], 2**32 - 1)), "has type 4294967295, known are 0-42"),
    "45 type 43": (tensors(info(b"t", [1], 43)), "has type 43, known are 0-42"),
    "46 type 4": (tensors(info(b"t", [32], 4)), "has type Q4_2, which ggml removed"),
    "47 type 31": (tensors(info(b"t", [32], 31)), "has type Q4_0_4_4, which ggml removed"),
    "48 type 36": (tensors(info(b"t", [32], 36)), "has type IQ4_NL_4_4, which ggml removed"),
    "49 overlap": (
        tensors(info(b"a", [16]), info(b"b", [16], 0, 32), data=96), "'a' and 'b' overlap"
    ),
    "50 the same place twice": (
        tensors(info(b"a", [8]), info(b"b", [8], 0, 0)), "'a' and 'b' overlap"
    ),
    "51 unaligned offset": (tensors(info(b"t", [1], 0, 4)), "starts at 4, not aligned to 32"),
    "52 one byte too short": (tensors(info(b"t", [16]))[:-1], "it is cut off"),
    "53 offset 2^64 - 32": (tensors(info(b"t", [8], 0, 2**64 - 32)), "the file has"),
    "54 offset past the end": (tensors(info(b"t", [8], 0, 64)), "the file has"),
    "55 sizes that sum past 2^64": (
        tensors(info(b"a", [2**62 - 8]), info(b"b", [2**62], 0, 2**64 - 32)), "the file has"
    ),
    "56 data section past the end": (header(1, 0) + info(b"t", [1]), "the file has"),
    "57 tensor table cut off": (header(1, 0) + info(b"t", [1])[:-4] + b"", "is cut off|announced"),
    "58 big-endian truncated": (b"GGUF" + struct.pack(">IQ", 3, 1), "the file is cut off"),
}  # fmt: skip


def bounded(action: Callable[[], Any]) -> None:
    """Run an action; fail if it takes long or much memory."""
    tracemalloc.start()
    started = time.perf_counter()
    try:
        action()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY_LIMIT
        assert time.perf_counter() - started < 2.0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_malformed_files(tmp_path: Path, case: str) -> None:
    content, rule = CASES[case]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=rule) as caught:
        bounded(lambda: read_container(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def complete_file() -> bytes:
    block = bytes(range(34))
    pairs = {
        "general.architecture": "unheard",
        "general.alignment": 32,
        "a.text": ["x", "yy", ""],
        "a.numbers": np.arange(3, dtype=np.int16),
        "a.flag": True,
    }
    return gguf_bytes(pairs, [("one", (3,), 0, bytes(12)), ("two", (32, 1), 8, block)])


def test_59_truncated_at_every_byte(tmp_path: Path) -> None:
    content = complete_file()
    path = tmp_path / "cut.gguf"
    last_data_byte = len(content) - (64 - 34)
    path.write_bytes(content)
    assert len(read_container(path).tensors) == 2
    for length in range(last_data_byte):
        path.write_bytes(content[:length])
        with pytest.raises(FormatError):
            read_container(path)


def test_60_every_byte_changed(tmp_path: Path) -> None:
    content = complete_file()
    path = tmp_path / "changed.gguf"
    for at in range(len(content) - 64):
        for value in (0, 0xFF, content[at] ^ 0x80):
            path.write_bytes(content[:at] + bytes([value]) + content[at + 1 :])
            try:
                model = read(path)
                for tensor in model.weights.values():
                    assert tensor.nbytes <= len(content)
                    tensor.read()
            except HalfbyteError as error:
                assert isinstance(error, FormatError | UnsupportedError)


def test_61_random_bytes_after_the_magic(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "random.gguf"
    for _ in range(200):
        counts = struct.pack("<IQQ", 3, *random.integers(1, 4, 2).tolist())
        path.write_bytes(b"GGUF" + counts + random.bytes(200))
        with pytest.raises(FormatError):
            bounded(lambda: read(path))


@pytest.mark.parametrize("dims", [[0], [0, 3], [3, 0], [2, 0, 3], [1, 1, 1, 0], [0, 0]])
def test_62_zero_dimensions_are_legal(tmp_path: Path, dims: list[int]) -> None:
    path = tmp_path / "zero.gguf"
    path.write_bytes(tensors(info(b"t", dims)))
    tensor = next(iter(read(path).weights.values()))
    assert tensor.numpy().size == 0
    write(read(path), tmp_path / "copy.gguf")
    assert read(tmp_path / "copy.gguf").weights["t"].shape == tuple(reversed(dims))


def test_63_token_text_with_nul_and_bad_utf8(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    raw = b"a\0b\xff"
    path.write_bytes(gguf_bytes({"t": [raw.decode("utf-8", "surrogateescape")]}))
    found = read_container(path).metadata["t"].value
    assert found[0].encode("utf-8", "surrogateescape") == raw


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a/b", "\x1b[31m", "e\u0301"])
def test_64_names_are_never_paths(tmp_path: Path, name: str) -> None:
    path = tmp_path / "names.gguf"
    path.write_bytes(gguf_bytes({}, [(name, (1,), 0, bytes(4))]))
    assert list(read(path).weights) == [name]
    write(read(path), tmp_path / "copy.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.gguf", "names.gguf"]


TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.token_type": [1, 1, 1],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 0,
}


def changed_tokenizer(key: str, value: Any) -> bytes:
    pairs = {"general.architecture": "unheard", **TOKENIZER}
    pairs[f"tokenizer.ggml.{key}"] = value
    return gguf_bytes(pairs)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", 3),
        ("tokens", [1, 2, 3]),
        ("tokens", "abc"),
        ("tokens", ["a", "a", "ab"]),
        ("token_type", [1, 1]),
        ("token_type", [1, 1, 1, 1]),
        ("token_type", ["1", "1", "1"]),
        ("token_type", 1),
        ("scores", ["x", "y", "z"]),
        ("scores", np.zeros(2, np.float32)),
        ("merges", [1, 2]),
        ("merges", "a b"),
        ("merges", ["ab"]),
        ("merges", ["a b c d"]),
        ("model", 7),
        ("pre", 7),
        ("eos_token_id", 3),
        ("eos_token_id", -1),
        ("eos_token_id", "0"),
        ("add_bos_token", "yes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_65_tokenizer_keys(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "tokenizer.gguf"
    path.write_bytes(changed_tokenizer(key, value))
    try:
        bounded(lambda: read(path))
    except HalfbyteError as error:
        assert "\n" not in str(error)


ARCHITECTURE_KEYS = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "vocab_size",
]
BAD_VALUES = [
    0,
    -1,
    2**31,
    2**63,
    513,
    1.5,
    float("nan"),
    float("inf"),
    "x",
    True,
    [1, 2],
    [],
    ["a"],
]


@pytest.mark.parametrize("key", ARCHITECTURE_KEYS)
def test_66_architecture_keys(tmp_path: Path, key: str) -> None:
    write(random_model("llama"), tmp_path / "m.gguf")
    model = read(tmp_path / "m.gguf")
    pairs = model.metadata["gguf"]
    entries = [
        (name, tuple(reversed(tensor.shape)), 0, tensor.numpy().tobytes())
        for name, tensor in model.weights.items()
    ]
    path = tmp_path / "n.gguf"
    for value in BAD_VALUES:
        try:
            entry = typed(value)
        except (TypeError, ValueError):
            continue
        path.write_bytes(gguf_bytes({**pairs, f"llama.{key}": entry}, entries))
        try:
            found = read(path)
            if found.build is not None:
                assert found.graph.nodes
        except HalfbyteError as error:
            assert "\n" not in str(error)


def test_67_missing_tensors_of_a_known_architecture(tmp_path: Path) -> None:
    write(random_model("llama"), tmp_path / "m.gguf")
    model = read(tmp_path / "m.gguf")
    kept = {n: t for n, t in model.weights.items() if n != "blk.1.ffn_up.weight"}
    write(model.with_weights(kept), tmp_path / "n.gguf")
    with pytest.raises(FormatError, match="missing; the file is incomplete"):
        read(tmp_path / "n.gguf")


def test_68_file_shortened_after_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write(random_model("llama"), path)
    model = read(path)
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(HalfbyteError):
        write(model, tmp_path / "copy.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_69_many_empty_strings_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from halfbyte.converters.gguf import container

    monkeypatch.setattr(container, "MAX_STRINGS", 10)
    path = tmp_path / "strings.gguf"
    path.write_bytes(array(8, 11, bytes(88)))
    with pytest.raises(FormatError, match="has 11 strings, the limit is 10"):
        read_container(path)


def test_70_chat_template_is_only_data(tmp_path: Path) -> None:
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}" + "{% for x in range(10**9) %}"
    pairs = {"general.architecture": "unheard", **TOKENIZER, "tokenizer.chat_template": template}
    path = tmp_path / "template.gguf"
    path.write_bytes(gguf_bytes(pairs))
    bounded(lambda: read(path))
    assert pack_string(template) in path.read_bytes()
