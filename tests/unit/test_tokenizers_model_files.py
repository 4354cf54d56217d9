"""SentencePiece model files and precompiled character maps."""

from __future__ import annotations

import struct

import pytest

from halfbyte.converters.tokenizers.charsmap import check_charsmap
from halfbyte.converters.tokenizers.sentencepiece import read_sentencepiece
from halfbyte.errors import FormatError, UnsupportedError
from support.tiny_tokenizers import field, sentencepiece_model

PIECES = [("<unk>", 0.0, 2), ("a", -1.5, 1)]


def test_fields_of_a_model() -> None:
    trainer = field(3, 2) + field(35, 1) + field(40, 0) + field(41, -1) + field(42, 1)
    normalizer = field(1, b"nmt_nfkc") + field(2, b"map") + field(3, 0) + field(4, 0)
    model = read_sentencepiece(sentencepiece_model(PIECES, trainer, normalizer), "m")
    assert model.pieces == PIECES
    assert (model.model_type, model.byte_fallback) == (2, True)
    assert model.special_ids == {"unk": 0, "eos": 1}
    assert model.precompiled_charsmap == b"map"
    assert (model.add_dummy_prefix, model.remove_extra_whitespaces) == (False, False)


def test_unknown_fields_are_skipped() -> None:
    extra = field(9, 7) + field(10, b"x") + field(11, 1.5) + b"\x61" + b"\0" * 8
    assert read_sentencepiece(sentencepiece_model(PIECES) + extra, "m").pieces == PIECES


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "m: not a SentencePiece model: it has no pieces"),
        (b"\x0a", "m at byte 1: not a SentencePiece model: broken number"),
        (b"\x0a\xff", "m at byte 2: not a SentencePiece model: broken number"),
        (b"\xff" * 11, "m at byte 10: not a SentencePiece model: broken number"),
        (b"\x0a\x7fabc", "m at byte 2: not a SentencePiece model: broken field"),
        (b"\x0b", "m at byte 1: not a SentencePiece model: broken field"),
        (field(1, field(1, b"\xff")), "m: a piece is not UTF-8 (b'\\xff')"),
        (field(1, field(3, 9)), "m: piece '' has type 9, 1 to 6 are known"),
    ],
)
def test_broken_models(data: bytes, expected: str) -> None:
    with pytest.raises(FormatError) as error:
        read_sentencepiece(data, "m")
    assert str(error.value) == expected


def test_models_of_other_kinds() -> None:
    with pytest.raises(UnsupportedError) as error:
        read_sentencepiece(sentencepiece_model(PIECES, field(3, 4)), "m")
    assert str(error.value) == (
        "m: SentencePiece model type 'character' is not supported; supported: unigram, bpe"
    )
    with pytest.raises(UnsupportedError, match="whitespace as suffix"):
        read_sentencepiece(sentencepiece_model(PIECES, field(24, 1)), "m")


def charsmap(units: dict[int, int], replacements: bytes = b"b\0", count: int = 512) -> bytes:
    array = [units.get(index, 0) for index in range(count)]
    return struct.pack(f"<I{count}I", 4 * count, *array) + replacements


A = ord("a")
GOOD = {0: 256 << 10, 256 ^ A: A | 1 << 8 | 1 << 10, 256 ^ A ^ 1: 1 << 31}


def test_a_sound_map() -> None:
    check_charsmap(charsmap(GOOD))
    check_charsmap(b"")


@pytest.mark.parametrize(
    ("blob", "expected"),
    [
        (b"abc", "c: 3 bytes, the size header alone has 4"),
        (b"\x00\0\0\0a", "c at byte 0: its trie claims 0 bytes of 1"),
        (b"\x03\0\0\0abcd", "c at byte 0: its trie claims 3 bytes of 4"),
        (b"\xff\xff\xff\xffabcd", "c at byte 0: its trie claims 4294967295 bytes of 4"),
        (charsmap(GOOD, b"b"), "c: the last replacement has no terminating NUL"),
        (charsmap({0: 1 << 29}), "c: a link of its trie leads outside the trie"),
        (
            charsmap({**GOOD, 256 ^ A ^ 1: 1 << 31 | 5}),
            "c: a replacement offset lies outside the replacements",
        ),
    ],
)
def test_broken_maps(blob: bytes, expected: str) -> None:
    with pytest.raises(FormatError) as error:
        check_charsmap(blob, "c")
    assert str(error.value) == expected


def test_a_chain_of_links_is_bounded() -> None:
    """Each node is the next one's only child, deeper than any real replacement."""
    count, units, node = 1 << 17, {0: 256 << 10}, 0
    base = 256
    for depth in range(300):
        node = base ^ 1
        base = 256 * (depth + 2)
        units[node] = 1 | (node ^ base) << 10
    with pytest.raises(FormatError, match="more than 256 levels deep"):
        check_charsmap(charsmap(units, count=count))


def test_loops_in_a_map_end() -> None:
    node = 256 ^ 1
    check_charsmap(charsmap({0: 256 << 10, node: 1 | (node ^ 256) << 10}))
