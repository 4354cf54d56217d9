"""Cut special tokens out of a text as llama.cpp does.

Every special token is looked for in the whole text, the longest text first, before the next one is
tried; what is left between is text. With overlapping tokens this is not the leftmost match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from halfbyte.converters.tokenizers.ggml_types import effective_types
from halfbyte.ir.tokenizer import Tokenizer, TokenType

_SPACE = " \t\n\v\f\r"
_HIDDEN = (TokenType.CONTROL, TokenType.UNKNOWN)


class Partition:
    """Cuts texts of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Prepare for the tokens that llama.cpp takes for special."""
        types = effective_types(tokenizer)
        shown = [i for i, kind in enumerate(types) if kind == TokenType.USER_DEFINED]
        hidden = [i for i, kind in enumerate(types) if kind in _HIDDEN]
        self._left = frozenset(tokenizer.lstrip_ids)
        self._right = frozenset(tokenizer.rstrip_ids)
        self._all = _Finder(tokenizer, sorted(shown + hidden))
        self._shown = _Finder(tokenizer, shown)

    def cut(self, text: str, parse_special: bool) -> list[str | int]:
        """Return pieces of text and ids of special tokens in order.

        parse_special: control and unknown tokens spelled out in the text are found too.
        """
        finder = self._all if parse_special else self._shown
        found: list[tuple[int, int, int]] = []
        for start, end in finder.clusters(text):
            found += [(start + a, start + b, i) for a, b, i in finder.resolve(text[start:end])]
        out: list[str | int] = []
        at = 0
        for start, end, index in found:
            out += self._between(text[at:start], index)
            out.append(index)
            at = end
            while index in self._right and text[at : at + 1] and text[at] in _SPACE:
                at += 1
        return out + ([text[at:]] if text[at:] else [])

    def _between(self, text: str, index: int) -> list[str | int]:
        text = text.rstrip(_SPACE) if index in self._left else text
        return [text] if text else []


class _Finder:
    """Finds a set of tokens in texts."""

    def __init__(self, tokenizer: Tokenizer, wanted: Iterable[int]) -> None:
        self._ids = {tokenizer.tokens[index]: index for index in wanted}
        by_length = sorted(self._ids, key=lambda token: -len(token.encode("utf-8")))
        self._rank = {token: rank for rank, token in enumerate(by_length)}
        pattern = trie_pattern(self._ids) if self._ids else "(?!)"
        self._pattern = re.compile(pattern)
        self._ahead = re.compile(f"(?=({pattern}))")

    def clusters(self, text: str) -> list[tuple[int, int]]:
        """Return the spans in which tokens stand, overlapping ones as one span."""
        spans: list[tuple[int, int]] = []
        at = 0
        while (match := self._pattern.search(text, at)) is not None:
            start, end = match.span()
            inside = start + 1
            while inside < end:
                other = self._ahead.search(text, inside)
                if other is None or other.start() >= end:
                    break
                end = max(end, other.end(1))
                inside = other.start() + 1
            spans.append((start, end))
            at = end
        return spans

    def resolve(self, text: str) -> list[tuple[int, int, int]]:
        """Return start, end and id of each token in a span, in order."""
        if text in self._ids:
            return [(0, len(text), self._ids[text])]
        present = set(self._tokens_in(text))
        taken: list[tuple[int, int, int]] = []
        gaps = [(0, len(text))]
        for token in sorted(present, key=self._rank.__getitem__):
            left: list[tuple[int, int]] = []
            for start, end in gaps:
                while (match := text.find(token, start, end)) >= 0:
                    taken.append((match, match + len(token), self._ids[token]))
                    left.append((start, match))
                    start = match + len(token)
                left.append((start, end))
            gaps = [(start, end) for start, end in left if start < end]
        return sorted(taken)

    def _tokens_in(self, text: str) -> Iterable[str]:
        longest = len(max(self._ids, key=len))
        for start in range(len(text)):
            for end in range(start + 1, min(len(text), start + longest) + 1):
                if text[start:end] in self._ids:
                    yield text[start:end]


def trie_pattern(texts: Iterable[str]) -> str:
    """Return a regex that matches the longest of some texts, without trying each in turn."""
    root: dict[str, Any] = {}
    for text in texts:
        node = root
        for char in text:
            node = node.setdefault(char, {})
        node[""] = {}
    return _branch(root)


def _branch(node: Mapping[str, Any]) -> str:
    parts = [re.escape(char) + _branch(child) for char, child in node.items() if char]
    if not parts:
        return ""
    body = parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"
    if "" not in node:
        return body
    return f"(?:{body})?"
