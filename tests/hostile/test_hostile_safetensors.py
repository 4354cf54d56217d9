"""Numbered malformed safetensors files and folders: one clear error each, nothing left behind."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from halfbyte.converters import detect
from halfbyte.converters.format import ReadOptions, WriteOptions
from halfbyte.converters.hugging_face.format import HUGGING_FACE
from halfbyte.converters.hugging_face.safetensors import MAX_HEADER_BYTES, read_safetensors
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError
from support.safetensors_files import entry, raw_file

EIGHT = bytes(8)
SOUND = {"a": entry("F32", [2], 0, 8)}

FILES: dict[str, tuple[bytes, str]] = {
    "01 empty": (b"", "has 0 bytes, at least 8"),
    "02 seven bytes": (bytes(7), "has 7 bytes, at least 8"),
    "03 header beyond the file": (raw_file(SOUND, EIGHT, length=1000), "it is truncated"),
    "04 header length of 2**63": (struct.pack("<Q", 1 << 63) + b"{}", "at most 100000000"),
    "05 header above the cap": (
        struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}",
        "at most 100000000",
    ),
    "06 not JSON": (raw_file(b"{broken"), "header is not JSON"),
    "07 not UTF-8": (raw_file(b'{"\xff": 1}'), "header is not JSON"),
    "08 a list": (raw_file(b"[]"), "header is a list, a JSON object was required"),
    "09 deep nesting": (raw_file(b"[" * 200_000), "header is nested too deeply"),
    "10 deep objects": (raw_file(b'{"a":' * 100_000), "header is nested too deeply"),
    "11 duplicate tensor": (
        raw_file(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"1",
        ),
        "'a' stands twice",
    ),
    "12 NaN in the header": (raw_file(b'{"a": NaN}'), "NaN is not JSON"),
    "13 metadata of numbers": (raw_file({"__metadata__": {"a": 1}}), "object of strings"),
    "14 metadata as a list": (raw_file({"__metadata__": []}), "object of strings"),
    "15 entry without shape": (
        raw_file({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, EIGHT),
        "must have exactly dtype, shape and data_offsets",
    ),
    "16 entry of text": (raw_file({"a": "F32"}), "must have exactly"),
    "17 unknown dtype": (raw_file({"a": entry("F7", [2], 0, 8)}, EIGHT), "dtype 'F7'"),
    "18 dtype of another kind": (raw_file({"a": entry(["F32"], [2], 0, 8)}, EIGHT), "dtype"),  # type: ignore[arg-type]
    "19 negative dimension": (raw_file({"a": entry("F32", [-2], 0, 8)}, EIGHT), "list of at most"),
    "20 fractional dimension": (
        raw_file({"a": entry("F32", [2.0], 0, 8)}, EIGHT),
        "list of at most",
    ),
    "21 true as a dimension": (raw_file({"a": entry("U8", [True], 0, 1)}, b"1"), "list of at most"),
    "22 huge dimensions": (raw_file({"a": entry("F32", [2**40, 2**40], 0, 8)}, EIGHT), "too large"),
    "23 zero times huge": (raw_file({"a": entry("F32", [0, 2**63], 0, 0)}), "too large"),
    "24 forty dimensions": (raw_file({"a": entry("F32", [1] * 40, 0, 4)}, EIGHT), "at most 16"),
    "25 one offset": (
        raw_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, EIGHT),
        "not two counts",
    ),
    "26 negative offset": (raw_file({"a": entry("F32", [2], -8, 0)}, EIGHT), "not two counts"),
    "27 begin after end": (raw_file({"a": entry("F32", [2], 8, 0)}, EIGHT), "begins at 8, after"),
    "28 size against shape": (
        raw_file({"a": entry("F32", [3], 0, 8)}, EIGHT),
        "holds 8 bytes, 12 were required",
    ),
    "29 data beyond the file": (raw_file({"a": entry("F32", [4], 0, 16)}, EIGHT), "truncated"),
    "30 overlap": (
        raw_file({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)),
        "tensor 'b' overlaps",
    ),
    "31 same bytes twice": (
        raw_file({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 0, 8)}, EIGHT),
        "overlaps",
    ),
    "32 gap": (
        raw_file({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, bytes(12)),
        "4 unused bytes before tensor 'b'",
    ),
    "33 gap at the start": (raw_file({"a": entry("F32", [1], 4, 8)}, EIGHT), "4 unused bytes"),
    "34 trailing bytes": (raw_file(SOUND, bytes(9)), "1 bytes follow the last array"),
    "35 number of 5000 digits": (
        raw_file(b'{"a":{"dtype":"U8","shape":[' + b"1" * 5000 + b'],"data_offsets":[0,1]}}', b"1"),
        "header is not JSON",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_malformed_file(name: str, tmp_path: Path) -> None:
    content, message = FILES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises((FormatError, UnsupportedError)) as caught:
        HUGGING_FACE.read(path, ReadOptions())
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_at_every_region(tmp_path: Path) -> None:
    sound = save({"a": np.arange(6, dtype=np.float32), "b": np.arange(4, dtype=np.int8)})
    path = tmp_path / "model.safetensors"
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        with pytest.raises(FormatError):
            read_safetensors(path)
    path.write_bytes(sound)
    assert set(read_safetensors(path).entries) == {"a", "b"}


def test_every_byte_of_the_header_flipped(tmp_path: Path) -> None:
    sound = save({"a": np.arange(6, dtype=np.float32), "b": np.arange(4, dtype=np.int8)})
    path = tmp_path / "model.safetensors"
    for position in range(len(sound) - 28):
        for bit in (1, 4, 128):
            broken = bytearray(sound)
            broken[position] ^= bit
            path.write_bytes(bytes(broken))
            try:
                file = read_safetensors(path)
            except HalfbyteError:
                continue
            assert sum(entry.nbytes for entry in file.entries.values()) == 28


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        read_safetensors(tmp_path / "absent.safetensors")


def index_file(folder: Path, weight_map: object) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def shard(folder: Path, name: str, *tensors: str) -> None:
    (folder / name).write_bytes(save({t: np.ones(2, np.float32) for t in tensors}))


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("weight_map", "shards", "message"),
    [
        ({"a": ONE, "b": TWO}, {ONE: ["a"]}, f"shard '{TWO}' is missing"),
        ({"a": ONE, "b": ONE}, {ONE: ["a"]}, f"tensor 'b' is missing from shard '{ONE}'"),
        ({"a": ONE}, {ONE: ["a", "b"]}, f"shard '{ONE}' holds tensor 'b', which the index lacks"),
        ({"a": "../" + ONE}, {}, "leaves the folder"),
        ({"a": "/etc/passwd"}, {}, "leaves the folder"),
        ({"a": "x\0y"}, {}, "leaves the folder"),
        ({"a": ""}, {}, "leaves the folder"),
        ({"a": 1}, {}, "weight_map must be an object of file names"),
        ({}, {}, "weight_map must be an object of file names"),
        ([], {}, "weight_map must be an object of file names"),
        (None, {ONE: ["a"]}, f"shard '{TWO}' is missing"),
        (None, {ONE: ["a"], TWO: ["a"]}, f"tensor 'a' stands in {TWO} and before it"),
        (None, {ONE: ["a"], "other-00001-of-00001.safetensors": ["b"]}, "several sets"),
        (None, {"x.safetensors": ["a"], "y.safetensors": ["b"]}, "2 weight files and no"),
    ],
)
def test_broken_shards(
    tmp_path: Path, weight_map: object, shards: dict[str, list[str]], message: str
) -> None:
    if weight_map is not None:
        index_file(tmp_path, weight_map)
    for name, tensors in shards.items():
        shard(tmp_path, name, *tensors)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FormatError) as caught:
        detect(tmp_path).read(tmp_path, ReadOptions())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"[1]", "config.json is a list"),
        ("config.json", b'{"model_type": "llama", "hidden_size": -1}', "hidden_size is -1"),
        (
            "config.json",
            b'{"quantization_config": {"quant_method": "squeeze"}}',
            "a checkpoint quantized by 'squeeze' is not supported",
        ),
        ("config.json", b'{"quantization_config": true}', "quantization_config is True"),
        ("generation_config.json", b"nonsense", "generation_config.json is not JSON"),
        ("tokenizer.json", b"{", "tokenizer.json"),
        ("model.safetensors.index.json", b"[]", "index is a list"),
    ],
)
def test_broken_text_files(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    shard(tmp_path, "model.safetensors", "a")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(HalfbyteError) as caught:
        HUGGING_FACE.read(tmp_path, ReadOptions())
    assert message in str(caught.value)


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FormatError, match="no weights here"):
        HUGGING_FACE.read(tmp_path, ReadOptions())


def test_file_that_shrinks_leaves_no_output(tmp_path: Path) -> None:
    source = tmp_path / "in.safetensors"
    source.write_bytes(save({"a": np.ones((64, 1024), np.float32)}))
    model = HUGGING_FACE.read(source, ReadOptions())
    source.write_bytes(b"")
    with pytest.raises(FormatError, match="changed or removed after it was opened"):
        HUGGING_FACE.write(model, tmp_path / "out", WriteOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]
