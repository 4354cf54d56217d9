"""The `tokenizer.*` keys of a new GGUF file, as llama.cpp's script writes them for a model.

What a tokenizer does is said by `converters.tokenizers`; here stands what the script adds by
architecture or takes from files beside the tokenizer, so that both write the same keys.

Source: conversion/{base,llama,bert}.py of llama.cpp.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from halfbyte.converters.tokenizers.slow_files import ADDED_SCORE, added_tokens
from halfbyte.converters.tokenizers.special_tokens import json_file, looks_special
from halfbyte.ir.model import Model
from halfbyte.ir.tokenizer import Tokenizer, TokenType

PREFIX = "tokenizer.ggml."
SPACE_PREFIX = PREFIX + "add_space_prefix"
CODE_LLAMA = (32016, 32010, "▁<EOT>")
"""Vocabulary of Code Llama, id and text of the token that ends a turn there."""
log = logging.getLogger("halfbyte")


def tokenizer_keys(model: Model, architecture: str) -> dict[str, Any]:
    """Return the ordered keys; what llama.cpp may read in another way is logged."""
    from halfbyte.converters.tokenizers import to_gguf

    found: dict[str, Any] = {}
    if architecture == "bert":
        found[PREFIX + "token_type_count"] = model.config["type_vocab_size"]
    if model.tokenizer is None:
        found[f"{architecture}.vocab_size"] = model.config["vocab_size"]
        found[PREFIX + "model"] = "none"
        return found
    warnings: list[str] = []
    keys = to_gguf(model.tokenizer, model.config["vocab_size"], warnings)
    for warning in warnings:
        log.warning("%s", warning)
    _mark_added(keys, model.tokenizer)
    if model.tokenizer.kind == "wordpiece" and PREFIX + "bos_token_id" in keys:
        keys.pop(PREFIX + "cls_token_id", None)  # llama.cpp takes the first token for it
    if architecture == "llama":
        keys = {**_space_prefix(keys, model.tokenizer), **keys}
        _end_of_turn(keys, model)
    return found | keys


def _space_prefix(keys: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the key that the script copies from the tokenizer's settings for this architecture."""
    said = json_file(tokenizer.source, "tokenizer_config.json").get("add_prefix_space")
    if not isinstance(said, bool):
        return {}
    known = tokenizer.add_space_prefix if tokenizer.kind == "spm" else None
    return {SPACE_PREFIX: keys.get(SPACE_PREFIX, said if known is None else known)}


def _end_of_turn(keys: dict[str, Any], model: Model) -> None:
    size, index, text = CODE_LLAMA
    key = PREFIX + "eot_token_id"
    if model.config["vocab_size"] == size and keys[PREFIX + "tokens"][index] == text:
        keys.setdefault(key, np.uint32(index))


def _mark_added(keys: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Give the added tokens of a SentencePiece vocabulary the type and score of added tokens."""
    if tokenizer.kind != "spm" or not tokenizer.source:
        return
    types, scores = keys[PREFIX + "token_type"], keys[PREFIX + "scores"]
    for index, special in _added(tokenizer.source).items():
        if index < len(types):
            types[index] = TokenType.CONTROL if special else TokenType.USER_DEFINED
            scores[index] = ADDED_SCORE


def _added(files: Mapping[str, bytes]) -> dict[int, bool]:
    """Return whether each added token is special; the SentencePiece model is asked first."""
    if "tokenizer.model" in files or "tokenizer.json" not in files:
        return {index: special for index, (_, special) in added_tokens(files).items()}
    entries = json.loads(files["tokenizer.json"]).get("added_tokens") or []
    return {e["id"]: bool(e.get("special")) or looks_special(e["content"]) for e in entries}
