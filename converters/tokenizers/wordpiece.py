"""WordPiece as llama.cpp does it for BERT models in GGUF.

Unlike the original: accents go by keeping the first character of each decomposition (which cuts
Hangul syllables down to their first sound) and dropping every combining mark; words have no longest
length; the longest match may also take a special token's text.

Source: llama.cpp src/llama-vocab.cpp, llm_tokenizer_wpm_session.
"""

from __future__ import annotations

import unicodedata

from halfbyte.converters.tokenizers.tokenizer_json import SPACE, phantom
from halfbyte.ir.tokenizer import Tokenizer, TokenType

MAX_CACHED_WORDS = 1 << 17
_BREAKS = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | frozenset(
    map(chr, range(0x2000, 0x200B))
)
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class _Characters(dict[int, str]):
    """What each character becomes before text is cut at spaces; filled as characters come."""

    def __init__(self, lowercase: bool, strip_accents: bool) -> None:
        super().__init__()
        self._lowercase = lowercase
        self._strip_accents = strip_accents

    def __missing__(self, code: int) -> str:
        self[code] = found = self._of(chr(code))
        return found

    def _of(self, char: str) -> str:
        if self._strip_accents:
            char = unicodedata.normalize("NFD", char)[0]
        category, code = unicodedata.category(char), ord(char)
        if char in _BREAKS:
            return " "
        if code in (0, 0xFFFD) or category in ("Cc", "Cf", "Cs", "Co"):
            return ""
        if self._strip_accents and category[0] == "M":
            return ""
        alone = category[0] == "P" or (code < 0x7F and category[0] == "S")
        alone = alone or any(low <= code <= high for low, high in _IDEOGRAPHS)
        if self._lowercase:
            char = char.lower()[0]
        return f" {char} " if alone else char


class WordPieces:
    """Cuts text into token ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Prepare the tables of a record of kind `wordpiece`."""
        lowercase = tokenizer.lowercase is not False
        accents = tokenizer.strip_accents
        self._characters = _Characters(lowercase, lowercase if accents is None else accents)
        types = tokenizer.token_types or (int(TokenType.NORMAL),) * len(tokenizer)
        texts = [phantom(t, kind) for t, kind in zip(tokenizer.tokens, types, strict=True)]
        self._ids = {text: index for index, text in enumerate(texts)}
        self._longest = max(map(len, texts), default=0)
        self._unknown = tokenizer.special_ids.get("unk")
        self._cache: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens."""
        out: list[int] = []
        for word in text.translate(self._characters).split(" "):
            if not word:
                continue
            ids = self._cache.get(word)
            if ids is None:
                ids = self._pieces(SPACE + word)
                if len(self._cache) < MAX_CACHED_WORDS:
                    self._cache[word] = ids
            out += ids
        return out

    def _pieces(self, word: str) -> tuple[int, ...]:
        out: list[int] = []
        at = 0
        while at < len(word):
            for end in range(min(len(word), at + self._longest), at, -1):
                index = self._ids.get(word[at:end])
                if index is not None:
                    out.append(index)
                    at = end
                    break
            else:
                return () if self._unknown is None else (self._unknown,)
        return tuple(out)
