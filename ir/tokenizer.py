"""One tokenizer record for all formats.

A tokenizer is data: vocabulary, scores or merges, the rules for splitting text and adding special
tokens, chat templates. `source` holds the Hugging Face files it was read from, byte for byte, so
that a way through any format that keeps the record loses nothing. The plain fields alone are what
GGUF can say; `converters.tokenizers` rebuilds a working tokenizer from either.

Token texts stand in Hugging Face's form: byte-level BPE tokens in GPT-2's byte alphabet, WordPiece
continuations with `##`, SentencePiece spaces as U+2581. A hole in the vocabulary is `[PADi]` of
type UNUSED.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any

from halfbyte.errors import FormatError

KINDS = ("bpe", "spm", "unigram", "wordpiece", "rwkv", "plamo2")


_LISTS = ("tokens", "token_types", "scores", "stop_ids", "lstrip_ids", "rstrip_ids", "warnings")


class TokenType(IntEnum):
    """What a token is, with ggml's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as data.

    kind: `bpe` (byte-level, or raw where `pre` says so), `spm` (SentencePiece BPE with scores),
        `unigram`, `wordpiece`; from GGUF alone also `rwkv` and `plamo2`.
    token_types: one `TokenType` value per token. scores: one per token, or empty.
    merges: pairs in rank order (bpe; spm when the source had them).
    pre: llama.cpp's name of the pre-tokenizer, "" where not known.
    special_ids: bos, eos, unk, sep, pad, cls, mask, eot, eom, fim_pre ... -> id.
    stop_ids: every id that ends a generation.
    add_bos and the other tri-state flags: None where the source does not say.
    lstrip_ids, rstrip_ids: special tokens that take the spaces before or after them along.
    chat_templates: the named templates beside the default one.
    source: Hugging Face files by name. warnings: what a user should hear about this tokenizer.
    """

    kind: str
    tokens: tuple[str, ...]
    token_types: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    merges: tuple[tuple[str, str], ...] = ()
    pre: str = ""
    special_ids: dict[str, int] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()
    add_bos: bool | None = None
    add_eos: bool | None = None
    add_sep: bool | None = None
    add_space_prefix: bool | None = None
    remove_extra_whitespaces: bool | None = None
    precompiled_charsmap: bytes = b""
    lowercase: bool | None = None
    strip_accents: bool | None = None
    ignore_merges: bool = False
    lstrip_ids: tuple[int, ...] = ()
    rstrip_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    chat_templates: dict[str, str] = field(default_factory=dict)
    source: dict[str, bytes] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        """Return the number of tokens, holes included."""
        return len(self.tokens)

    def token_type(self, index: int) -> int:
        """Return the type of a token; NORMAL where the source has no types."""
        return self.token_types[index] if self.token_types else int(TokenType.NORMAL)

    def is_hole(self, index: int) -> bool:
        """Return whether an id stands for no token at all."""
        unused = self.token_type(index) == TokenType.UNUSED
        return unused and self.tokens[index] == f"[PAD{index}]"

    def special_token(self, name: str) -> str | None:
        """Return the text of a special token such as `bos`, or None."""
        index = self.special_ids.get(name)
        return None if index is None else self.tokens[index]

    def check_vocabulary_size(self, vocab_size: int, where: str = "tokenizer") -> None:
        """Check that every token has a row in a model's embedding.

        Raises:
            FormatError: the tokenizer has more tokens than the model.
        """
        used = len(self.tokens)
        while used and self.is_hole(used - 1):
            used -= 1
        if used > vocab_size:
            raise FormatError(
                where,
                f"the tokenizer has {used} tokens, the model's vocabulary holds {vocab_size}; "
                "this tokenizer belongs to another model",
            )

    def to_json(self) -> str:
        """Return the record as one JSON document; `from_json` reads it back equal."""
        document: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "source":
                value = {name: _text_or_base64(content) for name, content in value.items()}
            elif item.name == "precompiled_charsmap":
                value = base64.b64encode(value).decode("ascii")
            document[item.name] = value
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | bytes, where: str = "tokenizer record") -> Tokenizer:
        """Return the record in a JSON document that `to_json` wrote.

        Raises:
            FormatError: the text is not such a document.
        """
        try:
            document = json.loads(text)
            document = {"lstrip_ids": (), "rstrip_ids": (), **document}
            values = {item.name: document[item.name] for item in fields(Tokenizer)}
            values["source"] = {n: _content(c) for n, c in values["source"].items()}
            values["precompiled_charsmap"] = base64.b64decode(values["precompiled_charsmap"])
            values["merges"] = tuple((left, right) for left, right in values["merges"])
            for name in _LISTS:
                values[name] = tuple(values[name])
            tokenizer = Tokenizer(**values)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise FormatError(where, f"not a tokenizer record ({error})") from error
        check_tokenizer(tokenizer, where)
        return tokenizer


def _text_or_base64(content: bytes) -> str | dict[str, str]:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode("ascii")}


def _content(value: str | dict[str, str]) -> bytes:
    return value.encode("utf-8") if isinstance(value, str) else base64.b64decode(value["base64"])


def check_tokenizer(tokenizer: Tokenizer, where: str = "tokenizer") -> None:
    """Check a record's lengths, ids, texts and types.

    Raises:
        FormatError: a list has another length than the vocabulary, a token is there twice or no
            text, a type or id is out of range, a byte token does not name a byte.
    """
    count = len(tokenizer.tokens)
    if tokenizer.kind not in KINDS:
        raise FormatError(where, f"kind {tokenizer.kind!r} is none of {', '.join(KINDS)}")
    if not all(isinstance(token, str) for token in tokenizer.tokens):
        raise FormatError(where, "a token is not text")
    _check_utf8("".join(tokenizer.tokens) + (tokenizer.chat_template or ""), where)
    for name, length in (
        ("token_types", len(tokenizer.token_types)),
        ("scores", len(tokenizer.scores)),
    ):
        if length not in (0, count):
            raise FormatError(where, f"{name} has {length} entries, the vocabulary {count} tokens")
    if len(set(tokenizer.tokens)) != count:
        _raise_duplicate(tokenizer.tokens, where)
    known = {int(kind) for kind in TokenType} | {0}
    if not set(tokenizer.token_types) <= known:
        wrong = next(kind for kind in tokenizer.token_types if kind not in known)
        raise FormatError(where, f"token type {wrong!r} is not one of 1 to 6")
    for name, index in tokenizer.special_ids.items():
        if not isinstance(index, int) or not 0 <= index < count:
            raise FormatError(where, f"special token {name} has id {index!r}, not below {count}")
    for index, kind in enumerate(tokenizer.token_types):
        if kind == TokenType.BYTE and byte_value(tokenizer.tokens[index]) is None:
            raise FormatError(
                where, f"byte token {index} is {tokenizer.tokens[index]!r}, not <0x00> to <0xFF>"
            )


def _check_utf8(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError(where, f"a text is not valid Unicode ({error.reason})") from error


def _raise_duplicate(tokens: tuple[str, ...], where: str) -> None:
    first: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if token in first:
            raise FormatError(
                where,
                f"tokens {first[token]} and {index} are both {token!r}; each may stand only once",
            )
        first[token] = index


def byte_value(token: str) -> int | None:
    """Return the byte that a token like `<0x0A>` stands for, or None."""
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return None
    digits = token[3:5]
    return int(digits, 16) if all(c in "0123456789abcdefABCDEF" for c in digits) else None
