"""The tokenizer record: JSON and pickle round trips, checks."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from halfbyte.converters.tokenizers import from_hugging_face
from halfbyte.errors import FormatError
from halfbyte.ir.tokenizer import Tokenizer, TokenType, byte_value, check_tokenizer
from support import tiny_tokenizers as tiny

PLAIN = Tokenizer(kind="bpe", tokens=("a", "b", "ab"), merges=(("a", "b"),))


def message(error: pytest.ExceptionInfo[FormatError]) -> str:
    return str(error.value)


@pytest.mark.parametrize("name", tiny.every_kind())
def test_json_and_pickle_lose_nothing(name: str) -> None:
    tokenizer = from_hugging_face(tiny.every_kind()[name])
    assert tokenizer is not None
    assert Tokenizer.from_json(tokenizer.to_json()) == tokenizer
    assert Tokenizer.from_json(tokenizer.to_json()).source == tokenizer.source
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer


def test_json_keeps_files_that_are_not_text() -> None:
    record = replace(PLAIN, source={"tokenizer.model": b"\xff\x00"}, precompiled_charsmap=b"\x80")
    assert Tokenizer.from_json(record.to_json()) == record


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": 1}', "[" * 100_000])
def test_broken_json_is_one_clear_error(text: str) -> None:
    with pytest.raises(FormatError, match=r"^x\.hb: not a tokenizer record"):
        Tokenizer.from_json(text, "x.hb")


def test_json_is_checked_when_read() -> None:
    with pytest.raises(FormatError, match="both 'a'"):
        Tokenizer.from_json(PLAIN.to_json().replace('["a","b","ab"]', '["a","a","ab"]'))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kind": "x"}, "t: kind 'x' is none of bpe, spm, unigram, wordpiece, rwkv, plamo2"),
        ({"tokens": ("a", 1)}, "t: a token is not text"),
        (
            {"tokens": ("a", "b", "\ud800")},
            "t: a text is not valid Unicode (surrogates not allowed)",
        ),
        ({"scores": (1.0,)}, "t: scores has 1 entries, the vocabulary 3 tokens"),
        ({"token_types": (1,)}, "t: token_types has 1 entries, the vocabulary 3 tokens"),
        ({"token_types": (1, 1, 9)}, "t: token type 9 is not one of 1 to 6"),
        (
            {"tokens": ("a", "b", "a")},
            "t: tokens 0 and 2 are both 'a'; each may stand only once",
        ),
        ({"special_ids": {"bos": 3}}, "t: special token bos has id 3, not below 3"),
        ({"token_types": (1, 1, 6)}, "t: byte token 2 is 'ab', not <0x00> to <0xFF>"),
    ],
)
def test_checks(change: dict[str, object], expected: str) -> None:
    with pytest.raises(FormatError) as error:
        check_tokenizer(replace(PLAIN, **change), "t")
    assert message(error) == expected


def test_byte_values() -> None:
    assert byte_value("<0x0A>") == 10
    assert byte_value("<0xff>") == 255
    wrong = ("<0x-1>", "<0xZZ>", "<0x100>", "<0x1>", "", "<0x0A", "0x0A>>", "<0x+1>")
    assert [byte_value(text) for text in wrong] == [None] * len(wrong)


def test_special_tokens_types_and_length() -> None:
    record = replace(PLAIN, special_ids={"eos": 2})
    assert (record.special_token("eos"), record.special_token("bos")) == ("ab", None)
    assert (len(record), record.token_type(0)) == (3, TokenType.NORMAL)


def test_holes_do_not_count_against_the_model() -> None:
    types = (1, 1, 1, 5)
    record = replace(PLAIN, tokens=("a", "b", "ab", "[PAD3]"), token_types=types)
    record.check_vocabulary_size(3)
    with pytest.raises(FormatError) as error:
        record.check_vocabulary_size(2, "model.gguf")
    assert message(error) == (
        "model.gguf: the tokenizer has 3 tokens, the model's vocabulary holds 2; "
        "this tokenizer belongs to another model"
    )
