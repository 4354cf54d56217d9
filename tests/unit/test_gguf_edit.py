"""Editing metadata: values by text, keys kept in place, files patched or written anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from halfbyte.converters.gguf.container import read_container
from halfbyte.converters.gguf.edit import (
    MetadataEdit,
    edit_metadata,
    edited,
    parse_value,
    special_token,
)
from halfbyte.converters.gguf.ggml_types import ValueType
from halfbyte.converters.gguf.metadata_value import MetadataValue, typed
from halfbyte.errors import HalfbyteError
from support.gguf_models import read, write
from support.random_models import random_model


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    write(random_model("llama"), path, "Q8_0")
    return path


def tensor_bytes(path: Path) -> dict[str, bytes]:
    weights = read(path).weights
    return {name: tensor.read()["data"].tobytes() for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("text", "type_name", "value", "kind"),
    [
        ("12", "", 12, ValueType.UINT32),
        ("-1", "", -1, ValueType.INT32),
        ("0.5", "", 0.5, ValueType.FLOAT32),
        ("true", "", True, ValueType.BOOL),
        ("twelve", "", "twelve", ValueType.STRING),
        ("12", "str", "12", ValueType.STRING),
        ("0x10", "u8", 16, ValueType.UINT8),
        ("12", "f64", 12.0, ValueType.FLOAT64),
        ("0", "bool", False, ValueType.BOOL),
    ],
)
def test_values(text: str, type_name: str, value: object, kind: ValueType) -> None:
    found = parse_value("key", text, type_name)
    assert (found.value, found.type) == (value, kind)


def test_a_key_keeps_its_type() -> None:
    assert parse_value("key", "3", before=typed(2.0)).type is ValueType.FLOAT32
    before = MetadataValue(["a"], ValueType.ARRAY, ValueType.STRING)
    assert parse_value("key", '["b", "c"]', before=before).value == ["b", "c"]
    numbers = parse_value("key", "[1, -2]", "[i16]")
    assert numbers.element_type is ValueType.INT16
    np.testing.assert_array_equal(numbers.value, [1, -2])


@pytest.mark.parametrize(
    ("text", "type_name", "message"),
    [
        ("300", "u8", "no uint8"),
        ("-1", "u32", "no uint32"),
        ("x", "f32", "no float32"),
        ("maybe", "bool", "no bool"),
        ("{}", "[u8]", "no JSON list"),
        ("[1,", "[u8]", "no JSON list"),
        ("[1, 999]", "[u8]", "no uint8"),
        ("1", "u128", "not known, required one of u8"),
    ],
)
def test_values_that_do_not_fit(text: str, type_name: str, message: str) -> None:
    with pytest.raises(HalfbyteError, match=message) as caught:
        parse_value("some.key", text, type_name)
    assert str(caught.value).startswith("some.key: ")


def test_order_of_keys() -> None:
    pairs = {name: typed(index) for index, name in enumerate("abc")}
    edit = MetadataEdit({"b": typed("new"), "d": typed(9)}, ["a"], [("c", "see")])
    assert list(edited(pairs, edit)) == ["b", "see", "d"]
    assert edited(pairs, edit)["see"].value == 2
    for wrong in (
        MetadataEdit(remove=["x"]),
        MetadataEdit(rename=[("x", "y")]),
        MetadataEdit(rename=[("a", "b")]),
        MetadataEdit({"": typed(1)}),
    ):
        with pytest.raises(HalfbyteError):
            edited(pairs, wrong)


def test_patched_in_place(model_file: Path) -> None:
    before, weights = model_file.read_bytes(), tensor_bytes(model_file)
    status = model_file.stat()
    assert edit_metadata(model_file, None, MetadataEdit({"general.file_type": typed(1)}))
    assert model_file.stat().st_ino == status.st_ino
    assert len(model_file.read_bytes()) == len(before)
    assert read_container(model_file).metadata["general.file_type"].value == 1
    assert tensor_bytes(model_file) == weights
    assert edit_metadata(model_file, None, MetadataEdit({"general.file_type": typed(7)}))
    assert model_file.read_bytes() == before
    assert [path.name for path in model_file.parent.iterdir()] == ["model.gguf"]


def test_written_anew_where_the_header_grows(model_file: Path) -> None:
    weights = tensor_bytes(model_file)
    edit = MetadataEdit({"general.description": typed("word " * 100)})
    assert not edit_metadata(model_file, None, edit)
    assert read_container(model_file).metadata["general.description"].value == "word " * 100
    assert tensor_bytes(model_file) == weights
    assert [path.name for path in model_file.parent.iterdir()] == ["model.gguf"]


def test_another_alignment_moves_the_tensors(model_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "aligned.gguf"
    before = model_file.read_bytes()
    edit_metadata(model_file, target, MetadataEdit({"general.alignment": typed(4096)}))
    container = read_container(target)
    assert container.alignment == 4096
    assert not container.problems
    assert tensor_bytes(target) == tensor_bytes(model_file)
    assert model_file.read_bytes() == before


@pytest.mark.parametrize("length", ["same", "longer"])
def test_an_edit_that_breaks_the_file_changes_nothing(model_file: Path, length: str) -> None:
    before = model_file.read_bytes()
    pairs = {"llama.block_count": typed(99)}
    if length == "longer":
        pairs["general.description"] = typed("word " * 100)
    with pytest.raises(HalfbyteError, match="this edit would break the file, nothing was changed"):
        edit_metadata(model_file, None, MetadataEdit(pairs))
    assert model_file.read_bytes() == before
    assert [path.name for path in model_file.parent.iterdir()] == ["model.gguf"]


def test_a_whole_model_does_not_become_a_part(model_file: Path, tmp_path: Path) -> None:
    before = model_file.read_bytes()
    edit = MetadataEdit({"split.count": MetadataValue(np.uint16(3), ValueType.UINT16)})
    with pytest.raises(HalfbyteError, match="split.count 3 asks for a name"):
        edit_metadata(model_file, None, edit)
    assert model_file.read_bytes() == before
    part = tmp_path / "m-00001-of-00003.gguf"
    assert not edit_metadata(model_file, part, edit)
    edit = MetadataEdit({"split.count": MetadataValue(np.uint16(2), ValueType.UINT16)})
    with pytest.raises(HalfbyteError, match="split.count 2 asks for a name"):
        edit_metadata(part, None, edit)


def test_a_folder_is_no_destination(model_file: Path) -> None:
    edit = MetadataEdit({"general.file_type": typed(1)})
    with pytest.raises(HalfbyteError, match="is a folder, a file was required"):
        edit_metadata(model_file, model_file.parent, edit)


def test_a_part_does_not_replace_another(model_file: Path, tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for part in parts:
        part.write_bytes(model_file.read_bytes())
    edit = MetadataEdit({"general.file_type": typed(1)})
    with pytest.raises(HalfbyteError, match="another part of the same model"):
        edit_metadata(parts[0], parts[1], edit)
    assert parts[1].read_bytes() == model_file.read_bytes()
    assert not edit_metadata(parts[0], parts[0], edit)
    other = tmp_path / "other"
    other.mkdir()
    edit_metadata(parts[0], other / parts[1].name, edit)


def test_special_tokens_by_text_and_id() -> None:
    pairs = {"tokenizer.ggml.tokens": typed(["a", "<eos>", "2"])}
    assert special_token(pairs, "eos", "<eos>") == (
        "tokenizer.ggml.eos_token_id",
        MetadataValue(1, ValueType.UINT32),
    )
    assert special_token(pairs, "pad", "0")[1].value == 0
    assert special_token(pairs, "unk", "2")[0] == "tokenizer.ggml.unknown_token_id"
    for name, text in (("eos", "nothing"), ("eos", "3"), ("end", "a")):
        with pytest.raises(HalfbyteError):
            special_token(pairs, name, text)
