"""Numbered malformed .hb files: one clear error each; hashes find damage inside arrays."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.format import ReadOptions, WriteOptions
from halfbyte.converters.native.format import NATIVE
from halfbyte.converters.native.reader import verify_hashes
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError
from halfbyte.ir.graph import Graph
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.ir.tokenizer import Tokenizer
from support.encoded import encoded
from support.safetensors_files import edit_header

Header = dict[str, Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    dense = tensor_from_array("dense", np.arange(8, dtype=np.float32).reshape(2, 4))
    affine = encoded("int4-g32", 4, 64).renamed("affine")
    tokenizer = Tokenizer("bpe", ("a", "b"), source={"tokenizer.json": b"{}"})
    model = Model(
        {"dense": dense, "affine": affine},
        {"vocab_size": 4},
        tokenizer,
        metadata={"files": {"tokenizer.json": b"{}"}, "extra": [1]},
    )
    path = tmp_path_factory.mktemp("sound") / "m.hb"
    NATIVE.write(model, path, WriteOptions())
    return path.read_bytes()


def meta(**changes: str | None) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        for key, value in changes.items():
            header["__metadata__"].pop(key, None)
            if value is not None:
                header["__metadata__"][key] = value

    return change


def table(change: Callable[[list[Any]], None]) -> Callable[[Header], None]:
    def apply(header: Header) -> None:
        entries = json.loads(header["__metadata__"]["tensors"])
        change(entries)
        header["__metadata__"]["tensors"] = json.dumps(entries)

    return apply


def first(**changes: Any) -> Callable[[Header], None]:
    return table(lambda entries: entries[0].update(changes))


def renamed(old: str, new: str) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header[new] = header.pop(old)

    return change


def reshaped(name: str, **changes: Any) -> Callable[[Header], None]:
    return lambda header: header[name].update(changes)


CHANGES: dict[str, tuple[Callable[[Header], None], str]] = {
    "01 no format": (meta(format=None), "names no halfbyte format"),
    "02 no layout version": (meta(halfbyte_format=None), "names no halfbyte format"),
    "03 later layout": (meta(halfbyte_format="2"), ".hb layout '2' is not supported"),
    "04 no config": (meta(config=None), "metadata lacks 'config'"),
    "05 config of numbers": (meta(config="[1]"), "config is not a JSON object"),
    "06 config that is no JSON": (meta(config="{"), "metadata 'config' is not JSON"),
    "07 config that closes the wrapper": (meta(config='1},"a":{'), "metadata 'config'"),
    "08 unknown tag": (meta(config='{"a":{"$array":["float99",[1],""]}}'), "cannot be read"),
    "09 base64 that is none": (meta(config='{"a":{"$base64":"***"}}'), "cannot be read"),
    "10 array of another size": (
        meta(config='{"a":{"$array":["int8",[1000000],"AA=="]}}'),
        "cannot be read",
    ),
    "11 gguf type 99": (meta(config='{"a":{"$gguf":[99,null,1]}}'), "cannot be read"),
    "12 gguf without fields": (meta(config='{"a":{"$gguf":[]}}'), "cannot be read"),
    "13 unhashable key": (meta(config='{"a":{"$items":[[[],1]]}}'), "cannot be read"),
    "14 deep config": (meta(config="[" * 50_000), "metadata 'config' is nested too deeply"),
    "15 no tensor table": (meta(tensors=None), "metadata lacks 'tensors'"),
    "16 table that is no list": (meta(tensors="{}"), "'tensors' is not a list"),
    "17 entry that is no object": (table(lambda t: t.append(1)), "other keys than it must"),
    "18 entry with a strange key": (first(extra=1), "other keys than it must"),
    "19 name that is no text": (first(name=1), "name 1"),
    "20 reserved name": (first(name="__files__/x"), "name '__files__/x'"),
    "21 negative shape": (first(shape=[-1]), "a bad shape ('dense')"),
    "22 huge shape": (first(shape=[2**50]), "a bad shape ('dense')"),
    "23 unknown role": (first(role="boss"), "role 'boss' ('dense')"),
    "24 role of another kind": (first(role=[]), "role [] ('dense')"),
    "25 negative layer": (first(layer=-1), "layer -1 ('dense')"),
    "26 kind that is no text": (first(kind=None), "a bad kind ('dense')"),
    "27 unknown encoding": (first(encoding="Q99"), "encoding 'Q99' of tensor 'dense'"),
    "28 other shape": (first(shape=[4, 4]), "array 'dense' is float32 [2, 4], float32 [4, 4]"),
    "29 same values, other shape": (first(shape=[4, 2]), "float32 [4, 2] was required"),
    "30 other encoding": (first(encoding="float64"), "float64 [2, 4] was required by float64"),
    "31 columns that do not fit": (first(encoding="Q4_0"), "tensor 'dense'"),
    "32 missing part": (first(encoding="int4-g4"), "array 'dense:codes' of tensor 'dense'"),
    "33 tensor twice": (table(lambda t: t.append(t[0])), "tensor 'dense' stands twice"),
    "34 tensor left out": (table(lambda t: t.pop(0)), "array 'dense' belongs to no tensor"),
    "35 array renamed": (renamed("dense", "other"), "array 'dense' of tensor 'dense' is missing"),
    "36 array retyped": (
        reshaped("dense", dtype="I32"),
        "array 'dense' is int32 [2, 4], float32 [2, 4] was required",
    ),
    "37 no hashes": (meta(sha256=None), "metadata lacks 'sha256'"),
    "38 a hash missing": (meta(sha256="{}"), "does not name exactly the arrays"),
    "39 file outside": (renamed("__files__/tokenizer.json", "__files__/../x"), "leaves the folder"),
    "40 file gone": (meta(tokenizer_files='["gone"]'), "tokenizer_files names a file"),
    "41 tokenizer files as numbers": (meta(tokenizer_files="[1]"), "tokenizer_files names a file"),
    "42 unknown reserved array": (renamed("__extra__", "__more__"), "'__more__' belongs to no"),
    "43 provenance of text": (meta(provenance='"x"'), "provenance is not a JSON object"),
    "44 config with number keys": (meta(config='{"$items":[[1,2]]}'), "config is not a JSON"),
    "45 config without its keys": (meta(config='{"model_type":"llama"}'), "config lacks '"),
    "46 config with a bad value": (
        meta(config='{"model_type":"llama","hidden_size":-1}'),
        "hidden_size is -1",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_malformed_header(name: str, sound: bytes, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    path = tmp_path / "m.hb"
    path.write_bytes(edit_header(sound, change))
    with pytest.raises((FormatError, UnsupportedError)) as caught:
        NATIVE.read(path, ReadOptions())
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hash_that_is_none(sound: bytes, tmp_path: Path) -> None:
    def change(header: Header) -> None:
        hashes = json.loads(header["__metadata__"]["sha256"])
        hashes["dense"] = "zz"
        header["__metadata__"]["sha256"] = json.dumps(hashes)

    (tmp_path / "m.hb").write_bytes(edit_header(sound, change))
    with pytest.raises(FormatError, match="sha256 of 'dense' is not 64 hexadecimal digits"):
        NATIVE.read(tmp_path / "m.hb", ReadOptions())


def test_text_of_the_wrong_type(tmp_path: Path) -> None:
    from safetensors.numpy import save

    path = tmp_path / "m.hb"
    metadata = {
        "format": "halfbyte",
        "halfbyte_format": "1",
        "tensors": "[]",
        "sha256": json.dumps({"__extra__": "0" * 64}),
    }
    path.write_bytes(save({"__extra__": np.zeros(2, np.float32)}, metadata))
    with pytest.raises(FormatError, match="'__extra__' must be a list of bytes"):
        NATIVE.read(path, ReadOptions())


@pytest.mark.parametrize("stored", ["__extra__", "__tokenizer__"])
def test_damaged_text(stored: str, sound: bytes, tmp_path: Path) -> None:
    header_length = int.from_bytes(sound[:8], "little")
    header = json.loads(sound[8 : 8 + header_length])
    begin = 8 + header_length + header[stored]["data_offsets"][0]
    path = tmp_path / "m.hb"
    path.write_bytes(sound[:begin] + b"\x00" + sound[begin + 1 :])
    with pytest.raises(FormatError) as caught:
        NATIVE.read(path, ReadOptions())
    assert str(path) in str(caught.value)


def test_truncated_at_every_region(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.hb"
    for length in [*range(0, len(sound), 29), len(sound) - 1]:
        path.write_bytes(sound[:length])
        with pytest.raises(FormatError):
            NATIVE.read(path, ReadOptions())


def test_damage_is_found_by_the_hashes(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.hb"
    path.write_bytes(sound)
    verify_hashes(path)
    start = 8 + int.from_bytes(sound[:8], "little")
    for position in range(start, len(sound), 2):
        broken = bytearray(sound)
        broken[position] ^= 1
        path.write_bytes(bytes(broken))
        with pytest.raises(FormatError, match=r"has SHA-256 .*; the file is damaged, copy it"):
            verify_hashes(path, threads=1)


def test_every_byte_of_the_header_flipped(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.hb"
    for position in range(0, 8 + int.from_bytes(sound[:8], "little"), 3):
        broken = bytearray(sound)
        broken[position] ^= 2
        path.write_bytes(bytes(broken))
        try:
            model = NATIVE.read(path, ReadOptions())
        except HalfbyteError:
            continue
        for tensor in model.weights.values():
            tensor.read()


def test_stored_graph_that_is_no_text(tmp_path: Path) -> None:
    model = Model({"w": tensor_from_array("w", np.ones(2, np.float32))}, {"model_type": "new"})
    whole = replace(model, build=lambda m: Graph())
    path = tmp_path / "m.hb"
    NATIVE.write(whole, path, WriteOptions())
    content = path.read_bytes()
    path.write_bytes(content.replace(b"graph main", b"graph \xff\xff\xff\xff"))
    with pytest.raises(FormatError, match="__graph__ is not UTF-8 text"):
        _ = NATIVE.read(path, ReadOptions()).graph
    path.write_bytes(content.replace(b"graph main", b"grape main"))
    with pytest.raises(HalfbyteError):
        _ = NATIVE.read(path, ReadOptions()).graph
