"""llama.cpp's reading of GGUF tokenizers, without llama.cpp."""

from __future__ import annotations

from dataclasses import replace

import pytest

from halfbyte.converters.tokenizers import from_gguf, from_hugging_face, to_gguf, to_hugging_face
from halfbyte.converters.tokenizers.codec import Codec
from halfbyte.converters.tokenizers.ggml_types import effective_types, end_ids
from halfbyte.converters.tokenizers.partition import Partition, trie_pattern
from halfbyte.errors import UnsupportedError
from halfbyte.ir.tokenizer import Tokenizer
from support import tiny_tokenizers as tiny

G = "tokenizer.ggml."


def record(texts: dict[str, int], **fields: object) -> Tokenizer:
    return replace(
        Tokenizer("rwkv", tuple(texts), tuple(texts.values())),
        **fields,  # type: ignore[arg-type]
    )


def test_longer_special_tokens_are_taken_first() -> None:
    cut = Partition(record({"ab": 3, "bcd": 4, "x": 1})).cut
    assert cut("abcd", parse_special=True) == ["a", 1]
    assert cut("abcd abx", parse_special=True) == ["a", 1, " ", 0, "x"]
    assert cut("ab bcd", parse_special=False) == ["ab ", 1]
    assert cut("", parse_special=True) == []


def test_special_tokens_take_spaces_along() -> None:
    strips = record({"<m>": 3, "<e>": 3}, lstrip_ids=(0,), rstrip_ids=(1,))
    cut = Partition(strips).cut
    assert cut("a \n<m> b<e>\t c<e> ", parse_special=True) == ["a", 0, " b", 1, "c", 1]
    assert Tokenizer.from_json(strips.to_json()) == strips


def test_one_pattern_finds_the_longest_text() -> None:
    import re

    pattern = re.compile(trie_pattern(["a", "abc", "ab.", "b"]))
    assert pattern.findall("abcab.abx") == ["abc", "ab.", "a", "b"]


def test_types_and_ends_that_texts_give_away() -> None:
    harmony = record(
        {"<|end|>": 3, "<|call|>": 3, "<|return|>": 3, "<|start|>": 3, "<|im_end|>": 1}
    )
    assert effective_types(harmony) == (4, 3, 3, 4, 3)
    assert end_ids(harmony) == (1, 2, 4)
    gemma = record({"</s>": 1, "<|tool_response>": 4, "<PAD>": 1, "eos": 3}, special_ids={"eos": 3})
    assert effective_types(gemma) == (1, 3, 3, 3)
    assert end_ids(gemma) == (3, 1, 2)


def test_wordpiece_strips_accents_as_llama_cpp_does() -> None:
    tokenizer = from_hugging_face(tiny.every_kind()["wordpiece"])
    assert tokenizer is not None
    keys = from_gguf(to_gguf(tokenizer))
    ours, original = Codec(keys), Codec(keys, original=True)
    assert ours.encode("Größe, naïve!") == original.encode("Größe, naïve!")
    assert ours.encode("안") != original.encode("안")
    assert ours.encode("안") == ours.encode("아")


def test_normal_form_is_the_original_s_alone() -> None:
    tokenizer = from_hugging_face(tiny.every_kind()["qwen2"])
    assert tokenizer is not None
    keys = from_gguf(to_gguf(tokenizer))
    assert Codec(keys, original=True).encode("e\u0301") == Codec(tokenizer).encode("é")
    assert Codec(keys).decode(Codec(keys).encode("e\u0301")) == "e\u0301"


def test_digits_are_grouped_in_linear_time_from_the_right() -> None:
    letters = [chr(code) for code in range(0x21, 0x7F)] + ["Ġ"]
    merges = ["1 2", "12 3", "2 3", "3 4", "a 1"]
    tokens = [*letters, "12", "123", "23", "34", "a1"]
    keys = {G + "model": "gpt2", G + "pre": "tiny_aya", G + "tokens": tokens, G + "merges": merges}
    codec = Codec(from_gguf(keys))
    pieces = [codec.tokenizer.tokens[index] for index in codec.encode("a123 1234")]
    assert pieces == ["a", "123", "Ġ", "1", "23", "4"]
    assert len(codec.encode("a" * 300_000)) == 300_000


def test_longest_bytes_win_in_rwkv() -> None:
    tokens = ["<s>", *(repr(bytes([byte]))[2:-1] for byte in range(256)), "ab", "\\xe4\\xb8\\xad"]
    keys = {G + "model": "rwkv", G + "tokens": tokens, G + "token_type": [3] + [1] * 258}
    tokenizer = from_gguf(keys)
    codec = Codec(tokenizer)
    ids = codec.encode("abc中\n<s>")
    assert ids == [257, 1 + ord("c"), 258, 11, 0]
    assert codec.decode(ids, skip_special=False) == "abc中\n\\x3cs>".replace("\\x3c", "<")
    assert to_gguf(tokenizer)[G + "tokens"] == tokens
    with pytest.raises(UnsupportedError, match="tokenizer 'rwkv' is not supported"):
        to_hugging_face(tokenizer)


def test_the_best_sum_wins_in_plamo() -> None:
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", *spelled, "a", "b", "ab", "aba"]
    keys = {
        G + "model": "plamo2",
        G + "tokens": tokens,
        G + "scores": [0.0] * 257 + [-1.0, -1.0, -1.5, -2.5],
        G + "token_type": [2] + [6] * 256 + [1] * 4,
    }
    codec = Codec(from_gguf(keys))
    assert codec.encode("aba", parse_special=False) == [260]
    assert codec.encode("abé") == [259, 1 + 0xC3, 1 + 0xA9]
    assert codec.decode(codec.encode("abé")) == "abé"
