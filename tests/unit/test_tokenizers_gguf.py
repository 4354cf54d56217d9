"""GGUF keys of a tokenizer: which are written, what comes back, how a pre-tokenizer is chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.tokenizers import (
    from_gguf,
    from_hugging_face,
    to_gguf,
    to_hugging_face,
)
from halfbyte.converters.tokenizers.agreement import SAMPLE
from halfbyte.converters.tokenizers.codec import Codec
from halfbyte.converters.tokenizers.pretokenizers import (
    CHAINS,
    PRE_TOKENIZERS,
    candidates,
    canonical_chain,
    chain_of,
    pre_tokenizer_json,
)
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.tokenizer import Tokenizer
from support import tiny_tokenizers as tiny

KINDS = tiny.every_kind()
G = "tokenizer.ggml."
CARRIED = "tokenizer.huggingface.json"


def read(files: dict[str, bytes]) -> Tokenizer:
    tokenizer = from_hugging_face(files)
    assert tokenizer is not None
    return tokenizer


def keys_of(name: str, vocab_size: int | None = None) -> dict[str, Any]:
    warnings: list[str] = []
    keys = to_gguf(read(KINDS[name]), vocab_size, warnings)
    assert not warnings
    return keys


def test_byte_level_keys_in_llama_cpp_order() -> None:
    keys = keys_of("smollm")
    assert list(keys) == [
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_eos_token",
        "tokenizer.chat_template",
    ]
    assert keys[G + "model"] == "gpt2" and keys[G + "pre"] == "smollm"
    assert keys[G + "token_type"].dtype == np.int32
    assert keys[G + "token_type"][:4].tolist() == [3, 3, 3, 1]
    assert type(keys[G + "bos_token_id"]) is np.uint32
    assert keys[G + "add_bos_token"] is False
    assert all(merge.count(" ") == 1 for merge in keys[G + "merges"])


def test_sentencepiece_keys() -> None:
    keys = keys_of("spm")
    assert keys[G + "model"] == "llama" and keys[G + "pre"] == "default"
    assert keys[G + "scores"].dtype == np.float32
    types = keys[G + "token_type"].tolist()
    assert types[:4] == [2, 3, 3, 6] and set(types[3:259]) == {6} and set(types[259:]) == {1}
    assert G + "merges" not in keys and G + "add_space_prefix" not in keys
    assert keys[G + "unknown_token_id"] == 0
    assert next(iter(keys_of("spm-no-prefix").items())) == (G + "add_space_prefix", False)


def test_wordpiece_keys() -> None:
    keys = keys_of("wordpiece")
    source = read(KINDS["wordpiece"])
    written = dict(zip(source.tokens, keys[G + "tokens"], strict=True))
    inner = next(token for token in source.tokens if token.startswith("##"))
    start = next(token for token in source.tokens if token.isalpha() and len(token) > 2)
    assert written[inner] == inner[2:]
    assert written[start] == "\u2581" + start
    assert written["[CLS]"] == "[CLS]"
    assert keys[G + "model"] == "bert"
    assert {
        key: keys[G + key + "_token_id"] for key in ("cls", "seperator", "mask", "padding")
    } == {
        "cls": 2,
        "seperator": 3,
        "mask": 4,
        "padding": 0,
    }
    assert keys[G + "normalizer.lowercase"] is True
    assert keys_of("wordpiece-cased")[G + "normalizer.lowercase"] is False


def test_unigram_keys() -> None:
    keys = keys_of("unigram")
    assert keys[G + "model"] == "t5"
    assert keys[G + "add_space_prefix"] is True and keys[G + "remove_extra_whitespaces"] is True
    assert keys[G + "add_eos_token"] is True and G + "add_bos_token" not in keys


def test_vocabulary_is_padded_to_the_model() -> None:
    for name in ("gpt-2", "spm", "wordpiece"):
        keys = keys_of(name, 1000)
        assert len(keys[G + "tokens"]) == len(keys[G + "token_type"]) == 1000
        assert keys[G + "tokens"][-1].endswith("[PAD999]") and keys[G + "token_type"][-1] == 5
        again = from_gguf(keys)
        assert again.is_hole(999)
        assert Codec(again).encode(SAMPLE[0]) == Codec(read(KINDS[name])).encode(SAMPLE[0])
        assert len(json.loads(to_hugging_face(again)["tokenizer.json"])["model"]["vocab"]) < 1000
    assert keys_of("spm", 1000)[G + "scores"][-1] == -10000.0
    with pytest.raises(FormatError, match="the tokenizer has 600 tokens, the model's"):
        keys_of("gpt-2", 599)


@pytest.mark.parametrize("name", KINDS)
def test_ids_survive_files_keys_files_keys(name: str) -> None:
    first = read(KINDS[name])
    second = from_gguf(to_gguf(first))
    third = read(to_hugging_face(second))
    fourth = from_gguf(to_gguf(third))
    assert (third.kind, fourth.pre) == (first.kind, second.pre)
    codecs = [Codec(tokenizer, original=True) for tokenizer in (first, second, third, fourth)]
    for text in SAMPLE:
        assert len({tuple(codec.encode(text)) for codec in codecs}) == 1, text
    assert second.chat_template == third.chat_template == first.chat_template
    assert second.special_ids == {**first.special_ids} == fourth.special_ids
    assert second.tokens == first.tokens == fourth.tokens


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_structure_gives_llama_cpp_names(name: str) -> None:
    assert read(KINDS[name]).pre == name
    assert from_gguf(keys_of(name)).ignore_merges == (name == "llama-bpe")


def test_every_chain_is_recognised_by_its_structure() -> None:
    for row in PRE_TOKENIZERS.values():
        section = pre_tokenizer_json(row.chain)
        assert chain_of(section) == canonical_or_same(row.chain)
        if not row.raw:
            names = candidates(chain_of(section), {row.marker}, row.nfc, row.ignore_merges)
            found = PRE_TOKENIZERS[names[0]]
            assert canonical_chain(found.chain) == canonical_chain(row.chain)
            assert (found.nfc, found.ignore_merges) == (row.nfc, row.ignore_merges)


def canonical_or_same(chain: Any) -> Any:
    return chain_of(pre_tokenizer_json(chain))


def test_equal_regexes_in_other_spelling() -> None:
    literal = tiny.LLAMA3_REGEX.replace(r"\r", "\r").replace(r"\n", "\n")
    expanded = literal.replace(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    )
    step = {"type": "Split", "pattern": {"Regex": expanded}, "behavior": "Removed", "invert": True}
    section = {
        "type": "Sequence",
        "pretokenizers": [step, {"type": "ByteLevel", "use_regex": False}],
    }
    assert candidates(chain_of(section), set(), False, True)[0] == "llama-bpe"
    assert candidates(chain_of(section), {"[gMASK]"}, False, True)[0] == "glm4"
    assert candidates(chain_of({"type": "Whitespace"}), set(), False, False) == []
    assert chain_of(None) == ()


def test_markers_tell_equal_chains_apart() -> None:
    chain = CHAINS["digits-gpt2"]
    assert candidates(chain, set(), False, False)[0] == "smollm"
    assert candidates(chain, {"<fim_prefix>"}, False, False)[0] == "starcoder"
    assert candidates(chain, {"<BOS_TOKEN>"}, True, False)[0] == "command-r"


def strange() -> Tokenizer:
    return read(tiny.files(tiny.byte_level_json("strange"), tiny.CHAT_CONFIG))


def test_an_unknown_pre_tokenizer_travels_whole() -> None:
    tokenizer = strange()
    assert tokenizer.pre == ""
    warnings: list[str] = []
    keys = to_gguf(tokenizer, None, warnings)
    assert keys[G + "pre"] in PRE_TOKENIZERS
    assert keys[CARRIED].encode() == tokenizer.source["tokenizer.json"]
    assert warnings == [
        "tokenizer: no pre-tokenizer that llama.cpp knows gives the same ids; "
        "tokenizer.huggingface.json carries the whole tokenizer, llama.cpp gets the nearest "
        f"({keys[G + 'pre']!r}) and may split text differently"
    ]
    again = from_gguf(keys)
    assert replace(again, source={}) == replace(tokenizer, source={}, pre=again.pre)
    assert to_hugging_face(again)["tokenizer.json"] == tokenizer.source["tokenizer.json"]
    for text in SAMPLE:
        assert Codec(again).encode(text) == Codec(tokenizer).encode(text)
    assert to_gguf(again)[CARRIED] == keys[CARRIED]


def test_a_misleading_structure_is_caught_by_the_sample() -> None:
    document = json.loads(tiny.byte_level_json("llama-bpe"))
    document["pre_tokenizer"] = json.loads(tiny.byte_level_json("strange"))["pre_tokenizer"]
    tokenizer = replace(read(tiny.files(json.dumps(document))), pre="llama-bpe")
    assert CARRIED in to_gguf(tokenizer)


def test_another_name_is_found_where_the_structure_is_unknown() -> None:
    tokenizer = replace(read(KINDS["qwen2"]), pre="")
    keys = to_gguf(tokenizer)
    assert CARRIED not in keys
    for text in SAMPLE:
        assert Codec(from_gguf(keys)).encode(text) == Codec(tokenizer).encode(text)


def test_tokens_that_strip_spaces_make_the_tokenizer_travel_whole() -> None:
    document = json.loads(tiny.byte_level_json("gpt-2"))
    document["added_tokens"][1]["rstrip"] = True
    warnings: list[str] = []
    keys = to_gguf(read(tiny.files(json.dumps(document), tiny.CHAT_CONFIG)), None, warnings)
    assert keys[G + "pre"] == "gpt-2" and CARRIED in keys
    assert warnings[0].startswith("tokenizer: text around special tokens or outside normal form C")
    codec, text = Codec(from_gguf(keys)), "a <|im_start|> b"
    assert codec.encode(text) == Codec(read({"tokenizer.json": keys[CARRIED].encode()})).encode(
        text
    )


def test_carried_tokenizer_must_fit_the_tokens() -> None:
    keys = to_gguf(strange())
    keys[G + "tokens"] = keys[G + "tokens"][:-1]
    keys[G + "token_type"] = keys[G + "token_type"][:-1]
    keys[G + "merges"] = []
    with pytest.raises(FormatError, match=r"has 600 tokens, tokenizer\.ggml\.tokens 599"):
        from_gguf(keys)


def test_chat_templates_by_name() -> None:
    tokenizer = replace(
        read(KINDS["gpt-2"]), chat_template="one", chat_templates={"tool use": "two"}
    )
    keys = to_gguf(tokenizer)
    assert keys["tokenizer.chat_template"] == "one"
    assert keys["tokenizer.chat_template.tool_use"] == "two"
    assert keys["tokenizer.chat_templates"] == ["tool_use"]
    assert from_gguf(keys).chat_templates == {"tool_use": "two"}


def test_values_may_be_wrapped_or_bytes() -> None:
    keys = keys_of("gpt-2")
    keys[G + "tokens"] = [token.encode() for token in keys[G + "tokens"]]
    keys[G + "model"] = b"gpt2"
    keys[G + "merges"] = np.asarray(keys[G + "merges"])
    wrapped = {key: SimpleNamespace(value=value, type=None) for key, value in keys.items()}
    assert from_gguf(wrapped) == from_gguf(keys_of("gpt-2"))


def test_defaults_where_keys_are_absent() -> None:
    for name, ids in (
        ("spm", {"bos": 1, "eos": 2, "unk": 0}),
        ("unigram", {"eos": 1, "unk": 2, "pad": 0}),
        ("wordpiece", {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "cls": 101}),
    ):
        bare = {k: v for k, v in keys_of(name).items() if not k.endswith(("_id", "_token"))}
        found = from_gguf(bare)
        assert found.special_ids == ids
        assert (found.add_bos, found.add_eos) == (name != "unigram", name != "spm")
    bare = {k: v for k, v in keys_of("gpt-2").items() if not k.endswith(("_id", "_token"))}
    assert from_gguf(bare).special_ids == {} and from_gguf(bare).add_bos is False
    assert from_gguf({**bare, G + "pre": "falcon"}).special_ids == {"bos": 11, "eos": 11}
    del bare[G + "token_type"], bare[G + "pre"]
    assert from_gguf(bare).pre == "default" and set(from_gguf(bare).token_types) == {1}
    assert from_gguf(bare).warnings[0].startswith("tokenizer.ggml.pre is missing; text is split")


def test_a_silent_source_adds_no_begin_token() -> None:
    document = json.loads(tiny.byte_level_json("llama-bpe"))
    document["post_processor"] = None
    tokenizer = read(tiny.files(json.dumps(document), {}))
    keys = to_gguf(tokenizer)
    assert keys[G + "add_bos_token"] is False and CARRIED not in keys


def test_stop_ids_and_ids_out_of_range() -> None:
    keys = keys_of("gpt-2")
    assert from_gguf(keys).stop_ids == (2, 0)
    found = from_gguf({**keys, G + "padding_token_id": np.uint32(600)})
    assert found.warnings == (
        "tokenizer.ggml.padding_token_id is 600, the vocabulary has 600 tokens; it is ignored",
    )
    assert "pad" not in found.special_ids
    assert "pad" not in from_gguf({**keys, G + "padding_token_id": 0xFFFFFFFF}).special_ids


def test_empty_tokens_get_names() -> None:
    keys = keys_of("spm")
    keys[G + "tokens"][-1] = ""
    assert from_gguf(keys).tokens[-1] == f"[EMPTY_{len(keys[G + 'tokens']) - 1}]"


def test_raw_bpe_with_byte_fallback() -> None:
    tokens = ["<pad>", "<unk>", "\u2581", "a", "b", "ab", "\u2581ab", "\n", "\n\n"]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    types = [3, 2, 1, 1, 1, 1, 1, 1, 1] + [6] * 256
    keys = {
        G + "model": "gemma4",
        G + "tokens": tokens,
        G + "token_type": np.asarray(types, np.int32),
        G + "merges": ["a b", "\u2581 ab", "\n \n"],
        G + "unknown_token_id": np.uint32(1),
    }
    tokenizer = from_gguf(keys)
    codec = Codec(tokenizer)
    assert codec.encode("ab ab\n\né") == [5, 6, 8, 9 + 0xC3, 9 + 0xA9]
    assert codec.decode([6, 8, 9 + 0xC3, 9 + 0xA9]) == " ab\n\né"
    assert to_gguf(tokenizer)[G + "model"] == "gemma4"


def test_user_defined_tokens_hold_plain_spaces() -> None:
    record = read(KINDS["spm"])
    tokens = (*record.tokens, "\u2581\u2581x")
    types, scores = (*record.token_types, 4), (*record.scores, -1.0)
    keys = to_gguf(replace(record, tokens=tokens, token_types=types, scores=scores, source={}))
    assert keys[G + "tokens"][-1] == "  x"


def test_unknown_models_and_names() -> None:
    with pytest.raises(UnsupportedError) as error:
        from_gguf({**keys_of("gpt-2"), G + "model": "hybriddna"})
    assert str(error.value) == (
        "tokenizer.ggml.model: tokenizer model 'hybriddna' is not supported; "
        "supported: llama, gpt2, t5, bert, gemma4 and 3 more"
    )
    with pytest.raises(
        UnsupportedError, match="'qwen3' is not supported; supported: qwen35, qwen2,"
    ):
        from_gguf({**keys_of("gpt-2"), G + "pre": "qwen3"})
    with pytest.raises(FormatError, match="model is missing; the file has no tokenizer"):
        from_gguf({})
