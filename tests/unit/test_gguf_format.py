"""Models through GGUF files: round trips, copies, rotary order, what is dropped and told."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters import detect
from halfbyte.converters.format import WriteOptions
from halfbyte.converters.gguf.container import read_container
from halfbyte.converters.gguf.format import GGUF
from halfbyte.converters.gguf.ggml_types import ValueType
from halfbyte.converters.gguf.metadata import CONFIG_KEY
from halfbyte.converters.gguf.metadata_value import MetadataValue, plain, typed
from halfbyte.converters.gguf.output import guess_file_type
from halfbyte.converters.tokenizers import from_hugging_face
from halfbyte.converters.tokenizers.codec import Codec
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.model import Model
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import tensor_from_array
from support.gguf_models import fitted, gguf_bytes, read, write
from support.random_models import random_model
from support.tiny_tokenizers import byte_level_json, files, wordpiece_json

MODELS = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("gpt2", {}),
    ("bert", {}),
]


def wide(model_type: str, settings: dict[str, Any]) -> Model:
    skip = (Role.POOLER,) if model_type == "bert" else ()
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    return random_model(model_type, skip=skip, **{**sizes, **settings})


@pytest.mark.parametrize("type_name", ["", "F16", "Q8_0"])
@pytest.mark.parametrize(("model_type", "settings"), MODELS, ids=lambda v: str(v)[:24])
def test_a_model_comes_back(
    tmp_path: Path, model_type: str, settings: dict[str, Any], type_name: str
) -> None:
    model = fitted(wide(model_type, settings), type_name)
    path = tmp_path / "m.gguf"
    written = GGUF.write(model, path, WriteOptions())
    assert detect(path) is GGUF
    back = read(path)
    assert back.warnings == ()
    assert read_container(path).problems == ()
    expected = dict(model.config)
    if model_type in ("llama", "mistral"):
        expected["rope_interleaved"] = True
    assert back.config == expected
    assert back.architecture == model_type
    assert [entry.source_name for entry in written] == list(model.weights)
    assert [entry.name for entry in written] == list(back.weights)
    assert [entry.encoding for entry in written] == [
        str(tensor.encoding) for tensor in back.weights.values()
    ]
    before, after = model.by_key(), back.by_key()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert after[key].encoding == tensor.encoding
        if key.role not in (Role.ATTENTION_QUERY, Role.ATTENTION_KEY):
            np.testing.assert_array_equal(after[key].numpy(), tensor.numpy())
    assert len(back.graph.nodes) > 0


@pytest.mark.parametrize("type_name", ["", "Q4_0"])
def test_rows_change_their_rotary_order_without_being_decoded(
    tmp_path: Path, type_name: str
) -> None:
    model = fitted(wide("llama", {"attention_bias": True}), type_name)
    GGUF.write(model, tmp_path / "m.gguf", WriteOptions())
    back = read(tmp_path / "m.gguf").by_key()
    for role, heads in ((Role.ATTENTION_QUERY, 4), (Role.ATTENTION_KEY, 2)):
        key = WeightKey(role, 1)
        data = model.by_key()[key].read()["data"]
        expected = data.reshape(heads, 2, 8, -1).swapaxes(1, 2).reshape(data.shape)
        np.testing.assert_array_equal(back[key].read()["data"], expected)
        bias = model.by_key()[key._replace(kind="bias")].numpy()
        expected = bias.reshape(heads, 2, 8).swapaxes(1, 2).reshape(-1)
        np.testing.assert_array_equal(back[key._replace(kind="bias")].numpy(), expected)


def test_qwen_rows_stay(tmp_path: Path) -> None:
    model = wide("qwen2", {})
    write(model, tmp_path / "m.gguf")
    key = WeightKey(Role.ATTENTION_QUERY, 0)
    back = read(tmp_path / "m.gguf")
    assert back.config["rope_interleaved"] is False
    np.testing.assert_array_equal(back.by_key()[key].numpy(), model.by_key()[key].numpy())


@pytest.mark.parametrize("threads", [1, 3])
def test_a_copy_is_byte_identical(tmp_path: Path, threads: int) -> None:
    write(wide("llama", {}), tmp_path / "m.gguf", "Q4_0")
    write(read(tmp_path / "m.gguf"), tmp_path / "copy.gguf", threads=threads)
    assert (tmp_path / "copy.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


def test_a_copy_keeps_every_pair_in_order(tmp_path: Path) -> None:
    write(wide("llama", {}), tmp_path / "m.gguf")
    model = read(tmp_path / "m.gguf")
    extra = {
        "custom.nested": MetadataValue(
            [typed([1]), typed([2, 3])], ValueType.ARRAY, ValueType.ARRAY
        ),
        "custom.bytes": typed(b"\xff\xfe".decode("utf-8", "surrogateescape")),
        "general.alignment": typed(64),
        "custom.small": MetadataValue(-3, ValueType.INT8),
    }
    pairs = {**extra, **model.metadata["gguf"], "split.no": MetadataValue(0, ValueType.UINT16)}
    changed = replace(model, metadata={"gguf": pairs})
    write(changed, tmp_path / "n.gguf", "F16")
    found = read_container(tmp_path / "n.gguf")
    assert found.alignment == 64
    del pairs["split.no"]
    assert list(found.metadata) == list(pairs)
    pairs["general.file_type"] = typed(1)
    assert found.metadata == pairs


def test_tied_head_is_left_out(tmp_path: Path) -> None:
    model = wide("llama", {"tie_word_embeddings": False})
    tied = replace(model, config={**model.config, "tie_word_embeddings": True})
    names = [entry.name for entry in write(tied, tmp_path / "m.gguf")]
    assert "output.weight" not in names
    assert read(tmp_path / "m.gguf").config["tie_word_embeddings"] is True


def test_dropped_pooler_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = random_model("bert")
    names = [entry.source_name for entry in write(model, tmp_path / "m.gguf")]
    assert not any("pooler" in name for name in names)
    assert "pooler.dense.weight: it is left out, as llama.cpp does" in caplog.text


def pooling_files(**settings: bool) -> dict[str, bytes]:
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    return {
        "modules.json": json.dumps(modules).encode(),
        "1_Pooling/config.json": json.dumps(settings).encode(),
    }


def test_pooling_is_taken_from_the_files_beside(tmp_path: Path) -> None:
    model = random_model("bert", skip=(Role.POOLER,))
    files = pooling_files(pooling_mode_mean_tokens=True)
    write(replace(model, metadata={"files": files}), tmp_path / "m.gguf")
    back = read(tmp_path / "m.gguf")
    assert plain(back.metadata["gguf"])["bert.pooling_type"] == 1
    assert back.config["pooling_type"] == "mean"
    assert plain(back.metadata["gguf"])["tokenizer.ggml.token_type_count"] == 2


def test_unusual_pooling_is_refused(tmp_path: Path) -> None:
    model = random_model("bert", skip=(Role.POOLER,))
    files = pooling_files(pooling_mode_max_tokens=True)
    with pytest.raises(UnsupportedError, match=r"1_Pooling/config.json: this kind of pooling"):
        write(replace(model, metadata={"files": files}), tmp_path / "m.gguf")
    broken = {"modules.json": b"[{}]"}
    with pytest.raises(FormatError, match=r"modules.json: the pooling settings cannot be read"):
        write(replace(model, metadata={"files": broken}), tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("type_name", "number"), [("F32", 0), ("F16", 1), ("BF16", 32), ("Q4_0", 2), ("Q8_0", 7)]
)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_file_type(tmp_path: Path, model_type: str, type_name: str, number: int) -> None:
    write(wide(model_type, {}), tmp_path / "m.gguf", type_name)
    found = plain(read_container(tmp_path / "m.gguf").metadata)
    assert found["general.file_type"] == number
    assert found["general.quantization_version"] == 2


def test_file_type_of_a_mix_is_kept() -> None:
    tensors = [
        tensor_from_array(f"blk.{i}.ffn_up.weight", np.zeros((2, 32), np.float16)) for i in range(2)
    ]
    assert guess_file_type(tensors, typed(1)) == 1
    assert guess_file_type(tensors, typed(15)) == 1
    assert guess_file_type([]) is None
    integers = [tensor_from_array("x", np.zeros((2, 2), np.int32))]
    assert guess_file_type(integers, typed(0)) is None
    opaque = read_opaque("Q4_K", 12, 144)
    assert guess_file_type(opaque, typed(14)) == 14
    assert guess_file_type(opaque) == 15


def read_opaque(name: str, kind: int, block_bytes: int) -> list[Any]:
    from halfbyte.converters.gguf.opaque import OpaqueBlocks
    from halfbyte.ir.tensor import ArrayPart, Tensor

    part = ArrayPart(np.zeros((1, block_bytes), np.uint8))
    return [Tensor("w.weight", (1, 256), OpaqueBlocks(name, 256, block_bytes), {"data": part})]


UNKNOWN = {"general.architecture": "unheard", "unheard.block_count": 1}


def test_unknown_architecture_can_be_listed_and_copied(tmp_path: Path) -> None:
    entries = [
        ("blk.0.attn_q.weight", (256, 2), 16, bytes(range(132))),
        ("strange", (4,), 1, bytes(8)),
        ("table", (3,), 26, bytes(12)),
    ]
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(UNKNOWN, entries))
    model = read(path)
    assert model.build is None
    assert model.architecture == "unheard"
    assert model.warnings == (
        "architecture 'unheard' is unknown here: the file can be listed and copied to GGUF",
    )
    assert [str(tensor.encoding) for tensor in model.weights.values()] == [
        "IQ2_XXS",
        "float16",
        "i32",
    ]
    write(model, tmp_path / "copy.gguf")
    copied = read_container(tmp_path / "copy.gguf")
    assert [(t.name, t.shape, t.kind.name) for t in copied.tensors] == [
        ("blk.0.attn_q.weight", (2, 256), "IQ2_XXS"),
        ("strange", (4,), "F16"),
        ("table", (3,), "I32"),
    ]
    assert plain(copied.metadata) == {**UNKNOWN, "general.file_type": 19, **quantized_version()}


def quantized_version() -> dict[str, int]:
    return {"general.quantization_version": 2}


def test_unknown_architecture_from_elsewhere_is_refused(tmp_path: Path) -> None:
    model = replace(random_model("llama"), config={"model_type": "unheard"})
    with pytest.raises(UnsupportedError, match="GGUF: architecture 'unheard' is not supported"):
        GGUF.write(model, tmp_path / "m.gguf", WriteOptions())


def test_mixture_of_experts_can_be_listed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write(wide("llama", {}), path)
    model = read(path)
    keys = {"llama.expert_count": typed(4), "llama.expert_group_count": typed(2)}
    pairs = {**model.metadata["gguf"], **keys}
    write(replace(model, metadata={"gguf": pairs}), tmp_path / "moe.gguf")
    found = read(tmp_path / "moe.gguf")
    assert found.build is None
    assert "experts in groups is not supported" in found.warnings[0]
    write(found, tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == (tmp_path / "moe.gguf").read_bytes()


def test_weight_without_a_role_is_refused(tmp_path: Path) -> None:
    model = random_model("llama")
    extra = tensor_from_array("extra.weight", np.zeros((2, 2), np.float32))
    with pytest.raises(UnsupportedError, match=r"weight 'extra.weight' is not supported; GGUF"):
        write(model.with_weights({**model.weights, "extra.weight": extra}), tmp_path / "m.gguf")


def test_unplanned_encoding_is_refused(tmp_path: Path) -> None:
    model = random_model("llama")
    half = {
        name: tensor_from_array(name, tensor.numpy().astype(np.float16)).identified(tensor.key)
        for name, tensor in model.weights.items()
    }
    with pytest.raises(UnsupportedError, match="float16 in GGUF is not supported"):
        GGUF.write(model.with_weights(half), tmp_path / "m.gguf", WriteOptions())
    with pytest.raises(UnsupportedError, match="flavour 'x'"):
        GGUF.write(model, tmp_path / "m.gguf", WriteOptions(flavour="x"))
    assert not list(tmp_path.iterdir())


def rewritten(tmp_path: Path, **changes: Any) -> Path:
    """Write a llama file with some of its pairs changed (None removes one)."""
    write(wide("llama", {}), tmp_path / "m.gguf")
    model = read(tmp_path / "m.gguf")
    pairs = dict(model.metadata["gguf"])
    for key, value in changes.items():
        if value is None:
            del pairs[key.replace("__", ".")]
        else:
            pairs[key.replace("__", ".")] = typed(value)
    path = tmp_path / "n.gguf"
    write(replace(model, metadata={"gguf": pairs}, build=None), path)
    return path


def test_keys_changed_by_others_win_over_the_carried_config(tmp_path: Path) -> None:
    path = rewritten(tmp_path, llama__rope__freq_base=5e5, llama__context_length=4096)
    found = read(path)
    assert found.config["rope_theta"] == 500000.0
    assert found.config["max_position_embeddings"] == 4096
    assert "halfbyte.config does not match the file's own keys" in found.warnings[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama__embedding_length": 128}, "shape|hidden|divisor|was required"),
        ({"llama__block_count": 3}, "missing; the file is incomplete"),
        ({"llama__feed_forward_length": 100}, "has shape"),
    ],
)
def test_keys_that_do_not_fit_the_tensors(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = rewritten(tmp_path, **changes)
    with pytest.raises(FormatError, match=message):
        read(path)


def test_tensors_without_a_role_are_told(tmp_path: Path) -> None:
    write(wide("llama", {}), tmp_path / "m.gguf")
    model = read(tmp_path / "m.gguf")
    extra = tensor_from_array("cls.weight", np.zeros((2, 64), np.float32))
    more = model.with_weights({**model.weights, "cls.weight": extra})
    write(more, tmp_path / "n.gguf")
    found = read(tmp_path / "n.gguf")
    assert found.warnings == ("1 tensors have no role in llama (cls.weight)",)
    assert "cls.weight" in found.weights


def test_metadata_only_file(tmp_path: Path) -> None:
    write(wide("llama", {}), tmp_path / "m.gguf")
    model = read(tmp_path / "m.gguf")
    pairs = {k: v for k, v in model.metadata["gguf"].items() if k != CONFIG_KEY}
    write(Model({}, model.config, metadata={"gguf": pairs}), tmp_path / "n.gguf")
    found = read(tmp_path / "n.gguf")
    assert found.weights == {}
    assert found.config["hidden_size"] == 64


def split_files(tmp_path: Path, count: int = 3) -> list[Path]:
    write(wide("llama", {}), tmp_path / "whole.gguf")
    model = read(tmp_path / "whole.gguf")
    names = list(model.weights)
    paths = []
    for number in range(count):
        own = names[number::count]
        split = {
            "split.no": MetadataValue(number, ValueType.UINT16),
            "split.count": MetadataValue(count, ValueType.UINT16),
            "split.tensors.count": MetadataValue(len(names), ValueType.INT32),
        }
        base = model.metadata["gguf"] if number == 0 else {}
        path = tmp_path / f"part-{number + 1:05d}-of-{count:05d}.gguf"
        from halfbyte.converters.gguf.writer import write_gguf

        write_gguf(path, {**base, **split}, [model.weights[name] for name in own])
        paths.append(path)
    return paths


def test_split_files_read_as_one(tmp_path: Path) -> None:
    paths = split_files(tmp_path)
    whole, joined = read(tmp_path / "whole.gguf"), read(paths[0])
    assert joined.weights.keys() == whole.weights.keys()
    for name, tensor in joined.weights.items():
        np.testing.assert_array_equal(tensor.numpy(), whole.weights[name].numpy())
    write(joined, tmp_path / "joined.gguf")
    assert read_container(tmp_path / "joined.gguf").metadata == whole.metadata["gguf"]


def test_split_files_that_do_not_belong_together(tmp_path: Path) -> None:
    paths = split_files(tmp_path)
    with pytest.raises(FormatError, match=r"this is part 2 of 3; open part-00001-of-00003.gguf"):
        read(paths[1])
    second = paths[1].read_bytes()
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(FormatError, match=r"split.no, split.count are \(2, 3\)"):
        read(paths[0])
    paths[1].unlink()
    with pytest.raises(FormatError, match="1 of 3 parts are missing"):
        read(paths[0])
    paths[1].write_bytes(second)
    moved = tmp_path / "renamed.gguf"
    paths[0].rename(moved)
    with pytest.raises(FormatError, match=r"must end in -00001-of-00003.gguf"):
        read(moved)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"split.count": "3"}, "split.count is '3', a whole number"),
        ({"split.count": -1}, "split.count is -1, a whole number"),
        ({"split.count": 65536}, "must end in -00001-of-65536.gguf"),
    ],
)
def test_broken_split_keys(tmp_path: Path, pairs: dict[str, Any], message: str) -> None:
    path = tmp_path / "x-00001-of-65536.gguf"
    path.write_bytes(gguf_bytes(pairs))
    with pytest.raises(FormatError, match=message):
        read(path)


def test_split_total_must_agree(tmp_path: Path) -> None:
    paths = split_files(tmp_path, 2)
    content = paths[0].read_bytes()
    at = content.index(b"split.tensors.count") + len("split.tensors.count") + 4
    paths[0].write_bytes(content[:at] + struct.pack("<i", 3) + content[at + 4 :])
    with pytest.raises(FormatError, match="3 announced"):
        read(paths[0])


def test_tokenizer_of_an_unknown_kind_is_carried(tmp_path: Path) -> None:
    path = rewritten(tmp_path, tokenizer__ggml__model="hybriddna", tokenizer__ggml__tokens=["a"])
    found = read(path)
    assert found.tokenizer is None
    assert "the tokenizer is carried along unread" in found.warnings[0]


TEXT = "The cat's 12 hats, naïve \n\t code: x+=1; 日本"


@pytest.mark.parametrize(
    ("model_type", "document"), [("llama", byte_level_json), ("bert", wordpiece_json)]
)
def test_tokenizer_travels_along(tmp_path: Path, model_type: str, document: Any) -> None:
    tokenizer = from_hugging_face(files(document()))
    assert tokenizer is not None
    size = len(tokenizer.tokens) + 8
    model = replace(random_model(model_type, vocab_size=size), tokenizer=tokenizer)
    write(model, tmp_path / "m.gguf")
    back = read(tmp_path / "m.gguf")
    assert back.warnings == ()
    assert back.tokenizer is not None
    assert Codec(back.tokenizer).encode(TEXT) == Codec(tokenizer).encode(TEXT)
    small = replace(random_model(model_type, vocab_size=40), tokenizer=tokenizer)
    with pytest.raises(FormatError, match="belongs to another model"):
        write(small, tmp_path / "n.gguf")


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    pairs = {"model": "gpt2", "pre": "gpt-2", "merges": ["a b"]}
    pairs["tokens"] = ["a", "b", "ab", *(f"t{i}" for i in range(197))]
    path = rewritten(tmp_path, **{f"tokenizer__ggml__{k}": v for k, v in pairs.items()})
    with pytest.raises(FormatError, match="has 200 tokens, the model's vocabulary holds 128"):
        read(path)


def test_tokenizer_that_llama_cpp_cannot_say_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = json.loads(byte_level_json())
    vowels = {"type": "Split", "pattern": {"Regex": "[aeiou]+"}, "behavior": "Isolated"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = [{**vowels, "invert": False}, {**level, "trim_offsets": True}]
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    tokenizer = from_hugging_face(files(json.dumps(document)))
    assert tokenizer is not None
    model = random_model("llama", vocab_size=len(tokenizer.tokens))
    write(replace(model, tokenizer=tokenizer), tmp_path / "m.gguf")
    assert "tokenizer.huggingface.json carries the whole tokenizer" in caplog.text
    back = read(tmp_path / "m.gguf")
    assert back.tokenizer is not None
    assert Codec(back.tokenizer).encode(TEXT) == Codec(tokenizer).encode(TEXT)
