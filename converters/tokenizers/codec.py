"""Text to token ids and back.

Tokenizers with Hugging Face files run on those files, through the `tokenizers` library. Tokenizers
from GGUF keys give llama.cpp's ids: special tokens are cut out as it does, then the words engine
of the tokenizer's kind takes over.
"""

from __future__ import annotations

import codecs
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from halfbyte.converters.tokenizers.backend import PairMerger, build_backend, encode, load_backend
from halfbyte.converters.tokenizers.byte_trie import LongestMatch, token_bytes
from halfbyte.converters.tokenizers.ggml_types import effective_types
from halfbyte.converters.tokenizers.greedy import GreedyMerger
from halfbyte.converters.tokenizers.partition import Partition
from halfbyte.converters.tokenizers.plamo import ScoredCutter
from halfbyte.converters.tokenizers.pretokenizers import PRE_TOKENIZERS
from halfbyte.converters.tokenizers.tokenizer_json import SPACE
from halfbyte.converters.tokenizers.unigram import UnigramCutter
from halfbyte.converters.tokenizers.wordpiece import WordPieces
from halfbyte.errors import HalfbyteError
from halfbyte.ir.tokenizer import Tokenizer, TokenType, byte_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenizers import Tokenizer as Backend

SPECIAL_TYPES = (TokenType.CONTROL, TokenType.UNKNOWN)


class Engine(Protocol):
    """Turns text without special tokens into ids."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""


ENGINES: dict[str, Callable[[Tokenizer], Engine]] = {
    "bpe": PairMerger,
    "spm": GreedyMerger,
    "unigram": UnigramCutter,
    "wordpiece": WordPieces,
    "rwkv": LongestMatch,
    "plamo2": ScoredCutter,
}
ENGINE_ALONE = ("spm", "rwkv", "plamo2")


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: the character that stands for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


class Codec:
    """Encodes and decodes with one tokenizer; safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, original: bool = False) -> None:
        """Prepare a tokenizer for use.

        original: give a tokenizer from GGUF keys the ids of the model it was made from, where
        llama.cpp only approximates them (normal form C, accents, upper case outside ASCII).

        Raises:
            FormatError: the tokenizer contradicts itself.
            UnsupportedError: its pre-tokenizer is not known.
        """
        self.tokenizer = tokenizer
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._backend: Backend | None = None
        files = tokenizer.source
        original = original or bool(files)
        if "tokenizer.json" in files or (original and tokenizer.kind not in ENGINE_ALONE):
            self._types = tokenizer.token_types
            self._backend = self._load()
        else:
            self._types = effective_types(tokenizer)
            self._engine = ENGINES[tokenizer.kind](tokenizer)

    def _load(self) -> Backend:
        source = self.tokenizer.source.get("tokenizer.json")
        if source is None:
            return build_backend(self.tokenizer)
        return load_backend(source.decode("utf-8"), "tokenizer.json")

    def use_pre_tokenizer(self, name: str) -> None:
        """Split text as another name's original does, keeping the vocabulary loaded."""
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
        if self._engine is not None:
            return self._encode_parts(self._engine, text, add_special, parse_special)
        backend = self._require_backend()
        with self._lock:
            backend.encode_special_tokens = not parse_special
            return encode(backend, text, add_special)

    def _require_backend(self) -> Backend:
        assert self._backend is not None
        return self._backend

    def _encode_parts(
        self, engine: Engine, text: str, add_special: bool, parse_special: bool
    ) -> list[int]:
        record = self.tokenizer
        first, last = self._ends if add_special else ([], [])
        out = [*first]
        prefix = " " if record.kind == "spm" and record.add_space_prefix is not False else ""
        after_special = True
        for part in self._partition.cut(text, parse_special):
            if isinstance(part, int):
                out.append(part)
                after_special = True
                continue
            part = prefix + part if after_special else part
            out += engine.encode(part.replace(" ", SPACE) if record.kind == "spm" else part)
            after_special = False
        return out + last

    @cached_property
    def _partition(self) -> Partition:
        return Partition(self.tokenizer)

    @cached_property
    def _ends(self) -> tuple[list[int], list[int]]:
        """Return what stands before and after every text."""
        record, ids = self.tokenizer, self.tokenizer.special_ids
        bert = record.kind == "wordpiece"
        if record.kind in ("rwkv", "plamo2"):
            return [], []
        last = "sep" if bert else "eos"
        first = [ids["bos"]] if "bos" in ids and (bert or record.add_bos) else []
        return first, [ids[last]] if last in ids and (bert or record.add_eos) else []

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of token ids.

        Raises:
            HalfbyteError: an id is outside the vocabulary.
        """
        for index in ids:
            self._check_id(index)
        backend = self._decoder if self.tokenizer.kind == "wordpiece" else self._backend
        if backend is not None:
            return str(backend.decode(list(ids), skip_special_tokens=skip_special))
        stream = StreamDecoder(self, skip_special)
        return "".join([stream.push(index) for index in ids]) + stream.finish()

    @cached_property
    def _decoder(self) -> Backend:
        return self._backend or build_backend(self.tokenizer)

    def _type(self, index: int) -> int:
        return self._types[index] if self._types else int(TokenType.NORMAL)

    def _check_id(self, index: int) -> None:
        if not 0 <= index < len(self.tokenizer):
            raise HalfbyteError(
                f"token id {index}: the vocabulary has {len(self.tokenizer)} tokens"
            )

    def is_special(self, index: int) -> bool:
        """Return whether a token is a control or unknown token."""
        return self._type(index) in SPECIAL_TYPES

    def id_to_piece(self, index: int) -> bytes:
        """Return the bytes that a token adds to the text; they may end inside a character.

        Raises:
            HalfbyteError: the id is outside the vocabulary.
        """
        self._check_id(index)
        record = self.tokenizer
        token, kind = record.tokens[index], self._type(index)
        if record.kind == "rwkv":
            return token_bytes(token)
        if kind == TokenType.UNUSED:
            return b""
        if record.kind == "plamo2" and kind != TokenType.BYTE:
            return token.encode("utf-8")
        if kind in (*SPECIAL_TYPES, TokenType.USER_DEFINED):
            return token.encode("utf-8")
        if kind == TokenType.BYTE:
            return bytes([byte_value(token) or 0])
        if record.kind == "wordpiece":
            return (token[2:] if token.startswith("##") else " " + token).encode("utf-8")
        if self._in_bytes and all(char in BYTE_ALPHABET for char in token):
            return bytes([BYTE_ALPHABET[char] for char in token])
        return token.replace(SPACE, " ").encode("utf-8")

    @cached_property
    def _in_bytes(self) -> bool:
        """Return whether tokens stand in GPT-2's byte alphabet."""
        row = PRE_TOKENIZERS.get(self.tokenizer.pre)
        return self.tokenizer.kind == "bpe" and not (row is not None and row.raw)

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
