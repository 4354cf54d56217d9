"""Write a record as GGUF keys, carrying the whole tokenizer where the keys cannot say it."""

from __future__ import annotations

from typing import Any

from halfbyte.converters.tokenizers.agreement import choose_pre_tokenizer
from halfbyte.converters.tokenizers.ggml import plain_keys
from halfbyte.errors import HalfbyteError
from halfbyte.ir.tokenizer import Tokenizer

CARRIED = "tokenizer.huggingface.json"


def to_gguf(
    tokenizer: Tokenizer, vocab_size: int | None = None, warnings: list[str] | None = None
) -> dict[str, Any]:
    """Return the ordered `tokenizer.*` keys for a record.

    vocab_size: rows of the model's embedding; the vocabulary is padded to it. What a user should
    hear is appended to `warnings`.

    Raises:
        FormatError: the tokenizer has more tokens than `vocab_size`.
    """
    heard = warnings if warnings is not None else []
    try:
        choice = choose_pre_tokenizer(tokenizer)
    except HalfbyteError as error:
        raise HalfbyteError(f"tokenizer cannot be checked for GGUF: {error}") from error
    keys = plain_keys(choice.tokenizer, vocab_size)
    if choice.exact:
        return keys
    if not choice.plain_text:
        heard.append(
            f"tokenizer: no pre-tokenizer that llama.cpp knows gives the same ids; {CARRIED} "
            f"carries the whole tokenizer, llama.cpp gets the nearest ({choice.tokenizer.pre!r}) "
            "and may split text differently"
        )
    else:
        heard.append(
            "tokenizer: text around special tokens or outside normal form C is split in a way "
            f"GGUF keys cannot say; {CARRIED} carries the whole tokenizer, llama.cpp may differ"
        )
    keys[CARRIED] = tokenizer.source["tokenizer.json"].decode("utf-8")
    return keys
