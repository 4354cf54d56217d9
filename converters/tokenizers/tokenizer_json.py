"""Build a Hugging Face tokenizer.json from a record's plain fields.

This is what GGUF sources get, and what a record is checked against before it is written to GGUF.
"""

from __future__ import annotations

import base64
from typing import Any

from halfbyte.converters.tokenizers.ggml_chains import ggml_chain
from halfbyte.converters.tokenizers.pretokenizers import PRE_TOKENIZERS, pre_tokenizer_json
from halfbyte.errors import UnsupportedError
from halfbyte.ir.tokenizer import Tokenizer, TokenType

SPACE = "\u2581"
MAX_WORD_CHARACTERS = 100


def build_tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a tokenizer.json document for a record, from its plain fields alone.

    Raises:
        UnsupportedError: `pre` is no known pre-tokenizer, or Hugging Face has no such tokenizer.
    """
    if tokenizer.kind not in _BUILDERS:
        raise UnsupportedError(f"tokenizer {tokenizer.kind!r}", "tokenizer.json", list(_BUILDERS))
    parts = _BUILDERS[tokenizer.kind](tokenizer)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokenizer),
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": _post_processor(tokenizer),
        "decoder": parts["decoder"],
        "model": parts["model"],
    }


def _added_tokens(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    special = {TokenType.CONTROL, TokenType.UNKNOWN}
    return [
        {
            "id": index,
            "content": tokenizer.tokens[index],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind in special,
        }
        for index, kind in enumerate(tokenizer.token_types)
        if kind in special or kind == TokenType.USER_DEFINED
    ]


def _post_processor(tokenizer: Tokenizer) -> dict[str, Any] | None:
    ids = tokenizer.special_ids
    first, last = ids.get("bos"), ids.get("eos")
    add_first, add_last = bool(tokenizer.add_bos), bool(tokenizer.add_eos)
    if tokenizer.kind == "wordpiece":
        first, last = ids.get("cls", first), ids.get("sep", last)
        add_first = add_last = True
    before = [first] if add_first and first is not None else []
    after = [last] if add_last and last is not None else []
    if not before and not after:
        return _BYTE_LEVEL if tokenizer.kind == "bpe" else None
    name = tokenizer.tokens.__getitem__

    def special(index: int, type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name(index), "type_id": type_id}}

    def sequence(letter: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": letter, "type_id": type_id}}

    head = [special(i, 0) for i in before]
    single = [*head, sequence("A", 0), *(special(i, 0) for i in after)]
    second = [] if tokenizer.kind == "wordpiece" else [special(i, 1) for i in before]
    pair = [*single, *second, sequence("B", 1), *(special(i, 1) for i in after)]
    used = {i: {"id": name(i), "ids": [i], "tokens": [name(i)]} for i in before + after}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": {entry["id"]: entry for entry in used.values()},
    }


_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    holes = TokenType.UNUSED in tokenizer.token_types
    if not holes:
        return {token: index for index, token in enumerate(tokenizer.tokens)}
    return {t: i for i, t in enumerate(tokenizer.tokens) if not tokenizer.is_hole(i)}


def _bpe_model(tokenizer: Tokenizer, merges: list[tuple[str, str]], **options: Any) -> Any:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": tokenizer.ignore_merges,
        "vocab": _vocabulary(tokenizer),
        "merges": merges,
    }
    return {**model, **options}


def _bpe(tokenizer: Tokenizer) -> dict[str, Any]:
    row = PRE_TOKENIZERS.get(tokenizer.pre or "default")
    if row is None:
        raise UnsupportedError(
            f"pre-tokenizer {tokenizer.pre!r}", "tokenizer.ggml.pre", sorted(PRE_TOKENIZERS)
        )
    if row.raw:
        return _raw_bpe(tokenizer)
    return {
        "normalizer": {"type": "NFC"} if row.nfc else None,
        "pre_tokenizer": pre_tokenizer_json(row.chain),
        "decoder": _BYTE_LEVEL,
        "model": _bpe_model(tokenizer, list(tokenizer.merges)),
    }


def words_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a tokenizer.json that cuts plain text as llama.cpp does: no special tokens, no NFC.

    Raises:
        UnsupportedError: `pre` is no known pre-tokenizer.
    """
    parts = _bpe(tokenizer)
    row = PRE_TOKENIZERS[tokenizer.pre or "default"]
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": parts["normalizer"] if row.raw else None,
        "pre_tokenizer": pre_tokenizer_json(ggml_chain(row)),
        "post_processor": None,
        "decoder": None,
        "model": {**parts["model"], "unk_token": None},
    }


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _raw_bpe(tokenizer: Tokenizer) -> dict[str, Any]:
    unknown = tokenizer.special_token("unk")
    normalizer: dict[str, Any] | None = _replace({"String": " "}, SPACE)
    if tokenizer.pre == "whitespace":
        normalizer = {"type": "Lowercase"} if tokenizer.lowercase else None
    return {
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer_json(PRE_TOKENIZERS[tokenizer.pre].chain),
        "decoder": _text_decoder(strip=False),
        "model": _bpe_model(
            tokenizer,
            list(tokenizer.merges),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def _text_decoder(strip: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        _replace({"String": SPACE}, " "),
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strip:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _spm(tokenizer: Tokenizer) -> dict[str, Any]:
    prefix = tokenizer.add_space_prefix is not False
    steps = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    steps.append(_replace({"String": " "}, SPACE))
    merges = list(tokenizer.merges) or merges_from_scores(tokenizer)
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": _text_decoder(strip=prefix),
        "model": _bpe_model(
            tokenizer,
            merges,
            unk_token=tokenizer.special_token("unk"),
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def merges_from_scores(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return BPE merges that do what greedy merging by highest score does.

    Every way to cut a token into two tokens is a merge, ranked by the token's score. Exact unless
    two different tokens have the same score.
    """
    ids = {token: index for index, token in enumerate(tokenizer.tokens)}
    scores = tokenizer.scores or (0.0,) * len(ids)
    found: list[tuple[float, int, int, str, str]] = []
    for token, index in ids.items():
        if tokenizer.token_type(index) != TokenType.NORMAL or len(token) < 2:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                found.append((-scores[index], index, -cut, left, right))
    found.sort()
    return [(left, right) for _, _, _, left, right in found]


def scores_from_merges(tokens: tuple[str, ...], merges: tuple[tuple[str, str], ...]) -> list[float]:
    """Return scores with which greedy merging by highest score does what the merges do.

    A token scores minus the rank of the first merge that makes it; tokens that no merge makes
    score below all others.
    """
    rank: dict[str, int] = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
    return [-float(rank.get(token, len(rank))) for token in tokens]


def _unigram(tokenizer: Tokenizer) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if tokenizer.precompiled_charsmap:
        charsmap = base64.b64encode(tokenizer.precompiled_charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if tokenizer.remove_extra_whitespaces:
        steps += [_replace({"Regex": r"\A +| +\z"}, ""), _replace({"Regex": " {2,}"}, " ")]
    prefix = tokenizer.add_space_prefix is not False
    inner = any(SPACE in token[1:] for token in tokenizer.tokens)
    metaspace = {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": "always" if prefix else "never",
        "split": bool(tokenizer.remove_extra_whitespaces) and not inner,
    }
    scores = tokenizer.scores or (0.0,) * len(tokenizer)
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": metaspace,
        "decoder": {k: v for k, v in metaspace.items() if k != "split"} | {"split": True},
        "model": {
            "type": "Unigram",
            "unk_id": tokenizer.special_ids.get("unk"),
            "vocab": [list(entry) for entry in zip(tokenizer.tokens, scores, strict=True)],
            "byte_fallback": TokenType.BYTE in tokenizer.token_types,
        },
    }


def phantom(text: str, kind: int) -> str:
    """Return a WordPiece token as GGUF has it: U+2581 before starts of words, no `##`."""
    if kind == TokenType.CONTROL:
        return text
    return text[2:] if text.startswith("##") else SPACE + text


def _wordpiece(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": tokenizer.strip_accents,
            "lowercase": tokenizer.lowercase is not False,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": tokenizer.special_token("unk") or "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": MAX_WORD_CHARACTERS,
            "vocab": _vocabulary(tokenizer),
        },
    }


_BUILDERS = {"bpe": _bpe, "spm": _spm, "unigram": _unigram, "wordpiece": _wordpiece}
