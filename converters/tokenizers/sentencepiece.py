"""Read SentencePiece model files (`tokenizer.model`, `spiece.model`).

A model file is one protobuf message. Fields used (wire numbers):

    ModelProto       1 pieces (repeated), 2 trainer_spec, 3 normalizer_spec
    SentencePiece    1 piece (string), 2 score (float), 3 type (1 normal, 2 unknown, 3 control,
                     4 user-defined, 5 unused, 6 byte)
    TrainerSpec      3 model_type (1 unigram, 2 bpe, 3 word, 4 char), 24 treat_whitespace_as_suffix,
                     35 byte_fallback, 40 to 43 unk, bos, eos, pad id
    NormalizerSpec   2 precompiled_charsmap (bytes), 3 add_dummy_prefix, 4 remove_extra_whitespaces

Own reader: the generated protobuf classes live in the `sentencepiece` package, which is no
dependency, and twenty lines of wire format are all that is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from halfbyte.errors import FormatError, UnsupportedError

WireValue = int | bytes


@dataclass
class SentencePieceModel:
    """What a model file says: pieces (text, score, type) by id, and how to normalise."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    model_type: int = 1
    byte_fallback: bool = False
    special_ids: dict[str, int] = field(default_factory=dict)
    precompiled_charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True


def read_sentencepiece(data: bytes, where: str) -> SentencePieceModel:
    """Return the model in `data`.

    Raises:
        FormatError: not a SentencePiece model.
        UnsupportedError: a word or character model.
    """
    model = SentencePieceModel(special_ids={"unk": 0, "bos": 1, "eos": 2})
    for number, value in _fields(data, where):
        if isinstance(value, int):
            continue
        if number == 1:
            model.pieces.append(_piece(value, where))
        elif number == 2:
            _trainer(model, value, where)
        elif number == 3:
            _normalizer(model, value, where)
    if not model.pieces:
        raise FormatError(where, "not a SentencePiece model: it has no pieces")
    if model.model_type not in (1, 2):
        kind = {3: "word", 4: "character"}.get(model.model_type, str(model.model_type))
        raise UnsupportedError(f"SentencePiece model type {kind!r}", where, ["unigram", "bpe"])
    count = len(model.pieces)
    model.special_ids = {n: i for n, i in model.special_ids.items() if 0 <= i < count}
    return model


def _varint(data: bytes, at: int, where: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise FormatError(where, "not a SentencePiece model: broken number", at)


def _fields(data: bytes, where: str) -> Iterator[tuple[int, WireValue]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at, where)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at, where)
            yield number, value
            continue
        length = {1: 8, 5: 4}.get(wire, -1)
        if wire == 2:
            length, at = _varint(data, at, where)
        if length < 0 or length > len(data) - at:
            raise FormatError(where, "not a SentencePiece model: broken field", at)
        yield number, data[at : at + length]
        at += length


def _piece(data: bytes, where: str) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data, where):
        if number == 1 and isinstance(value, bytes):
            try:
                text = value.decode("utf-8")
            except UnicodeDecodeError as error:
                raise FormatError(where, f"a piece is not UTF-8 ({value[:20]!r})") from error
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            score = float(struct.unpack("<f", value)[0])
        elif number == 3 and isinstance(value, int):
            kind = value
    if not 1 <= kind <= 6:
        raise FormatError(where, f"piece {text!r} has type {kind}, 1 to 6 are known")
    return text, score, kind


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _trainer(model: SentencePieceModel, data: bytes, where: str) -> None:
    names = {40: "unk", 41: "bos", 42: "eos", 43: "pad"}
    for number, value in _fields(data, where):
        if not isinstance(value, int):
            continue
        if number == 3:
            model.model_type = value
        elif number == 24 and value:
            raise UnsupportedError("SentencePiece with whitespace as suffix", where)
        elif number == 35:
            model.byte_fallback = bool(value)
        elif number in names:
            model.special_ids[names[number]] = _signed(value)


def _normalizer(model: SentencePieceModel, data: bytes, where: str) -> None:
    for number, value in _fields(data, where):
        if number == 2 and isinstance(value, bytes):
            model.precompiled_charsmap = value
        elif number == 3 and isinstance(value, int):
            model.add_dummy_prefix = bool(value)
        elif number == 4 and isinstance(value, int):
            model.remove_extra_whitespaces = bool(value)
