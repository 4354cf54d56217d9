r"""RWKV's tokenizer as llama.cpp does it: always the longest token that matches the bytes.

Tokens stand as Python would write their bytes: `\n`, `\t`, `\r`, `\xNN`, a backslash before
anything else means that character.

Source: llama.cpp src/llama-vocab.cpp, llm_tokenizer_rwkv_session.
"""

from __future__ import annotations

import re

from halfbyte.ir.tokenizer import Tokenizer

_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|(.))", re.DOTALL)
_NAMED = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}


def token_bytes(token: str) -> bytes:
    """Return the bytes that a token's text stands for."""

    def plain(match: re.Match[bytes]) -> bytes:
        if match[1]:
            return bytes([int(match[1], 16)])
        return _NAMED.get(match[2], match[2])

    return _ESCAPE.sub(plain, token.encode("utf-8"))


class LongestMatch:
    """Cuts text into token ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Prepare the tables of a record of kind `rwkv`."""
        self._ids = {token_bytes(token): index for index, token in enumerate(tokenizer.tokens)}
        lengths: dict[bytes, set[int]] = {}
        for data in self._ids:
            lengths.setdefault(data[:2], set()).add(len(data))
        self._lengths = {start: sorted(found, reverse=True) for start, found in lengths.items()}
        self._unknown = tokenizer.special_ids.get("unk")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens."""
        data = text.encode("utf-8")
        out: list[int] = []
        at = 0
        while at < len(data):
            index, at = self._next(data, at)
            if index is not None:
                out.append(index)
        return out

    def _next(self, data: bytes, at: int) -> tuple[int | None, int]:
        for length in self._lengths.get(data[at : at + 2], ()):
            index = self._ids.get(data[at : at + length])
            if index is not None:
                return index, min(at + length, len(data))
        index = self._ids.get(data[at : at + 1])
        return (self._unknown if index is None else index), at + 1
