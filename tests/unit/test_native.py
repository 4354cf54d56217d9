"""The .hb file: everything of a model survives, arrays are computed once, hashes hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from halfbyte.converters import detect, format_for_output
from halfbyte.converters.format import ReadOptions, WriteOptions
from halfbyte.converters.gguf.ggml_types import ValueType
from halfbyte.converters.gguf.metadata_value import MetadataValue
from halfbyte.converters.native import values
from halfbyte.converters.native.format import NATIVE
from halfbyte.converters.native.reader import verify_hashes
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError
from halfbyte.ir.encodings import list_encodings
from halfbyte.ir.encodings.encoding import Array, Encoding
from halfbyte.ir.model import Model, Provenance
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import ComputedPart, Tensor, tensor_from_array
from halfbyte.ir.tokenizer import Tokenizer
from support.encoded import encoded
from support.random_models import random_model

TYPES = ["llama", "qwen3", "gpt2", "bert"]
TOKENIZER = Tokenizer(
    "bpe",
    ("a", "b", "ä", "<|end|>"),
    merges=(("a", "b"),),
    special_ids={"eos": 3},
    chat_template="{{ messages }}",
    source={"tokenizer.json": b"{}", "own.model": b"\xff\x00"},
)


def write(model: Model, path: Path, **options: Any) -> Model:
    NATIVE.write(model, path, WriteOptions(**options))
    return NATIVE.read(path, ReadOptions())


def assert_same_tensors(found: Model, expected: Model) -> None:
    assert list(found.weights) == list(expected.weights)
    for name, tensor in expected.weights.items():
        other = found.weights[name]
        assert (other.shape, other.encoding, other.key) == (
            tensor.shape,
            tensor.encoding,
            tensor.key,
        )
        ours, theirs = other.read(), tensor.read()
        assert list(ours) == list(tensor.encoding.part_specs(tensor.rows, tensor.columns))
        for part, array in theirs.items():
            assert ours[part].dtype == array.dtype
            assert np.array_equal(ours[part].view(np.uint8), array.view(np.uint8))


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_round_trip_of_a_model(model_type: str, threads: int, tmp_path: Path) -> None:
    model = random_model(model_type)
    found = write(model, tmp_path / "m.hb", threads=threads)
    assert_same_tensors(found, model)
    assert found.config == model.config
    assert str(found.graph) == str(model.graph)
    assert found.provenance == Provenance("hb", str(tmp_path / "m.hb"))
    verify_hashes(tmp_path / "m.hb", threads)


@pytest.mark.parametrize("encoding", list_encodings(), ids=str)
def test_round_trip_of_every_encoding(encoding: Encoding, tmp_path: Path) -> None:
    tensor = encoded(encoding, 24, 256)
    assert NATIVE.profile().accepts(tensor, encoding)
    model = Model({"w": replace(tensor, role=Role.FEED_FORWARD_UP, layer=2)})
    found = write(model, tmp_path / "m.hb", threads=2)
    assert_same_tensors(found, model)
    assert np.array_equal(found.weights["w"].numpy().view(np.uint8), tensor.numpy().view(np.uint8))


def everything() -> Model:
    metadata = {
        "gguf": {
            "general.name": MetadataValue("x\udcff", ValueType.STRING),
            "a.list": MetadataValue(np.array([1, 2], np.int32), ValueType.ARRAY, ValueType.INT32),
            "a.text": MetadataValue(["p", "q"], ValueType.ARRAY, ValueType.STRING),
            "a.float": MetadataValue(float("inf"), ValueType.FLOAT32),
        },
        "files": {"tokenizer.json": b"{}", "1_Pooling/config.json": b"{ }"},
        "other": {"$tuple": (1, b"raw", None, {3: "three"}), "plain": [True, 1.5, "ü"]},
    }
    return replace(
        random_model("llama"),
        tokenizer=TOKENIZER,
        generation_config={"temperature": 0.5, "eos_token_id": [1, 2]},
        metadata=metadata,
        provenance=Provenance("hf", "org/name", "abc"),
    )


def test_everything_of_a_model_survives(tmp_path: Path) -> None:
    model = everything()
    found = write(model, tmp_path / "m.hb")
    assert found.tokenizer == TOKENIZER
    assert found.generation_config == model.generation_config
    origin = {"format": "hf", "source": "org/name", "revision": "abc"}
    assert found.metadata == {**model.metadata, "origin": origin}
    again = write(found, tmp_path / "again.hb", threads=3)
    assert again.metadata["origin"] == origin
    assert (tmp_path / "again.hb").read_bytes() == (tmp_path / "m.hb").read_bytes()


def test_folder_of_the_source_is_not_in_the_file(tmp_path: Path) -> None:
    model = replace(random_model("llama"), provenance=Provenance("hf", "/somewhere/private/model"))
    found = write(model, tmp_path / "m.hb")
    assert found.metadata["origin"]["source"] == "model"
    assert b"private" not in (tmp_path / "m.hb").read_bytes()


def test_any_safetensors_reader_opens_it(tmp_path: Path) -> None:
    dense = tensor_from_array("dense", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    affine = encoded("int4-g32").renamed("affine")
    blocks = encoded("Q4_0").renamed("blocks")
    model = replace(everything(), weights={t.name: t for t in (dense, affine, blocks)}, build=None)
    path = tmp_path / "m.hb"
    write(model, path)
    with safe_open(path, "numpy") as file:
        names = set(file.keys())
        assert np.array_equal(file.get_tensor("dense"), dense.numpy())
        assert file.get_tensor("blocks").dtype == np.uint8
        assert {"affine:codes", "affine:scales"} <= names
        assert bytes(file.get_tensor("__files__/1_Pooling/config.json")) == b"{ }"
        metadata = file.metadata()
        tokenizer = Tokenizer.from_json(bytes(file.get_tensor("__tokenizer__")))
    assert "__graph__" not in names
    assert tokenizer.tokens == TOKENIZER.tokens
    assert json.loads(metadata["config"])["model_type"] == "llama"
    assert json.loads(metadata["tensors"])[0] == {
        "name": "dense",
        "shape": [2, 3, 4],
        "encoding": "float32",
        "role": None,
        "layer": None,
        "kind": "weight",
    }
    assert set(json.loads(metadata["sha256"])) == names


def test_weights_are_computed_once_and_in_ranges(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def rows(start: int, stop: int) -> Array:
        calls.append((start, stop))
        return np.full((stop - start, 1024), start, np.float32)

    part = ComputedPart(np.dtype(np.float32), (4096, 1024), rows)
    tensor = replace(
        tensor_from_array("w", np.ones((4096, 1024), np.float32)), parts={"data": part}
    )
    counted: list[int] = []
    write(Model({"w": tensor}), tmp_path / "m.hb", threads=3, progress=counted.append)
    assert sorted(calls) == list(tensor.row_ranges())
    assert len(calls) == 4
    assert sum(counted) == tensor.nbytes
    verify_hashes(tmp_path / "m.hb")


def test_model_without_a_known_architecture(tmp_path: Path) -> None:
    model = Model({"w": tensor_from_array("w", np.ones((2, 2), np.float32))}, {"model_type": "new"})
    found = write(model, tmp_path / "m.hb")
    assert found.build is None
    assert found.config == {"model_type": "new"}
    assert found.tokenizer is None


def test_stored_graph_serves_an_unknown_architecture(tmp_path: Path) -> None:
    llama = random_model("llama")
    build = llama.build
    assert build is not None
    strange = replace(
        llama,
        config={**llama.config, "model_type": "strange"},
        build=lambda model: build(llama),
    )
    found = write(strange, tmp_path / "m.hb")
    assert str(found.graph) == str(llama.graph)


def test_empty_and_scalar_weights(tmp_path: Path) -> None:
    arrays = {"none": np.zeros((0, 3), np.float32), "one": np.array(2.5, np.float64)}
    model = Model({name: tensor_from_array(name, array) for name, array in arrays.items()})
    found = write(model, tmp_path / "m.hb")
    assert found.weights["none"].shape == (0, 3)
    assert found.weights["one"].numpy() == 2.5


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["__w"], "tensor name '__w' is not supported.*names may not begin with __"),
        (["x\udcff"], "tensor name"),
        (["w", "w:codes"], "array name 'w:codes' for two things"),
    ],
)
def test_names_that_clash_are_refused(names: list[str], message: str, tmp_path: Path) -> None:
    tensors: list[Tensor] = [encoded("int4-g32").renamed(names[0])]
    tensors += [tensor_from_array(name, np.ones(2, np.float32)) for name in names[1:]]
    with pytest.raises(UnsupportedError, match=message):
        write(Model({t.name: t for t in tensors}), tmp_path / "m.hb")
    assert list(tmp_path.iterdir()) == []


def test_encoding_outside_the_table_is_refused(tmp_path: Path) -> None:
    from halfbyte.converters.gguf.opaque import OpaqueBlocks

    blocks = replace(encoded("Q8_0"), encoding=OpaqueBlocks("IQ9_X", 32, 34))
    assert not NATIVE.profile().accepts(blocks, blocks.encoding)
    assert [str(e) for e in NATIVE.profile().alternatives(blocks)] == ["float32"]
    with pytest.raises(UnsupportedError, match="encoding IQ9_X of 'w' is not supported"):
        write(Model({"w": blocks}), tmp_path / "m.hb")


def test_profile() -> None:
    tensor = encoded("Q4_0")
    profile = NATIVE.profile()
    assert profile.name == NATIVE.name == "hb"
    assert profile.required(tensor) is None
    assert [str(e) for e in profile.alternatives(tensor)] == ["Q4_0", "float32"]
    with pytest.raises(UnsupportedError, match="flavour 'x'"):
        NATIVE.profile("x")
    with pytest.raises(UnsupportedError, match="flavour 'x'"):
        NATIVE.write(Model({}), Path("never.hb"), WriteOptions(flavour="x"))


def test_foreign_metadata_is_refused(tmp_path: Path) -> None:
    model = Model({}, metadata={"odd": object()})
    with pytest.raises(UnsupportedError, match="metadata of type object"):
        write(model, tmp_path / "m.hb")


def test_tokenizer_with_too_many_tokens_is_refused(tmp_path: Path) -> None:
    model = Model({}, {"vocab_size": 2}, TOKENIZER)
    with pytest.raises(FormatError, match="has 4 tokens, the model's vocabulary holds 2"):
        write(model, tmp_path / "m.hb")
    assert list(tmp_path.iterdir()) == []


def test_output_is_never_half_written(tmp_path: Path) -> None:
    def fail(nbytes: int) -> None:
        raise HalfbyteError("stopped half way")

    with pytest.raises(HalfbyteError, match="stopped half way"):
        write(random_model("llama"), tmp_path / "m.hb", progress=fail, threads=2)
    assert list(tmp_path.iterdir()) == []


def test_detection(tmp_path: Path) -> None:
    path = tmp_path / "any.name"
    write(random_model("llama"), path)
    assert detect(path).name == "hb"
    assert not NATIVE.detect(tmp_path)
    (tmp_path / "text").write_text("no")
    assert not NATIVE.detect(tmp_path / "text")
    assert format_for_output(Path("x.hb"))[0].name == "hb"


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": [1, 2.5, "x", True]},
        (1, (2, "b")),
        b"\x00\xff",
        {1: "one", None: [b""]},
        {"$array": 1},
        {"$gguf": {"$float": 2}},
        [float("inf"), float("-inf")],
        "\udc80 lone",
        2**80,
    ],
)
def test_values_come_back(value: Any, tmp_path: Path) -> None:
    text = values.dump(value)
    assert values.load(text, tmp_path, "test") == value
    assert values.load(text.encode(), tmp_path, "test") == value


def test_arrays_and_numpy_scalars_come_back(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    found = values.load(values.dump({"a": array, "s": np.float32(0.5)}), tmp_path, "test")
    assert found["a"].dtype == np.int16
    assert np.array_equal(found["a"], array)
    assert found["s"] == 0.5
    assert np.isnan(values.load(values.dump(float("nan")), tmp_path, "test"))
