"""PLaMo 2's tokenizer as llama.cpp does it: the cut with the highest sum of integer scores.

Scores count in steps of 1e-4; a character outside every token costs 1000 and becomes its bytes.
At equal sums the longer first token wins.

Source: llama.cpp src/llama-vocab.cpp, llm_tokenizer_plamo2.
"""

from __future__ import annotations

import math

from halfbyte.ir.tokenizer import Tokenizer, TokenType, byte_value

SCALE = 1e4
INVALID = -20_000_000
UNKNOWN_COST = 10_000_000
NEVER = 1 << 60


class ScoredCutter:
    """Cuts text into token ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Prepare the tables of a record of kind `plamo2`."""
        scores = tokenizer.scores or (0.0,) * len(tokenizer)
        self._tokens: dict[str, tuple[int, int]] = {}
        self._bytes: dict[int, int] = {}
        self._longest: dict[str, int] = {}
        for index, (token, score) in enumerate(zip(tokenizer.tokens, scores, strict=True)):
            value = byte_value(token)
            if tokenizer.token_type(index) == TokenType.BYTE and value is not None:
                self._bytes[value] = index
                continue
            rounded = _rounded(score)
            if rounded > INVALID:
                self._tokens[token] = (rounded, index)
                self._longest[token[0]] = max(self._longest.get(token[0], 0), len(token))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens."""
        text = text.removeprefix("\ufeff")
        costs = [NEVER] * len(text) + [0]
        steps = [(1, -1)] * len(text)
        for start in range(len(text) - 1, -1, -1):
            for length in range(min(self._longest.get(text[start], 0), len(text) - start), 0, -1):
                entry = self._tokens.get(text[start : start + length])
                if entry is None:
                    continue
                cost = costs[start + length] - entry[0]
                if cost < costs[start]:
                    costs[start] = cost
                    steps[start] = (length, entry[1])
            cost = costs[start + 1] + UNKNOWN_COST
            if cost < costs[start]:
                costs[start] = cost
                steps[start] = (1, -1)
        out: list[int] = []
        at = 0
        while at < len(text):
            length, index = steps[at]
            out += [index] if index >= 0 else self._spelled(text[at])
            at += length
        return out

    def _spelled(self, char: str) -> list[int]:
        return [self._bytes[byte] for byte in char.encode("utf-8") if byte in self._bytes]


def _rounded(score: float) -> int:
    scaled = score * SCALE
    if not math.isfinite(scaled):
        return INVALID
    return int(math.copysign(math.floor(abs(scaled) + 0.5), scaled))
