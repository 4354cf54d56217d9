"""SentencePiece BPE as llama.cpp does it: merge the adjacent pair with the highest score.

Ties go to the leftmost pair. Text is first cut where no token can reach across, so that each
distinct word is merged only once.
"""

from __future__ import annotations

import heapq
import re

from halfbyte.converters.tokenizers.tokenizer_json import SPACE
from halfbyte.ir.tokenizer import Tokenizer, TokenType, byte_value

MAX_CACHED_WORDS = 1 << 17
_WORD = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")


class GreedyMerger:
    """Cuts text (spaces already U+2581) into token ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Prepare the lookup tables of a record of kind `spm`."""
        self._ids = {token: index for index, token in enumerate(tokenizer.tokens)}
        self._scores = tokenizer.scores or (0.0,) * len(tokenizer)
        self._bytes = self._byte_ids(tokenizer)
        self._unknown = tokenizer.special_ids.get("unk")
        crossing = re.compile(f"[^{SPACE}]{SPACE}")
        self._whole = any(crossing.search(token) for token in tokenizer.tokens)
        self._cache: dict[str, tuple[int, ...]] = {}

    @staticmethod
    def _byte_ids(tokenizer: Tokenizer) -> dict[int, int]:
        found = {}
        for index, token in enumerate(tokenizer.tokens):
            value = byte_value(token)
            if value is not None and tokenizer.token_type(index) == TokenType.BYTE:
                found[value] = index
        return found

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens."""
        words = [text] if self._whole else _WORD.findall(text)
        out: list[int] = []
        for word in words:
            ids = self._cache.get(word)
            if ids is None:
                ids = tuple(self._merge(word))
                if len(self._cache) < MAX_CACHED_WORDS:
                    self._cache[word] = ids
            out += ids
        return out

    def _merge(self, word: str) -> list[int]:
        pieces = list(word)
        following = list(range(1, len(pieces) + 1))
        before = list(range(-1, len(pieces) - 1))
        queue: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right >= len(pieces):
                return
            merged = pieces[left] + pieces[right]
            index = self._ids.get(merged)
            if index is not None:
                heapq.heappush(queue, (-self._scores[index], left, right, merged))

        for index in range(1, len(pieces)):
            offer(index - 1, index)
        while queue:
            _, left, right, merged = heapq.heappop(queue)
            stale = not pieces[left] or not pieces[right]
            if stale or len(pieces[left]) + len(pieces[right]) != len(merged):
                continue
            pieces[left], pieces[right] = merged, ""
            following[left] = following[right]
            if following[right] < len(pieces):
                before[following[right]] = left
            offer(before[left], left)
            offer(left, following[left])
        return [index for piece in pieces if piece for index in self._ids_of(piece)]

    def _ids_of(self, piece: str) -> list[int]:
        index = self._ids.get(piece)
        if index is not None:
            return [index]
        data = piece.encode("utf-8")
        if all(byte in self._bytes for byte in data):
            return [self._bytes[byte] for byte in data]
        return [] if self._unknown is None else [self._unknown]
