"""One tokenizer record for all formats."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as data.

    kind: `bpe` (byte-level), `spm` (SentencePiece BPE with scores), `unigram` or `wordpiece`.
    """

    kind: str
    tokens: tuple[str, ...]
    special_ids: dict[str, int] = field(default_factory=dict)
    chat_template: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
