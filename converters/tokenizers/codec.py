"""Text to token ids and back.

Tokenizers with Hugging Face files run on those files; the rest run on what their plain fields say.
The `tokenizers` library does the work, but SentencePiece BPE from GGUF, which is merged by score
exactly as llama.cpp does.
"""

from __future__ import annotations

import codecs
import json
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from halfbyte.converters.tokenizers.greedy import GreedyMerger
from halfbyte.converters.tokenizers.pretokenizers import PRE_TOKENIZERS
from halfbyte.converters.tokenizers.tokenizer_json import SPACE, build_tokenizer_json
from halfbyte.errors import FormatError, HalfbyteError
from halfbyte.ir.tokenizer import Tokenizer, TokenType, byte_value

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

SPECIAL_TYPES = (TokenType.CONTROL, TokenType.UNKNOWN)


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: the character that stands for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


def load_backend(text: str, where: str) -> Backend:
    """Return a `tokenizers` tokenizer from a tokenizer.json text, without padding or truncation.

    Raises:
        FormatError: the library refuses it.
    """
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_str(text)
    except Exception as error:
        raise FormatError(where, f"the tokenizers library refuses it ({error})") from error
    except BaseException as error:
        _raise_panic(error, where)
        raise
    backend.no_padding()
    backend.no_truncation()
    return backend


def build_backend(tokenizer: Tokenizer) -> Backend:
    """Return a `tokenizers` tokenizer for a record's plain fields.

    Raises:
        FormatError: the record contradicts itself.
        UnsupportedError: `pre` is no known pre-tokenizer.
    """
    from tokenizers import AddedToken

    document = build_tokenizer_json(tokenizer)
    model = _build_model(document["model"])
    # The document without its vocabulary, then the model as an object: half the time of one JSON.
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    stub = {**document, "model": empty, "added_tokens": []}
    backend = load_backend(json.dumps(stub), "tokenizer")
    backend.model = model
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    added = document["added_tokens"]
    backend.add_tokens([AddedToken(t["content"], **{f: t[f] for f in flags}) for t in added])
    return backend


def _build_model(fields: dict[str, Any]) -> Any:
    from tokenizers import models

    options = {name: value for name, value in fields.items() if value is not None}
    kind = options.pop("type")
    try:
        if kind == "Unigram":
            options["vocab"] = [tuple(entry) for entry in options["vocab"]]
        return getattr(models, kind)(**options)
    except Exception as error:
        raise FormatError("tokenizer", f"the tokenizers library refuses it ({error})") from error
    except BaseException as error:
        _raise_panic(error, "tokenizer")
        raise


def _raise_panic(error: BaseException, where: str) -> None:
    """Raise a Rust panic, which Python sees as no Exception, as a FormatError."""
    if type(error).__name__ == "PanicException":
        rule = f"the tokenizers library cannot handle it ({error})"
        raise FormatError(where, rule) from error


class Codec:
    """Encodes and decodes with one tokenizer; safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Prepare a tokenizer for use.

        Raises:
            FormatError: the tokenizer contradicts itself.
            UnsupportedError: its pre-tokenizer is not known.
        """
        self.tokenizer = tokenizer
        self._lock = threading.Lock()
        self._greedy: GreedyMerger | None = None
        self._backend: Backend | None = None
        if tokenizer.kind == "spm" and "tokenizer.json" not in tokenizer.source:
            self._greedy = GreedyMerger(tokenizer)
        else:
            self._backend = self._load()

    def _load(self) -> Backend:
        source = self.tokenizer.source.get("tokenizer.json")
        if source is None:
            return build_backend(self.tokenizer)
        return load_backend(source.decode("utf-8"), "tokenizer.json")

    def use_pre_tokenizer(self, name: str) -> None:
        """Split text as another name's pre-tokenizer does, keeping the vocabulary loaded."""
        backend = self._require_backend()
        empty = replace(self.tokenizer, tokens=(), token_types=(), merges=(), special_ids={})
        other = build_backend(replace(empty, pre=name))
        backend.normalizer = other.normalizer
        backend.pre_tokenizer = other.pre_tokenizer
        model: Any = backend.model
        model.ignore_merges = PRE_TOKENIZERS[name].ignore_merges

    @property
    def vocab_size(self) -> int:
        """Return the number of ids, holes included."""
        return len(self.tokenizer)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Return the token ids of a text.

        add_special: put the begin and end tokens that the tokenizer asks for.
        parse_special: special tokens spelled out in the text become their ids.

        Raises:
            HalfbyteError: the text is not valid Unicode.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise HalfbyteError(f"text to encode: not valid Unicode ({error.reason})") from error
        if self._greedy is not None:
            return self._encode_greedy(self._greedy, text, add_special, parse_special)
        return self._encode_backend(text, add_special, parse_special)

    def _encode_backend(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        backend = self._require_backend()
        try:
            with self._lock:
                backend.encode_special_tokens = not parse_special
                return list(backend.encode(text, add_special_tokens=add_special).ids)
        except Exception as error:
            raise HalfbyteError(f"text to encode: {error}") from error
        except BaseException as error:
            _raise_panic(error, "tokenizer")
            raise

    def _require_backend(self) -> Backend:
        assert self._backend is not None
        return self._backend

    def _encode_greedy(
        self, merger: GreedyMerger, text: str, add_special: bool, parse_special: bool
    ) -> list[int]:
        record = self.tokenizer
        ids = record.special_ids
        out = [ids["bos"]] if add_special and record.add_bos and "bos" in ids else []
        after_special = True
        for part in self._split_special(text, parse_special):
            if isinstance(part, int):
                out.append(part)
                after_special = True
                continue
            prefix = " " if record.add_space_prefix is not False and after_special else ""
            out += merger.encode((prefix + part).replace(" ", SPACE))
            after_special = False
        if add_special and record.add_eos and "eos" in ids:
            out.append(ids["eos"])
        return out

    def _split_special(self, text: str, parse_special: bool) -> list[str | int]:
        found, pattern = self._special_pattern if parse_special else self._user_pattern
        if pattern is None:
            return [text] if text else []
        return [found.get(part, part) for part in pattern.split(text) if part]

    @cached_property
    def _special_pattern(self) -> tuple[dict[str, int], re.Pattern[str] | None]:
        return self._pattern_for((*SPECIAL_TYPES, TokenType.USER_DEFINED))

    @cached_property
    def _user_pattern(self) -> tuple[dict[str, int], re.Pattern[str] | None]:
        return self._pattern_for((TokenType.USER_DEFINED,))

    def _pattern_for(self, kinds: Iterable[int]) -> tuple[dict[str, int], re.Pattern[str] | None]:
        record = self.tokenizer
        wanted = set(kinds)
        found = {record.tokens[i]: i for i, kind in enumerate(record.token_types) if kind in wanted}
        if not found:
            return {}, None
        longest_first = sorted(found, key=len, reverse=True)
        return found, re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of token ids.

        Raises:
            HalfbyteError: an id is outside the vocabulary.
        """
        for index in ids:
            self._check_id(index)
        if self._backend is not None:
            return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))
        stream = StreamDecoder(self, skip_special)
        return "".join([stream.push(index) for index in ids]) + stream.finish()

    def _check_id(self, index: int) -> None:
        if not 0 <= index < len(self.tokenizer):
            raise HalfbyteError(
                f"token id {index}: the vocabulary has {len(self.tokenizer)} tokens"
            )

    def is_special(self, index: int) -> bool:
        """Return whether a token is a control or unknown token."""
        return self.tokenizer.token_type(index) in SPECIAL_TYPES

    def id_to_piece(self, index: int) -> bytes:
        """Return the bytes that a token adds to the text; they may end inside a character.

        Raises:
            HalfbyteError: the id is outside the vocabulary.
        """
        self._check_id(index)
        record = self.tokenizer
        token, kind = record.tokens[index], record.token_type(index)
        if kind in (*SPECIAL_TYPES, TokenType.USER_DEFINED):
            return token.encode("utf-8")
        if kind == TokenType.BYTE:
            return bytes([byte_value(token) or 0])
        if record.kind == "wordpiece":
            return (token[2:] if token.startswith("##") else " " + token).encode("utf-8")
        if record.kind == "bpe" and all(char in BYTE_ALPHABET for char in token):
            return bytes([BYTE_ALPHABET[char] for char in token])
        return token.replace(SPACE, " ").encode("utf-8")

    @cached_property
    def starts_with_space(self) -> bool:
        """Return whether the first piece of a text begins with a space that is not in the text."""
        record = self.tokenizer
        if record.kind in ("spm", "unigram"):
            return record.add_space_prefix is not False
        return record.kind == "wordpiece"


class StreamDecoder:
    """Decodes ids one by one; holds back the bytes of an unfinished character."""

    def __init__(self, codec: Codec, skip_special: bool = True) -> None:
        """Start a text."""
        self._codec = codec
        self._skip_special = skip_special
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = codec.starts_with_space

    def push(self, index: int) -> str:
        """Return the text that this id completes, "" while a character is unfinished.

        Raises:
            HalfbyteError: the id is outside the vocabulary.
        """
        piece = self._codec.id_to_piece(index)
        if self._skip_special and self._codec.is_special(index):
            return ""
        if self._at_start and piece:
            piece = piece.removeprefix(b" ")
            self._at_start = False
        return self._bytes.decode(piece)

    def finish(self) -> str:
        """Return what is left at the end: U+FFFD for an unfinished character."""
        return self._bytes.decode(b"", final=True)
