"""Malformed tokenizers: one clear error each, in bounded time and memory."""

from __future__ import annotations

import base64
import json
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.tokenizers import from_gguf, from_hugging_face, to_gguf
from halfbyte.converters.tokenizers.codec import Codec
from halfbyte.errors import HalfbyteError
from support import tiny_tokenizers as tiny

G = "tokenizer.ggml."
KINDS = tiny.every_kind()
SECONDS = 10.0


def keys_of(name: str) -> dict[str, Any]:
    tokenizer = from_hugging_face(KINDS[name])
    assert tokenizer is not None
    return to_gguf(tokenizer)


def refused(action: Callable[[], object]) -> str:
    start = time.monotonic()
    with pytest.raises(HalfbyteError) as error:
        action()
    assert time.monotonic() - start < SECONDS
    text = str(error.value)
    assert "\n" not in text and len(text) < 400
    return text


def swapped(name: str, key: str, value: object) -> dict[str, Any]:
    return {**keys_of(name), G + key: value}


def with_item(name: str, key: str, index: int, value: object) -> dict[str, Any]:
    keys = keys_of(name)
    items = list(keys[G + key])
    items[index] = value
    return {**keys, G + key: np.asarray(items, np.int32) if key == "token_type" else items}


def byte_token(text: str) -> dict[str, Any]:
    return with_item("spm", "tokens", 10, text)


def charsmap(blob: bytes) -> dict[str, Any]:
    return swapped("unigram", "precompiled_charsmap", np.frombuffer(blob, np.uint8))


WILD_LINK = struct.pack("<I", 1024) + struct.pack("<I", 1 << 29) * 256 + b"a\0"
GGUF: dict[str, Callable[[], dict[str, Any]]] = {
    "001 duplicate tokens": lambda: with_item("spm", "tokens", 700, "a"),
    "002 token spelled like a special one": lambda: with_item("spm", "tokens", 700, "<s>"),
    "003 merge without a space": lambda: with_item("gpt-2", "merges", 0, "ab"),
    "004 empty merge": lambda: with_item("gpt-2", "merges", 0, ""),
    "005 merge of nothing": lambda: with_item("gpt-2", "merges", 0, "a "),
    "006 merge of an unknown token": lambda: with_item("gpt-2", "merges", 0, "a zzzzq"),
    "007 merge whose result is no token": lambda: with_item("gpt-2", "merges", 0, "q z"),
    "008 merges missing": lambda: {k: v for k, v in keys_of("gpt-2").items() if "merges" not in k},
    "009 merges are numbers": lambda: swapped("gpt-2", "merges", [1, 2]),
    "010 merges are one text": lambda: swapped("gpt-2", "merges", "a b"),
    "011 bos out of range": lambda: swapped("gpt-2", "bos_token_id", np.uint32(600)),
    "012 eos out of range": lambda: swapped("spm", "eos_token_id", np.uint32(1 << 31)),
    "013 unk negative": lambda: swapped("spm", "unknown_token_id", -5),
    "014 bos is text": lambda: swapped("spm", "bos_token_id", "1"),
    "015 bos is a flag": lambda: swapped("spm", "bos_token_id", True),
    "016 bos is a list": lambda: swapped("spm", "bos_token_id", [1]),
    "017 scores too short": lambda: swapped("spm", "scores", np.zeros(3, np.float32)),
    "018 scores too long": lambda: swapped("spm", "scores", np.zeros(10_000, np.float32)),
    "019 no scores at all": lambda: swapped("spm", "scores", np.zeros(0, np.float32)),
    "020 scores are text": lambda: swapped("spm", "scores", ["a"] * 759),
    "021 scores are one number": lambda: swapped("spm", "scores", 1.0),
    "022 scores are flags": lambda: swapped("spm", "scores", np.zeros(759, bool)),
    "023 types are floats": lambda: swapped("spm", "token_type", np.ones(759, np.float32)),
    "024 types too short": lambda: swapped("spm", "token_type", np.ones(758, np.int32)),
    "025 unknown type": lambda: with_item("spm", "token_type", 700, 77),
    "026 negative type": lambda: with_item("spm", "token_type", 700, -1),
    "027 types of uneven lists": lambda: swapped("spm", "token_type", [[1], [1, 2]]),
    "028 no tokens": lambda: swapped("spm", "tokens", []),
    "029 tokens are numbers": lambda: swapped("spm", "tokens", np.zeros(759, np.int32)),
    "030 tokens are one text": lambda: swapped("spm", "tokens", "abc"),
    "031 token is not UTF-8": lambda: with_item("spm", "tokens", 700, b"\xff\xfe"),
    "032 byte token minus one": lambda: byte_token("<0x-1>"),
    "033 byte token without digits": lambda: byte_token("<0xZZ>"),
    "034 byte token too large": lambda: byte_token("<0x100>"),
    "035 byte token empty": lambda: byte_token(""),
    "036 model is a number": lambda: swapped("gpt-2", "model", 3),
    "037 model is not UTF-8": lambda: swapped("gpt-2", "model", b"\xff"),
    "038 pre-tokenizer unknown": lambda: swapped("gpt-2", "pre", "no-such-name"),
    "039 flag is a number": lambda: swapped("gpt-2", "add_bos_token", 1),
    "040 charsmap of two bytes": lambda: charsmap(b"ab"),
    "041 charsmap longer than itself": lambda: charsmap(b"\xff\xff\xff\x7fabcd"),
    "042 charsmap with a wild link": lambda: charsmap(WILD_LINK),
    "043 charsmap is text": lambda: swapped("unigram", "precompiled_charsmap", "abc"),
    "044 template is a number": lambda: {**keys_of("gpt-2"), "tokenizer.chat_template": 1},
    "045 template of 2 MB": lambda: {**keys_of("gpt-2"), "tokenizer.chat_template": "x" * 2**21},
    "046 carried JSON is broken": lambda: {**keys_of("gpt-2"), "tokenizer.huggingface.json": "{"},
    "047 carried JSON is a list": lambda: {**keys_of("gpt-2"), "tokenizer.huggingface.json": "[]"},
    "048 carried JSON is nested": lambda: {
        **keys_of("gpt-2"),
        "tokenizer.huggingface.json": '{"a":' * 100_000,
    },
    "049 carried tokenizer is larger": lambda: {
        **keys_of("gpt-2"),
        "tokenizer.huggingface.json": tiny.byte_level_json("gpt-2", 650),
    },
}


@pytest.mark.parametrize("name", GGUF)
def test_gguf_keys(name: str) -> None:
    keys = GGUF[name]()
    refused(lambda: Codec(from_gguf(keys)))


def changed(name: str, change: Callable[[dict[str, Any]], object]) -> dict[str, bytes]:
    document = json.loads(KINDS[name]["tokenizer.json"])
    change(document)
    return {"tokenizer.json": json.dumps(document).encode()}


def model(name: str, **members: Any) -> dict[str, bytes]:
    return changed(name, lambda document: document["model"].update(members))


def added(entry: object) -> dict[str, bytes]:
    return changed("gpt-2", lambda document: document["added_tokens"].append(entry))


def config(content: bytes) -> dict[str, bytes]:
    return {**KINDS["gpt-2"], "tokenizer_config.json": content}


def beside(name: str, content: bytes) -> dict[str, bytes]:
    return {**KINDS["gpt-2"], name: content}


def vocab(name: str) -> dict[str, int]:
    found: dict[str, int] = json.loads(KINDS[name]["tokenizer.json"])["model"]["vocab"]
    return found


def broken_charsmap(blob: bytes) -> dict[str, bytes]:
    text = base64.b64encode(blob).decode()
    section = {"type": "Precompiled", "precompiled_charsmap": text}
    return changed("unigram", lambda document: document.update(normalizer=section))


SLOW = {"vocab.json": b'{"a": 0, "b": 1, "ab": 2}', "merges.txt": b"a b\n"}
FILES: dict[str, Callable[[], dict[str, bytes]]] = {
    "101 empty file": lambda: {"tokenizer.json": b""},
    "102 not JSON": lambda: {"tokenizer.json": b"hello"},
    "103 not UTF-8": lambda: {"tokenizer.json": b'{"a": "\xff"}'},
    "104 a list": lambda: {"tokenizer.json": b"[]"},
    "105 nested lists": lambda: {"tokenizer.json": b"[" * 1_000_000},
    "106 nested objects": lambda: {"tokenizer.json": b'{"model":' * 100_000},
    "107 no model": lambda: {"tokenizer.json": b"{}"},
    "108 model is text": lambda: {"tokenizer.json": b'{"model": "BPE"}'},
    "109 no vocabulary": lambda: model("gpt-2", vocab=None),
    "110 vocabulary is text": lambda: model("gpt-2", vocab="abc"),
    "111 id is text": lambda: model("gpt-2", vocab={**vocab("gpt-2"), "x": "9"}),
    "112 id is negative": lambda: model("gpt-2", vocab={**vocab("gpt-2"), "x!": -1}),
    "113 id is a flag": lambda: model("gpt-2", vocab={**vocab("gpt-2"), "x!": True}),
    "114 id is huge": lambda: model("gpt-2", vocab={**vocab("gpt-2"), "x!": 2**60}),
    "115 two tokens with one id": lambda: model("gpt-2", vocab={**vocab("gpt-2"), "x!": 5}),
    "116 merges is text": lambda: model("gpt-2", merges="a b"),
    "117 merge without a space": lambda: model("gpt-2", merges=["ab"]),
    "118 merge of three": lambda: model("gpt-2", merges=[["a", "b", "c"]]),
    "119 merge of numbers": lambda: model("gpt-2", merges=[[1, 2]]),
    "120 merge of an unknown token": lambda: model("gpt-2", merges=[["a", "zzzzq"]]),
    "121 merge whose result is no token": lambda: model("gpt-2", merges=[["q", "z"]]),
    "122 added token without id": lambda: added({"content": "x"}),
    "123 added token is a number": lambda: added(5),
    "124 added token with a huge id": lambda: added({"content": "x!", "id": 2**40}),
    "125 added token on another's id": lambda: added({"content": "x!", "id": 5}),
    "126 surrogate in a token": lambda: added({"content": "\ud800", "id": 600}),
    "127 unigram names a token twice": lambda: model("unigram", vocab=[["a", 0.0], ["a", 0.0]]),
    "128 unigram without scores": lambda: model("unigram", vocab=["a", "b"]),
    "129 unigram with an unknown unk": lambda: model("unigram", unk_id=4_000),
    "130 charsmap is not base64": lambda: changed(
        "unigram",
        lambda d: d.update(normalizer={"type": "Precompiled", "precompiled_charsmap": 5}),
    ),
    "131 charsmap with a wild link": lambda: broken_charsmap(WILD_LINK),
    "132 charsmap too short": lambda: broken_charsmap(b"ab"),
    "133 regex that does not compile": lambda: changed(
        "gpt-2",
        lambda d: d.update(
            pre_tokenizer={
                "type": "Split",
                "pattern": {"Regex": "[z-a"},
                "behavior": "Isolated",
                "invert": False,
            }
        ),
    ),
    "134 unknown pre-tokenizer type": lambda: changed(
        "gpt-2", lambda d: d.update(pre_tokenizer={"type": "Telepathy"})
    ),
    "135 unknown model": lambda: model("gpt-2", type="Magic"),
    "136 config is not JSON": lambda: config(b"{"),
    "137 template is a number": lambda: config(b'{"chat_template": 5}'),
    "138 template list without names": lambda: config(b'{"chat_template": [{"template": "x"}]}'),
    "139 template of 2 MB": lambda: beside("chat_template.jinja", b"x" * 2**21),
    "140 template is not UTF-8": lambda: beside("chat_template.jinja", b"\xff"),
    "143 vocab.json with a gap": lambda: {**SLOW, "vocab.json": b'{"a": 0, "b": 2}'},
    "144 vocab.json with text ids": lambda: {**SLOW, "vocab.json": b'{"a": "0"}'},
    "145 merges.txt with one token": lambda: {**SLOW, "merges.txt": b"ab\n"},
    "146 merges.txt with an unknown token": lambda: {**SLOW, "merges.txt": b"a q\n"},
    "147 merges.txt is not UTF-8": lambda: {**SLOW, "merges.txt": b"\xff \xff\n"},
    "148 added id is huge": lambda: {**SLOW, "added_tokens.json": b'{"x": 99999999999}'},
    "149 added id is text": lambda: {**SLOW, "added_tokens.json": b'{"x": "1"}'},
    "150 added decoder without content": lambda: {
        **SLOW,
        "tokenizer_config.json": b'{"added_tokens_decoder": {"7": {}}}',
    },
    "151 added decoder with a word for an id": lambda: {
        **SLOW,
        "tokenizer_config.json": b'{"added_tokens_decoder": {"seven": {"content": "x"}}}',
    },
    "152 vocab.txt with one word twice": lambda: {"vocab.txt": b"[UNK]\na\na\n"},
    "153 SentencePiece model of noise": lambda: {"tokenizer.model": b"\xff" * 100},
    "154 SentencePiece model with a huge field": lambda: {
        "tokenizer.model": b"\x0a\xff\xff\xff\xff\x0f"
    },
    "155 SentencePiece piece twice": lambda: {
        "tokenizer.model": tiny.sentencepiece_model([("<unk>", 0.0, 2), ("a", 0.0, 1)] * 2)
    },
}


@pytest.mark.parametrize("name", FILES)
def test_hugging_face_files(name: str) -> None:
    files = FILES[name]()

    def use() -> None:
        tokenizer = from_hugging_face(files)
        assert tokenizer is not None
        Codec(tokenizer).encode("some text, 123")

    refused(use)


def test_a_tokenizer_of_another_model() -> None:
    tokenizer = from_hugging_face(KINDS["gpt-2"])
    assert tokenizer is not None
    assert refused(lambda: to_gguf(tokenizer, 512)) == (
        "tokenizer: the tokenizer has 600 tokens, the model's vocabulary holds 512; "
        "this tokenizer belongs to another model"
    )


def test_every_truncation_of_a_sentencepiece_model() -> None:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("ab", -1.0, 1)]
    data = tiny.sentencepiece_model(pieces, tiny.field(3, 2), tiny.field(3, 1))
    for end in range(len(data)):
        try:
            from_hugging_face({"tokenizer.model": data[:end]})
        except HalfbyteError as error:
            assert "\n" not in str(error)


def test_deep_templates_do_not_crash_the_reader() -> None:
    files = config(json.dumps({"chat_template": "{" * 500_000}).encode())
    tokenizer = from_hugging_face(files)
    assert tokenizer is not None and tokenizer.chat_template is not None
