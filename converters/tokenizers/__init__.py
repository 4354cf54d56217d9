"""Tokenizers: Hugging Face files, GGUF keys, encoding, decoding and chat templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halfbyte.ir.tokenizer import Tokenizer


def from_hugging_face(files: Mapping[str, bytes]) -> Tokenizer | None:
    """Return the tokenizer in Hugging Face files by name, None where there is none."""
    from halfbyte.converters.tokenizers import hugging_face

    return hugging_face.from_hugging_face(files)


def to_hugging_face(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Return Hugging Face files by name for a tokenizer."""
    from halfbyte.converters.tokenizers import hugging_face_files

    return hugging_face_files.to_hugging_face(tokenizer)


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer in GGUF metadata (plain values, or values with a `.value`)."""
    from halfbyte.converters.tokenizers import ggml

    return ggml.from_gguf(metadata)


def to_gguf(
    tokenizer: Tokenizer, vocab_size: int | None = None, warnings: list[str] | None = None
) -> dict[str, Any]:
    """Return the ordered `tokenizer.*` keys; what a user should hear goes to `warnings`."""
    from halfbyte.converters.tokenizers import gguf_keys

    return gguf_keys.to_gguf(tokenizer, vocab_size, warnings)


def apply_chat_template(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """Return the prompt that a tokenizer's chat template makes of messages."""
    from halfbyte.converters.tokenizers import chat_template

    return chat_template.apply_chat_template(
        tokenizer, messages, add_generation_prompt, tools, **variables
    )
