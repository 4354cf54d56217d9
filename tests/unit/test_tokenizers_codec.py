"""Encoding, decoding, streaming."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Peer
from tokenizers import models

from halfbyte.converters.tokenizers import from_gguf, from_hugging_face, to_gguf
from halfbyte.converters.tokenizers.agreement import NOT_NFC, SAMPLE
from halfbyte.converters.tokenizers.codec import Codec, StreamDecoder, build_backend, load_backend
from halfbyte.converters.tokenizers.greedy import GreedyMerger
from halfbyte.errors import FormatError, HalfbyteError
from halfbyte.ir.tokenizer import Tokenizer
from support import tiny_tokenizers as tiny

KINDS = tiny.every_kind()
TEXTS = (*SAMPLE, *NOT_NFC, "", " ", "\n")


def from_files(name: str) -> Codec:
    tokenizer = from_hugging_face(KINDS[name])
    assert tokenizer is not None
    return Codec(tokenizer)


def from_keys(name: str) -> Codec:
    return Codec(from_gguf(to_gguf(from_files(name).tokenizer)))


@pytest.mark.parametrize("name", KINDS)
def test_same_ids_as_the_source_from_files_and_from_gguf_keys(name: str) -> None:
    peer = Peer.from_str(KINDS[name]["tokenizer.json"].decode())
    files = from_files(name)
    keys = Codec(from_keys(name).tokenizer, original=True)
    for text in TEXTS:
        for special in (True, False):
            expected = peer.encode(text, add_special_tokens=special).ids
            assert files.encode(text, add_special=special) == expected, text
            assert keys.encode(text, add_special=special) == expected, text
        assert files.decode(expected) == peer.decode(expected)


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "spm"])
def test_text_comes_back(name: str) -> None:
    for codec in (from_files(name), from_keys(name)):
        for text in SAMPLE:
            assert codec.decode(codec.encode(text)) == text


@pytest.mark.parametrize("name", ["gpt-2", "spm", "unigram", "wordpiece"])
def test_streaming_gives_the_decoded_text(name: str) -> None:
    codec = from_keys(name)
    for text in SAMPLE:
        ids = codec.encode(text)
        stream = StreamDecoder(codec)
        pieces = [stream.push(index) for index in ids]
        assert "\ufffd" not in "".join(pieces)
        streamed = "".join(pieces) + stream.finish()
        if name != "wordpiece":
            assert streamed == codec.decode(ids)
        else:
            assert streamed.replace(" ", "") == codec.decode(ids).replace(" ", "")


def test_streaming_holds_back_unfinished_characters() -> None:
    codec = from_files("gpt-2")
    ids = [codec.tokenizer.tokens.index(char) for char in "ðŁĻĤ"]
    stream = StreamDecoder(codec)
    assert [stream.push(index) for index in ids] == ["", "", "", "🙂"]
    assert stream.push(ids[0]) == ""
    assert stream.finish() == "\ufffd"


def test_special_tokens_in_the_text() -> None:
    for codec in (from_files("smollm"), from_keys("smollm")):
        ids = codec.encode("<|im_start|>hi<|im_end|>")
        assert ids[0] == 1 and ids[-1] == 2
        assert codec.decode(ids) == "hi"
        assert codec.decode(ids, skip_special=False) == "<|im_start|>hi<|im_end|>"
        plain = codec.encode("<|im_start|>hi", parse_special=False)
        assert 1 not in plain and codec.decode(plain) == "<|im_start|>hi"
        assert codec.is_special(1) and not codec.is_special(plain[0])


def test_special_tokens_in_sentencepiece_text_as_llama_cpp_cuts_it() -> None:
    codec = from_keys("spm")
    pieces = [codec.tokenizer.tokens[i] for i in codec.encode("ab<s>ab</s>")]
    assert pieces[0] == "<s>" and pieces[-1] == "</s>" and pieces.count("<s>") == 2
    assert codec.decode(codec.encode("a </s>b"), skip_special=False) == "<s> a </s> b"
    spelled = codec.encode("<s>", add_special=False, parse_special=False)
    assert codec.decode(spelled) == "<s>"


def test_pieces() -> None:
    spm = from_keys("spm")
    assert spm.id_to_piece(3 + 0xE2) == b"\xe2"
    assert spm.id_to_piece(1) == b"<s>"
    assert from_files("wordpiece").id_to_piece(5).startswith(b" ")
    assert spm.vocab_size == len(spm.tokenizer)


@pytest.mark.parametrize("index", [-1, 10_000])
def test_ids_outside_the_vocabulary(index: int) -> None:
    with pytest.raises(HalfbyteError) as error:
        from_files("gpt-2").decode([index])
    assert str(error.value) == f"token id {index}: the vocabulary has 600 tokens"


def test_text_that_is_no_unicode() -> None:
    with pytest.raises(HalfbyteError, match=r"^text to encode: not valid Unicode"):
        from_files("gpt-2").encode("\ud800")


def test_padding_and_truncation_of_the_file_are_ignored() -> None:
    document = json.loads(tiny.byte_level_json())
    document["truncation"] = {
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    tokenizer = from_hugging_face(tiny.files(json.dumps(document)))
    assert tokenizer is not None
    assert len(Codec(tokenizer).encode("a b c d e f")) > 2


class PanicException(BaseException):
    """What a panic in Rust looks like from Python."""


def test_a_panic_of_the_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*_: object, **__: object) -> None:
        raise PanicException("index out of range")

    expected = "the tokenizers library cannot handle it (index out of range)"
    codec = from_files("gpt-2")
    monkeypatch.setattr(codec, "_backend", SimpleNamespace(encode=panic))
    with pytest.raises(FormatError) as error:
        codec.encode("a")
    assert str(error.value) == f"tokenizer: {expected}"
    monkeypatch.setattr(Peer, "from_str", panic)
    with pytest.raises(FormatError) as error:
        load_backend("{}", "x.json")
    assert str(error.value) == f"x.json: {expected}"
    monkeypatch.setattr(models, "BPE", panic)
    with pytest.raises(FormatError) as error:
        build_backend(replace(codec.tokenizer, source={}))
    assert str(error.value) == f"tokenizer: {expected}"


def test_interrupts_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    codec = from_files("gpt-2")
    monkeypatch.setattr(codec, "_backend", SimpleNamespace(encode=interrupt))
    with pytest.raises(KeyboardInterrupt):
        codec.encode("a")


def test_errors_of_the_library_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no")

    codec = from_files("gpt-2")
    monkeypatch.setattr(codec, "_backend", SimpleNamespace(encode=fail))
    with pytest.raises(HalfbyteError, match=r"^text to encode: no$"):
        codec.encode("a")


def small_spm(tokens: list[str], scores: list[float], unk: bool = True) -> Tokenizer:
    types = tuple(2 if token == "<unk>" else 1 for token in tokens)
    ids = {"unk": 0} if unk else {}
    return Tokenizer("spm", tuple(tokens), types, tuple(scores), special_ids=ids)


def test_greedy_merging_takes_the_best_score_then_the_leftmost() -> None:
    record = small_spm(["<unk>", "a", "b", "ab", "ba", "aa"], [0, 0, 0, -1, -2, -2])
    merger = GreedyMerger(record)
    assert merger.encode("aba") == [3, 1]
    assert merger.encode("aaa") == [5, 1]
    assert merger.encode("x") == [0]
    assert GreedyMerger(small_spm(["a"], [0], unk=False)).encode("x") == []


def test_tokens_across_words_are_still_found() -> None:
    record = small_spm(["<unk>", "a", "▁", "b", "a▁", "a▁b", "▁b"], [0, 0, 0, 0, -1, -2, -3])
    assert GreedyMerger(record).encode("a▁b") == [5]


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_greedy_merging_equals_merging_by_rank(text: str) -> None:
    by_rank, by_score = from_files("spm"), from_keys("spm")
    text = text.replace("<", "(")
    assert by_score.encode(text) == by_rank.encode(text)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(3, 599), max_size=30))
def test_streaming_equals_decoding_for_any_ids(ids: list[int]) -> None:
    codec = from_files("gpt-2")
    stream = StreamDecoder(codec)
    streamed = "".join([stream.push(index) for index in ids]) + stream.finish()
    assert streamed == codec.decode(ids)
