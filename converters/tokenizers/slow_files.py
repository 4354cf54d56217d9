"""Read older tokenizer files: SentencePiece models, vocab.json + merges.txt, vocab.txt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.converters.tokenizers.charsmap import check_charsmap
from halfbyte.converters.tokenizers.sentencepiece import SentencePieceModel, read_sentencepiece
from halfbyte.converters.tokenizers.special_tokens import decode_text, json_file, looks_special
from halfbyte.errors import FormatError
from halfbyte.ir.tokenizer import Tokenizer, TokenType

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
ADDED_SCORE = -1000.0
PADDING_SCORE = -10000.0
MAX_ADDED_ID = 1 << 22


def read_slow(files: Mapping[str, bytes]) -> Tokenizer | None:
    """Return the tokenizer in older files, None where there is none.

    Raises:
        FormatError: a file is broken.
    """
    for name in SENTENCEPIECE_FILES:
        if name in files:
            return _from_sentencepiece(read_sentencepiece(files[name], name), name, files)
    if "vocab.json" in files and "merges.txt" in files:
        return _from_vocab_json(files)
    if "vocab.txt" in files:
        return _from_vocab_txt(files)
    return None


def added_tokens(files: Mapping[str, bytes]) -> dict[int, tuple[str, bool]]:
    """Return the tokens that the files add to a vocabulary: id -> text, whether special."""
    found: dict[int, tuple[str, bool]] = {}
    for text, index in json_file(files, "added_tokens.json").items():
        found[_checked(index, "added_tokens.json")] = (text, looks_special(text))
    entries = json_file(files, "tokenizer_config.json").get("added_tokens_decoder")
    for key, entry in (entries if isinstance(entries, dict) else {}).items():
        where = "tokenizer_config.json"
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not key.isdecimal() or not key.isascii():
            raise FormatError(where, f"added token {key!r} has no content or no id")
        special = bool(entry.get("special")) or looks_special(content)
        found[_checked(int(key), where)] = (content, special)
    return found


def _checked(index: Any, where: str) -> int:
    if type(index) is not int or not 0 <= index < MAX_ADDED_ID:
        raise FormatError(where, f"added token has id {index!r}, 0 to {MAX_ADDED_ID} can be")
    return index


def _apply_added(
    tokens: list[str], types: list[int], scores: list[float], files: Mapping[str, bytes]
) -> None:
    for index, (text, special) in added_tokens(files).items():
        while len(tokens) <= index:
            tokens.append(f"[PAD{len(tokens)}]")
            types.append(int(TokenType.UNUSED))
            scores.append(PADDING_SCORE)
        tokens[index] = text
        types[index] = int(TokenType.CONTROL if special else TokenType.USER_DEFINED)
        scores[index] = ADDED_SCORE


def _from_sentencepiece(
    model: SentencePieceModel, name: str, files: Mapping[str, bytes]
) -> Tokenizer:
    tokens = [text for text, _, _ in model.pieces]
    scores = [score for _, score, _ in model.pieces]
    types = [kind for _, _, kind in model.pieces]
    ids = dict(model.special_ids)
    if name == "sentencepiece.bpe.model":
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *tokens[3:], "<mask>"]
        scores = [0.0, 0.0, 0.0, 0.0, *scores[3:], 0.0]
        types = [3, 3, 3, 2, *types[3:], 3]
        ids = {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": len(tokens) - 1}
    _apply_added(tokens, types, scores, files)
    unigram = model.model_type == 1
    if model.precompiled_charsmap:
        check_charsmap(model.precompiled_charsmap, f"{name}: precompiled_charsmap")
    return Tokenizer(
        kind="unigram" if unigram else "spm",
        tokens=tuple(tokens),
        token_types=tuple(types),
        scores=tuple(scores),
        pre="default",
        special_ids=ids,
        stop_ids=(ids["eos"],) if "eos" in ids else (),
        add_bos=not unigram or name == "sentencepiece.bpe.model",
        add_eos=unigram,
        add_space_prefix=model.add_dummy_prefix,
        remove_extra_whitespaces=model.remove_extra_whitespaces if unigram else None,
        precompiled_charsmap=model.precompiled_charsmap if unigram else b"",
    )


def _by_id(vocab: Mapping[str, Any], where: str) -> list[str]:
    tokens = [""] * len(vocab)
    for text, index in vocab.items():
        if type(index) is not int or not 0 <= index < len(tokens) or tokens[index]:
            raise FormatError(where, f"token {text!r} has id {index!r}, ids 0 to {len(tokens) - 1}")
        tokens[index] = text
    return tokens


def _from_vocab_json(files: Mapping[str, bytes]) -> Tokenizer:
    vocab = json_file(files, "vocab.json")
    tokens = _by_id(vocab, "vocab.json")
    types = [int(TokenType.NORMAL)] * len(tokens)
    merges = []
    lines = decode_text(files["merges.txt"], "merges.txt").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not all(part in vocab for part in pair):
            raise FormatError("merges.txt", f"line {number} is {line[:40]!r}, not two known tokens")
        merges.append((pair[0], pair[1]))
    _apply_added(tokens, types, [0.0] * len(tokens), files)
    config = json_file(files, "tokenizer_config.json")
    qwen = str(config.get("tokenizer_class", "")).startswith("Qwen2")
    specials = {**json_file(files, "special_tokens_map.json"), **config}
    for index, token in enumerate(tokens):
        if token == "<|endoftext|>" or token in _texts(specials):
            types[index] = int(TokenType.CONTROL)
    return Tokenizer(
        kind="bpe",
        tokens=tuple(tokens),
        token_types=tuple(types),
        merges=tuple(merges),
        pre="qwen2" if qwen else "gpt-2",
        add_bos=False,
        add_eos=False,
    )


def _texts(specials: Mapping[str, Any]) -> set[str]:
    found = set()
    for name, entry in specials.items():
        text = entry.get("content") if isinstance(entry, dict) else entry
        if name.endswith("_token") and isinstance(text, str):
            found.add(text)
    return found


def _from_vocab_txt(files: Mapping[str, bytes]) -> Tokenizer:
    lines = decode_text(files["vocab.txt"], "vocab.txt").split("\n")
    tokens = [line.rstrip("\r") for line in lines]
    while tokens and not tokens[-1]:
        tokens.pop()
    config = json_file(files, "tokenizer_config.json")
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    types = [int(TokenType.CONTROL if t in special else TokenType.NORMAL) for t in tokens]
    _apply_added(tokens, types, [0.0] * len(tokens), files)
    found = {t: tokens.index(t) for t in special if t in tokens}
    names = {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    ids = {name: found[text] for name, text in names.items() if text in found}
    ids |= {n: ids[o] for n, o in (("bos", "cls"), ("eos", "sep")) if o in ids}
    lowercase = config.get("do_lower_case") is not False
    return Tokenizer(
        kind="wordpiece",
        tokens=tuple(tokens),
        token_types=tuple(types),
        pre="bert-bge" if lowercase else "default",
        special_ids=ids,
        add_bos=True,
        add_eos=True,
        add_sep=False,
        lowercase=lowercase,
        strip_accents=config.get("strip_accents"),
    )
