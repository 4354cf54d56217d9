"""Read a tokenizer from Hugging Face files.

In order of preference: tokenizer.json; a SentencePiece model; vocab.json with merges.txt;
vocab.txt. Around them tokenizer_config.json, special_tokens_map.json, added_tokens.json, chat
templates and the ids in generation_config.json and config.json.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from halfbyte.converters.tokenizers.charsmap import check_charsmap
from halfbyte.converters.tokenizers.pretokenizers import candidates, chain_of
from halfbyte.converters.tokenizers.slow_files import SENTENCEPIECE_FILES, read_slow
from halfbyte.converters.tokenizers.special_tokens import (
    all_stop_ids,
    chat_templates,
    looks_special,
    read_specials,
)
from halfbyte.converters.tokenizers.strict_json import member, parse_object
from halfbyte.converters.tokenizers.tokenizer_json import SPACE, scores_from_merges
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.tokenizer import Tokenizer, TokenType, byte_value, check_tokenizer

SOURCE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    *SENTENCEPIECE_FILES,
)
MAX_HOLES = 1 << 16


def from_hugging_face(files: Mapping[str, bytes]) -> Tokenizer | None:
    """Return the tokenizer in a set of files by name, None where there is none.

    Raises:
        FormatError: a file is broken or contradicts itself.
        UnsupportedError: a kind of tokenizer that is not known.
    """
    if "tokenizer.json" in files:
        document = parse_object(files["tokenizer.json"], "tokenizer.json")
        tokenizer = read_tokenizer_json(document, files)
    else:
        document = {}
        slow = read_slow(files)
        if slow is None:
            return None
        tokenizer = slow
    ids = {token: index for index, token in enumerate(tokenizer.tokens)}
    specials = read_specials(files, document, ids)
    templates = chat_templates(files)
    tokenizer = replace(
        tokenizer,
        special_ids={**tokenizer.special_ids, **specials.ids},
        stop_ids=all_stop_ids(tokenizer, specials.stop_ids or tokenizer.stop_ids),
        add_bos=specials.add.get("bos", tokenizer.add_bos),
        add_eos=specials.add.get("eos", tokenizer.add_eos),
        add_sep=specials.add.get("sep", tokenizer.add_sep),
        chat_template=templates.pop("default", None),
        warnings=tuple(specials.warnings),
        chat_templates=templates,
        source={n: files[n] for n in files if n in SOURCE_FILES or n.startswith("additional_chat")},
    )
    check_tokenizer(tokenizer, "tokenizer.json" if document else "tokenizer files")
    return tokenizer


def read_tokenizer_json(document: dict[str, Any], files: Mapping[str, bytes]) -> Tokenizer:
    """Return the record of a tokenizer.json alone: vocabulary, merges, splitting rules."""
    where = "tokenizer.json"
    model = member(document, "model", dict, where)
    kind = _kind(document, model)
    tokens, scores = _vocabulary(model, where)
    added = _added(document, tokens, where)
    texts, types = _fill(tokens, added, where)
    flags = _normalizer_flags(document.get("normalizer"))
    tokenizer = Tokenizer(
        kind=kind,
        tokens=tuple(texts),
        token_types=tuple(types),
        merges=_merges(model, where) if kind in ("bpe", "spm") else (),
        ignore_merges=bool(model.get("ignore_merges", False)),
        **flags,
    )
    if kind == "unigram":
        padded = scores + [0.0] * (len(texts) - len(scores))
        tokenizer = _unigram_details(replace(tokenizer, scores=tuple(padded)), document, model)
    elif kind == "spm":
        tokenizer = _spm_details(tokenizer, document, model, files)
    elif kind == "wordpiece":
        unknown = model.get("unk_token", "[UNK]")
        ids = {"unk": tokens[unknown]} if unknown in tokens else {}
        tokenizer = replace(tokenizer, special_ids=ids, pre=_bert_name(tokenizer))
    else:
        tokenizer = replace(tokenizer, pre=_structural_name(tokenizer, document))
    return tokenizer


def _kind(document: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    name = model.get("type")
    if name is None:
        name = "BPE" if "merges" in model else "Unigram" if "unk_id" in model else "WordPiece"
    if name in ("Unigram", "WordPiece"):
        return str(name).lower()
    if name not in ("BPE", "WordLevel"):
        raise UnsupportedError(f"tokenizer model {name!r}", "tokenizer.json", _MODELS)
    sections = (document.get("pre_tokenizer"), document.get("decoder"))
    byte_level = any(_types(section) & {"ByteLevel"} for section in sections)
    spaces = "Metaspace" in _types(sections[0]) or SPACE in str(document.get("normalizer"))
    return "spm" if spaces and not byte_level and name == "BPE" else "bpe"


_MODELS = ["BPE", "Unigram", "WordPiece", "WordLevel"]


def parts_of(section: Any) -> list[dict[str, Any]]:
    """Return the flat list of parts in a normalizer, pre-tokenizer, decoder or processor."""
    if not isinstance(section, dict):
        return []
    for name in ("normalizers", "pretokenizers", "decoders", "processors"):
        inner = section.get(name)
        if isinstance(inner, list):
            return [part for entry in inner for part in parts_of(entry)]
    return [section]


def _types(section: Any) -> set[str]:
    return {str(part.get("type")) for part in parts_of(section)}


def _vocabulary(model: Mapping[str, Any], where: str) -> tuple[dict[str, int], list[float]]:
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        try:
            pairs = [(text, float(score)) for text, score in vocab]
        except (TypeError, ValueError) as error:
            raise FormatError(where, "the vocabulary is not a list of text, score") from error
        ids = {text: index for index, (text, _) in enumerate(pairs)}
        if len(ids) != len(pairs):
            raise FormatError(where, "the vocabulary names one token twice")
        return ids, [score for _, score in pairs]
    if not isinstance(vocab, dict):
        raise FormatError(where, "the model has no vocabulary")
    if not all(type(index) is int and index >= 0 for index in vocab.values()):
        raise FormatError(where, "a token of the vocabulary has no valid id")
    return vocab, []


def _added(
    document: Mapping[str, Any], tokens: Mapping[str, int], where: str
) -> dict[int, tuple[str, bool]]:
    entries = document.get("added_tokens") or []
    found: dict[int, tuple[str, bool]] = {}
    for entry in entries if isinstance(entries, list) else [None]:
        fields = entry if isinstance(entry, dict) else {}
        text, index = fields.get("content"), fields.get("id")
        if not isinstance(text, str) or type(index) is not int or index < 0:
            raise FormatError(where, f"added token {str(entry)[:80]} has no content and id")
        found[tokens.get(text, index)] = (text, bool(fields.get("special")))
    return found


def _fill(
    tokens: Mapping[str, int], added: Mapping[int, tuple[str, bool]], where: str
) -> tuple[list[str], list[int]]:
    """Return texts and types by id; holes become `[PADi]` of type UNUSED."""
    size = 1 + max(max(tokens.values(), default=-1), max(added, default=-1))
    if size > len(tokens) + len(added) + MAX_HOLES:
        raise FormatError(where, f"token id {size - 1} in a vocabulary of {len(tokens)} tokens")
    texts: list[str | None] = [None] * size
    types = [int(TokenType.NORMAL)] * size
    for text, index in tokens.items():
        if texts[index] is not None:
            raise FormatError(where, f"id {index} is both {texts[index]!r} and {text!r}")
        texts[index] = text
    for index, (text, special) in added.items():
        if texts[index] not in (None, text):
            raise FormatError(where, f"id {index} is both {texts[index]!r} and {text!r}")
        texts[index] = text
        control = special or looks_special(text)
        types[index] = int(TokenType.CONTROL if control else TokenType.USER_DEFINED)
    for index, maybe in enumerate(texts):
        if maybe is None:
            texts[index] = f"[PAD{index}]"
            types[index] = int(TokenType.UNUSED)
    return [text or "" for text in texts], types


def _merges(model: Mapping[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    merges = model.get("merges", [])
    if not isinstance(merges, list):
        raise FormatError(where, "merges is not a list")
    vocab = model["vocab"]
    pairs = []
    for number, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or "" in pair:
            raise FormatError(where, f"merge {number} is {str(merge)[:40]!r}, not two tokens")
        left, right = pair
        if not isinstance(left, str) or not isinstance(right, str):
            raise FormatError(where, f"merge {number} is not text")
        if left not in vocab or right not in vocab:
            missing = right if left in vocab else left
            raise FormatError(where, f"merge {number} names {missing!r}, which is no token")
        pairs.append((left, right))
    return tuple(pairs)


def _normalizer_flags(section: Any) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    for part in parts_of(section):
        kind = part.get("type")
        if kind == "Lowercase":
            flags["lowercase"] = True
        elif kind == "StripAccents":
            flags["strip_accents"] = True
        elif kind == "BertNormalizer":
            flags |= {n: part[n] for n in ("lowercase", "strip_accents") if n in part}
    return flags


def _adds_prefix(document: Mapping[str, Any]) -> bool:
    for part in parts_of(document.get("normalizer")):
        if part.get("type") == "Prepend" and part.get("prepend") == SPACE:
            return True
    for part in parts_of(document.get("pre_tokenizer")):
        if part.get("type") == "Metaspace":
            scheme = part.get("prepend_scheme")
            return scheme != "never" if scheme else part.get("add_prefix_space") is not False
    return False


def _with_type(types: tuple[int, ...], index: int, kind: TokenType) -> tuple[int, ...]:
    return (*types[:index], int(kind), *types[index + 1 :])


def _mark_bytes(tokenizer: Tokenizer) -> tuple[int, ...]:
    normal = (TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED)
    return tuple(
        int(TokenType.BYTE) if kind in normal and byte_value(token) is not None else kind
        for token, kind in zip(tokenizer.tokens, tokenizer.token_types, strict=True)
    )


def _spm_details(
    tokenizer: Tokenizer,
    document: Mapping[str, Any],
    model: Mapping[str, Any],
    files: Mapping[str, bytes],
) -> Tokenizer:
    types = _mark_bytes(tokenizer) if model.get("byte_fallback") else tokenizer.token_types
    unknown = model.get("unk_token")
    ids = {}
    if isinstance(unknown, str) and unknown in model["vocab"]:
        ids["unk"] = model["vocab"][unknown]
        types = _with_type(types, ids["unk"], TokenType.UNKNOWN)
    scores = scores_from_merges(tokenizer.tokens, tokenizer.merges)
    slow = None
    if "tokenizer.model" in files:
        try:
            slow = read_slow({"tokenizer.model": files["tokenizer.model"]})
        except (FormatError, UnsupportedError):
            slow = None
    if slow is not None and slow.tokens[:100] == tokenizer.tokens[:100]:
        scores[: len(slow.scores)] = slow.scores[: len(scores)]
    return replace(
        tokenizer,
        scores=tuple(scores),
        token_types=types,
        special_ids=ids,
        add_space_prefix=_adds_prefix(document),
        pre="default",
    )


def _unigram_details(
    tokenizer: Tokenizer, document: Mapping[str, Any], model: Mapping[str, Any]
) -> Tokenizer:
    types = _mark_bytes(tokenizer) if model.get("byte_fallback") else tokenizer.token_types
    unknown = model.get("unk_id")
    ids = {}
    if unknown is not None:
        if type(unknown) is not int or not 0 <= unknown < len(tokenizer):
            raise FormatError("tokenizer.json", f"unk_id {unknown!r} is no token")
        ids["unk"] = unknown
        types = _with_type(types, unknown, TokenType.UNKNOWN)
    charsmap = b""
    collapses = False
    for part in parts_of(document.get("normalizer")):
        if part.get("type") == "Precompiled":
            charsmap = _charsmap(part.get("precompiled_charsmap"))
        if part.get("type") == "Replace":
            pattern = part.get("pattern")
            collapses |= isinstance(pattern, dict) and pattern.get("Regex") in (" {2,}", " +")
    collapses |= bool(_types(document.get("pre_tokenizer")) & {"WhitespaceSplit", "Whitespace"})
    return replace(
        tokenizer,
        token_types=types,
        special_ids=ids,
        precompiled_charsmap=charsmap,
        add_space_prefix=_adds_prefix(document),
        remove_extra_whitespaces=collapses,
        pre="default",
    )


def _charsmap(value: Any) -> bytes:
    where = "tokenizer.json"
    try:
        charsmap = base64.b64decode(value or "", validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise FormatError(where, "precompiled_charsmap is not base64 text") from error
    check_charsmap(charsmap, f"{where}: precompiled_charsmap")
    return charsmap


def _bert_name(tokenizer: Tokenizer) -> str:
    return "bert-bge" if tokenizer.lowercase else "default"


def _structural_name(tokenizer: Tokenizer, document: Mapping[str, Any]) -> str:
    nfc = _types(document.get("normalizer")) == {"NFC"}
    tokens = set(tokenizer.tokens)
    chain = chain_of(document.get("pre_tokenizer"))
    names = candidates(chain, tokens, nfc, tokenizer.ignore_merges)
    return names[0] if names else ""
