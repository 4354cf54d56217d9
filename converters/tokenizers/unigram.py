"""SentencePiece unigram as llama.cpp does it: the cut with the highest sum of scores.

Source: llama.cpp src/llama-vocab.cpp, llm_tokenizer_ugm_session.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from halfbyte.converters.tokenizers.charsmap import Charsmap
from halfbyte.converters.tokenizers.tokenizer_json import SPACE
from halfbyte.ir.tokenizer import Tokenizer, TokenType

UNKNOWN_PENALTY = 10.0
NEARLY_EQUAL = 1e-6
MAX_CACHED_WORDS = 1 << 17
_Cut = tuple[tuple[float, int], ...]
_PLAIN = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)


class UnigramCutter:
    """Cuts text into token ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Prepare the tables of a record of kind `unigram`."""
        scores = tokenizer.scores or (0.0,) * len(tokenizer)
        kinds = [tokenizer.token_type(index) for index in range(len(tokenizer))]
        self._tokens = {
            token: (0.0 if kind == TokenType.USER_DEFINED else score, index)
            for index, (token, kind, score) in enumerate(
                zip(tokenizer.tokens, kinds, scores, strict=True)
            )
            if kind in _PLAIN
        }
        normal = [s for s, kind in zip(scores, kinds, strict=True) if kind == TokenType.NORMAL]
        lowest = np.float32(min(normal, default=0.0))
        self._unknown_score = float(lowest - np.float32(UNKNOWN_PENALTY))
        self._unknown = tokenizer.special_ids.get("unk", -1)
        self._longest = _longest_by_start(self._tokens)
        self._prefix = tokenizer.add_space_prefix is True
        self._merge = bool(tokenizer.remove_extra_whitespaces)
        self._normalizer = CharacterMap(tokenizer)
        inner = any(SPACE in token[1:] for token in self._tokens)
        self._word = re.compile("(?s).+" if inner else f"{SPACE}[^{SPACE}]*|[^{SPACE}]+")
        self._cache: dict[str, tuple[_Cut, bool]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens."""
        words = self._word.findall(self._spaced(self._normalizer.apply(text)))
        cuts = [self._cached(word) for word in words]
        if any(tie for _, tie in cuts):
            cuts = self._with_sums(words, cuts)
        ids = [index for cut, _ in cuts for _, index in cut]
        unknown = self._unknown
        kept = [b for a, b in zip([-1, *ids], ids, strict=False) if b != unknown or a != unknown]
        return [index for index in kept if index >= 0]

    def _spaced(self, text: str) -> str:
        if self._merge:
            return "".join(SPACE + word for word in text.split(" ") if word)
        start = len(text) - len(text.lstrip(" "))
        if self._prefix and start < len(text):
            text = text[:start] + " " + text[start:]
        return text.replace(" ", SPACE)

    def _cached(self, word: str) -> tuple[_Cut, bool]:
        found = self._cache.get(word)
        if found is None:
            found = self._best(word, 0.0)
            if len(self._cache) < MAX_CACHED_WORDS:
                self._cache[word] = found
        return found

    def _with_sums(self, words: list[str], cuts: list[tuple[_Cut, bool]]) -> list[Any]:
        """Return the cuts with ties broken by rounding, as one sum over the whole text has it."""
        total = 0.0
        out = []
        for word, (cut, tie) in zip(words, cuts, strict=True):
            found = self._best(word, total) if tie and total else (cut, tie)
            for score, _ in found[0]:
                total += score
            out.append(found)
        return out

    def _best(self, word: str, base: float) -> tuple[_Cut, bool]:
        """Return score and id of each token of the best cut, and whether another is as good.

        base: sum of the scores of all that stands before the word.
        """
        size = len(word)
        sums = [base] + [-math.inf] * size
        steps: list[tuple[int, float, int]] = [(0, 0.0, -1)] * (size + 1)
        tie = False
        tokens, unknown = self._tokens, (self._unknown_score, self._unknown)
        for start, char in enumerate(word):
            found = [] if char in tokens else [(start + 1, unknown)]
            last = min(size, start + self._longest.get(char, 0))
            ends = ((end, tokens.get(word[start:end])) for end in range(start + 1, last + 1))
            found += [(end, entry) for end, entry in ends if entry is not None]
            found.sort(key=lambda step: (step[1] is unknown, step[0]))
            for end, (score, index) in found:
                total = sums[start] + score
                tie = tie or abs(total - sums[end]) < NEARLY_EQUAL
                if total > sums[end]:
                    sums[end] = total
                    steps[end] = (start, score, index)
        out = []
        while size:
            size, score, index = steps[size]
            out.append((score, index))
        return tuple(reversed(out)), tie


def _longest_by_start(tokens: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for token in tokens:
        found[token[0]] = max(found.get(token[0], 0), len(token))
    return found


class CharacterMap:
    """Replaces characters by a `precompiled_charsmap`, the longest match first.

    A start of a user-defined token is left as it is, however short: llama.cpp does so.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Read the map of a record."""
        self._map = Charsmap(tokenizer.precompiled_charsmap)
        kept = [
            token.encode("utf-8")
            for token, kind in zip(tokenizer.tokens, tokenizer.token_types, strict=False)
            if kind == TokenType.USER_DEFINED
        ]
        self._kept = {token[:end] for token in kept for end in range(1, len(token) + 1)}
        self._by_words = not (self._map.spans_spaces or any(b" " in start for start in self._kept))
        self._cache: dict[str, str] = {}

    def apply(self, text: str) -> str:
        """Return the text with its characters replaced."""
        words = text.split(" ") if self._by_words else [text]
        return " ".join([self._cached(word) for word in words])

    def _cached(self, word: str) -> str:
        found = self._cache.get(word)
        if found is None:
            found = self._replaced(word.encode("utf-8"))
            if len(self._cache) < MAX_CACHED_WORDS:
                self._cache[word] = found
        return found

    def _replaced(self, data: bytes) -> str:
        out = []
        at = 0
        while at < len(data):
            end = at
            while end < len(data) and data[at : end + 1] in self._kept:
                end += 1
            piece = data[at:end]
            if end == at:
                match = self._map.longest(data, at)
                end = at + (match[0] if match else _character_bytes(data[at]))
                piece = match[1] if match else data[at:end]
            out.append(piece)
            at = end
        return b"".join(out).decode("utf-8", "replace")


def _character_bytes(first: int) -> int:
    return 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
