"""The `tokenizer.*` keys of GGUF: read them into a record, write a record as them.

Keys, their order and types are those of llama.cpp's converter; `seperator_token_id` is spelled so
there. Values written are plain Python or numpy: str, bool, numpy.uint32, list of str, float32 and
int32 arrays, uint8 array (`precompiled_charsmap`).

Source: llama.cpp src/llama-vocab.cpp (defaults), gguf-py/gguf/vocab.py (which keys).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from halfbyte.converters.tokenizers.charsmap import check_charsmap
from halfbyte.converters.tokenizers.ggml_types import end_ids
from halfbyte.converters.tokenizers.metadata_keys import Keys
from halfbyte.converters.tokenizers.pretokenizers import PRE_TOKENIZERS
from halfbyte.converters.tokenizers.special_tokens import MAX_TEMPLATE_BYTES
from halfbyte.converters.tokenizers.tokenizer_json import SPACE, phantom
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.tokenizer import Tokenizer, TokenType, check_tokenizer

PREFIX = "tokenizer.ggml."
KINDS = {
    "llama": "spm",
    "gpt2": "bpe",
    "t5": "unigram",
    "bert": "wordpiece",
    "gemma4": "bpe",
    "whitespace": "bpe",
    "rwkv": "rwkv",
    "plamo2": "plamo2",
}
ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "fim_pre": "fim_pre_token_id",
    "fim_suf": "fim_suf_token_id",
    "fim_mid": "fim_mid_token_id",
    "fim_pad": "fim_pad_token_id",
    "fim_rep": "fim_rep_token_id",
    "fim_sep": "fim_sep_token_id",
}
DEFAULT_IDS = {
    "spm": {"bos": 1, "eos": 2, "unk": 0},
    "bpe": {"bos": 11, "eos": 11},
    "unigram": {"eos": 1, "unk": 2, "pad": 0},
    "wordpiece": {"bos": 101, "sep": 102, "unk": 100, "pad": 0},
    "rwkv": {},
    "plamo2": {"bos": 1, "eos": 2, "unk": 0, "pad": 3},
}
OWN_MODELS = ("gemma4", "whitespace")
NO_ID = (-1, 0xFFFFFFFF)
PADDING_SCORE = -10000.0


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer in GGUF metadata.

    A file that carries `tokenizer.huggingface.json` gives back exactly that tokenizer.

    Raises:
        FormatError: keys are missing, of wrong type or length, or contradict each other.
        UnsupportedError: a tokenizer model or pre-tokenizer that is not known.
    """
    keys = Keys(metadata)
    model = keys.text(PREFIX + "model")
    if model is None:
        raise FormatError("GGUF metadata", f"{PREFIX}model is missing; the file has no tokenizer")
    if model not in KINDS:
        raise UnsupportedError(f"tokenizer model {model!r}", PREFIX + "model", list(KINDS))
    kind = KINDS[model]
    tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(keys.texts(PREFIX + "tokens"))]
    if not tokens:
        raise FormatError("GGUF metadata", f"{PREFIX}tokens is missing or empty")
    types = keys.numbers(PREFIX + "token_type", "iu", len(tokens))
    scores = keys.numbers(PREFIX + "scores", "iuf", len(tokens))
    type_list = [1] * len(tokens) if types is None else types.tolist()
    if kind == "wordpiece":
        tokens = [_from_phantom(text, t) for text, t in zip(tokens, type_list, strict=True)]
    named = model if model in OWN_MODELS else keys.text(PREFIX + "pre")
    pre = named or "default"
    if kind == "bpe" and pre not in PRE_TOKENIZERS:
        nearest = get_close_matches(pre, PRE_TOKENIZERS, 5, 0.0)
        raise UnsupportedError(f"pre-tokenizer {pre!r}", PREFIX + "pre", nearest)
    left, right = _stripping_ids(keys, tokens, type_list, pre)
    base = Tokenizer(
        kind=kind,
        tokens=tuple(tokens),
        token_types=tuple(type_list),
        scores=() if scores is None else tuple(map(float, scores.tolist())),
        merges=_merges(keys, tokens, kind),
        pre=pre,
        ignore_merges=kind == "bpe" and PRE_TOKENIZERS[pre].ignore_merges,
        lstrip_ids=left,
        rstrip_ids=right,
    )
    tokenizer = _with_flags(_with_ids(base, keys), keys)
    if kind == "bpe" and not named:
        silent = f"{PREFIX}pre is missing; text is split in llama.cpp's default way, ids may differ"
        tokenizer = replace(tokenizer, warnings=(*tokenizer.warnings, silent))
    check_tokenizer(tokenizer, "GGUF metadata")
    return _with_carried_json(tokenizer, keys)


def _stripping_ids(
    keys: Keys, tokens: list[str], types: list[int], pre: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens that take spaces before, and after them along.

    No key says so: llama.cpp goes by the names of the model, its architecture and `pre`.
    """
    name = str(keys.get("general.name") or "").lower()
    masked = pre in ("jina-v2-de", "jina-v2-es", "jina-v2-code")
    masked = masked or keys.get("general.architecture") in ("nomic-bert-moe", "jina-bert-v3")
    if masked or "modern-bert" in name:
        mask = "<mask>" if masked else "[MASK]"
        return (tokens.index(mask),) if mask in tokens else (), ()
    if "phi-3" not in name and "phi3" not in name:
        return (), ()
    special = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    kept = ("<unk>", "<s>", "<|endoftext|>")
    pairs = zip(tokens, types, strict=True)
    found = [
        index
        for index, (text, kind) in enumerate(pairs)
        if (kind in special or text == "</s>") and text not in kept
    ]
    return (), tuple(found)


def _from_phantom(text: str, kind: int) -> str:
    if text.startswith(SPACE) and len(text) > 1:
        return text[1:]
    special = kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    return text if special or text.startswith("[PAD") else "##" + text


def _merges(keys: Keys, tokens: list[str], kind: str) -> tuple[tuple[str, str], ...]:
    key = PREFIX + "merges"
    if kind != "bpe":
        return ()
    if keys.get(key) is None:
        raise FormatError("GGUF metadata", f"{key} is missing, a BPE tokenizer needs it")
    merges = keys.texts(key)
    cuts = [merge.find(" ", 1) for merge in merges]
    pairs = [(merge[:cut], merge[cut + 1 :]) for merge, cut in zip(merges, cuts, strict=True)]
    if -1 in cuts:
        number = cuts.index(-1)
        found = merges[number][:40]
        raise keys.fail(key, f"entry {number} is {found!r}, two tokens and a space are needed")
    unknown = {part for pair in pairs for part in pair}.difference(tokens)
    if unknown:
        number = next(n for n, pair in enumerate(pairs) if unknown.intersection(pair))
        missing = next(part for part in pairs[number] if part in unknown)
        raise keys.fail(key, f"entry {number} names {missing[:40]!r}, which is no token")
    return tuple(dict.fromkeys(pairs))


def _with_ids(tokenizer: Tokenizer, keys: Keys) -> Tokenizer:
    count = len(tokenizer)
    ids = {}
    warnings = []
    for name, suffix in ID_KEYS.items():
        index = keys.integer(PREFIX + suffix)
        if index is None or index in NO_ID:
            continue
        if not 0 <= index < count:
            rule = f"is {index}, the vocabulary has {count} tokens"
            if name in ("bos", "eos", "unk"):
                raise keys.fail(PREFIX + suffix, rule)
            warnings.append(f"{PREFIX}{suffix} {rule}; it is ignored")
            continue
        ids[name] = index
    if "tokenizer.huggingface.json" not in keys.metadata:
        _default_ids(ids, tokenizer)
    named = replace(tokenizer, special_ids=ids, warnings=tuple(warnings))
    return replace(named, stop_ids=end_ids(named))


def _default_ids(ids: dict[str, int], tokenizer: Tokenizer) -> None:
    """Fill in what llama.cpp assumes; its assumption for BPE holds for Falcon alone."""
    if tokenizer.kind == "bpe" and tokenizer.pre != "falcon":
        return
    for name, index in DEFAULT_IDS[tokenizer.kind].items():
        if index < len(tokenizer):
            ids.setdefault(name, index)
    if tokenizer.kind == "wordpiece" and "bos" in ids:
        ids.setdefault("cls", ids["bos"])


def _with_flags(tokenizer: Tokenizer, keys: Keys) -> Tokenizer:
    add_bos = keys.flag(PREFIX + "add_bos_token")
    add_eos = keys.flag(PREFIX + "add_eos_token")
    charsmap = keys.numbers(PREFIX + "precompiled_charsmap", "iu")
    blob = b"" if charsmap is None else charsmap.astype(np.uint8).tobytes()
    check_charsmap(blob, PREFIX + "precompiled_charsmap")
    templates = _chat_templates(keys)
    prefix = keys.flag(PREFIX + "add_space_prefix")
    if prefix is None and tokenizer.kind == "spm":
        prefix = True
    return replace(
        tokenizer,
        add_bos=_default_add_bos(tokenizer) if add_bos is None else add_bos,
        add_eos=_default_add_eos(tokenizer) if add_eos is None else add_eos,
        add_sep=keys.flag(PREFIX + "add_sep_token"),
        add_space_prefix=prefix,
        remove_extra_whitespaces=keys.flag(PREFIX + "remove_extra_whitespaces"),
        lowercase=keys.flag(PREFIX + "normalizer.lowercase"),
        strip_accents=keys.flag(PREFIX + "normalizer.strip_accents"),
        precompiled_charsmap=blob,
        chat_template=templates.pop("default", None),
        chat_templates=templates,
    )


def _chat_templates(keys: Keys) -> dict[str, str]:
    found = {}
    start = "tokenizer.chat_template"
    for key in keys.metadata:
        if key == start or key.startswith(start + "."):
            text = keys.text(key) or ""
            if len(text) > MAX_TEMPLATE_BYTES:
                rule = f"is {len(text)} characters long, at most {MAX_TEMPLATE_BYTES} are read"
                raise keys.fail(key, rule)
            found[key.removeprefix(start).removeprefix(".") or "default"] = text
    return found


def _with_carried_json(tokenizer: Tokenizer, keys: Keys) -> Tokenizer:
    key = "tokenizer.huggingface.json"
    text = keys.text(key)
    if text is None:
        return tokenizer
    from halfbyte.converters.tokenizers.hugging_face import read_tokenizer_json
    from halfbyte.converters.tokenizers.strict_json import parse_object

    files = {"tokenizer.json": text.encode("utf-8")}
    carried = read_tokenizer_json(parse_object(text, key), files)
    if len(carried) > len(tokenizer):
        rule = f"has {len(carried)} tokens, {PREFIX}tokens {len(tokenizer)}; they differ"
        raise keys.fail(key, rule)
    if carried.kind not in ("spm", "unigram"):
        carried = replace(carried, scores=tokenizer.scores)
    size = len(carried)
    kept = {n: i for n, i in tokenizer.special_ids.items() if i < size}
    return replace(
        carried,
        special_ids=kept,
        stop_ids=tuple(i for i in tokenizer.stop_ids if i < size),
        add_bos=tokenizer.add_bos,
        add_eos=tokenizer.add_eos,
        add_sep=tokenizer.add_sep,
        chat_template=tokenizer.chat_template,
        chat_templates=tokenizer.chat_templates,
        source=files,
        warnings=tokenizer.warnings,
    )


def plain_keys(tokenizer: Tokenizer, vocab_size: int | None = None) -> dict[str, Any]:
    """Return the keys for a record as llama.cpp's converter would write them.

    vocab_size: rows of the model's embedding; the vocabulary is padded to it.

    Raises:
        FormatError: the tokenizer has more tokens than `vocab_size`.
    """
    count = len(tokenizer)
    if vocab_size is not None:
        tokenizer.check_vocabulary_size(vocab_size)
        count = vocab_size
    tokens, types, scores = _padded(tokenizer, count)
    name = {kind: model for model, kind in reversed(KINDS.items())}[tokenizer.kind]
    row = PRE_TOKENIZERS.get(tokenizer.pre)
    raw = tokenizer.kind == "bpe" and row is not None and row.name in OWN_MODELS
    keys: dict[str, Any] = {
        "model": tokenizer.pre if raw else name,
        "pre": tokenizer.pre or "default",
    }
    if tokenizer.kind == "rwkv":
        del keys["pre"]
    if tokenizer.kind == "spm" and tokenizer.add_space_prefix is False:
        keys = {"add_space_prefix": False, **keys}
    keys["tokens"] = tokens
    if tokenizer.kind in ("spm", "unigram", "plamo2"):
        keys["scores"] = np.asarray(scores, np.float32)
    keys["token_type"] = np.asarray(types, np.int32)
    if tokenizer.kind == "unigram":
        keys["add_space_prefix"] = tokenizer.add_space_prefix is not False
        keys["remove_extra_whitespaces"] = bool(tokenizer.remove_extra_whitespaces)
        if tokenizer.precompiled_charsmap:
            keys["precompiled_charsmap"] = np.frombuffer(tokenizer.precompiled_charsmap, np.uint8)
    if tokenizer.kind == "bpe":
        keys["merges"] = [_merge_text(pair) for pair in tokenizer.merges]
    keys |= _special_keys(tokenizer)
    found = {PREFIX + key: value for key, value in keys.items()}
    return found | _template_keys(tokenizer) | _normalizer_keys(tokenizer)


def _padded(tokenizer: Tokenizer, count: int) -> tuple[list[str], list[int], list[float]]:
    tokens = list(tokenizer.tokens[:count])
    types = list(tokenizer.token_types[:count]) or [int(TokenType.NORMAL)] * len(tokens)
    scores = list(tokenizer.scores[:count]) or [0.0] * len(tokens)
    for index, kind in enumerate(types):
        if kind == TokenType.USER_DEFINED:
            tokens[index] = tokens[index].replace(SPACE, " ")
    extra = range(len(tokens), count)
    tokens += [f"[PAD{index}]" for index in extra]
    types += [int(TokenType.UNUSED)] * len(extra)
    scores += [PADDING_SCORE] * len(extra)
    if tokenizer.kind == "wordpiece":
        tokens = [phantom(text, kind) for text, kind in zip(tokens, types, strict=True)]
    return tokens, types, scores


def _merge_text(pair: tuple[str, str]) -> str:
    left, right = (part.replace(" ", chr(ord(" ") + 256)) for part in pair)
    return f"{left} {right}"


def _special_keys(tokenizer: Tokenizer) -> dict[str, Any]:
    ids = tokenizer.special_ids
    keys: dict[str, Any] = {ID_KEYS[n]: np.uint32(ids[n]) for n in ID_KEYS if n in ids}
    flags = {
        "bos": _said(tokenizer.add_bos, _default_add_bos(tokenizer)),
        "eos": _said(tokenizer.add_eos, _default_add_eos(tokenizer)),
        "sep": tokenizer.add_sep,
    }
    keys |= {f"add_{name}_token": flag for name, flag in flags.items() if flag is not None}
    return keys


def _said(flag: bool | None, default: bool) -> bool | None:
    """Return the flag to write: a source that is silent adds nothing, readers may by default."""
    return False if flag is None and default else flag


def _default_add_bos(tokenizer: Tokenizer) -> bool:
    row = PRE_TOKENIZERS.get(tokenizer.pre)
    if tokenizer.kind == "bpe":
        return row is not None and row.add_bos
    return tokenizer.kind in ("spm", "wordpiece")


def _default_add_eos(tokenizer: Tokenizer) -> bool:
    return tokenizer.kind in ("unigram", "wordpiece")


def _template_keys(tokenizer: Tokenizer) -> dict[str, Any]:
    start = "tokenizer.chat_template"
    keys: dict[str, Any] = {}
    for name, text in tokenizer.chat_templates.items():
        keys[f"{start}.{re.sub('[^A-Za-z0-9]', '_', name)}"] = text
    if keys:
        keys["tokenizer.chat_templates"] = [key.removeprefix(start + ".") for key in keys]
    if tokenizer.chat_template is not None:
        keys[start] = tokenizer.chat_template
    return keys


def _normalizer_keys(tokenizer: Tokenizer) -> dict[str, Any]:
    flags = {"lowercase": tokenizer.lowercase, "strip_accents": tokenizer.strip_accents}
    return {f"{PREFIX}normalizer.{n}": flag for n, flag in flags.items() if flag is not None}
