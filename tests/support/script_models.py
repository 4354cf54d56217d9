"""Tiny Hugging Face folders, the same bytes on every machine, for conversions by two tools.

Weights come from integer arithmetic and tokenizers are written out, so that digests of what a
conversion makes of them can be stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from halfbyte.converters.architectures import get_architecture
from halfbyte.ir.roles import Role
from support.tiny_tokenizers import LLAMA3_REGEX, QWEN2_REGEX, SPACE, sentencepiece_model
from support.tiny_tokenizers import field as protobuf

Document = dict[str, Any]
DTYPES: dict[str, Any] = {
    "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16,
}  # fmt: skip
PAIRS = ["th", "he", "in", "er", "an", "re", "on", "at", "en", "nd"]
WORDS = ["the", "and", "ing"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
)


def byte_alphabet() -> list[str]:
    """Return the characters that stand for bytes in byte-level tokenizers, by byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def _added(texts: Mapping[str, bool], start: int) -> list[Document]:
    return [
        {
            "id": start + offset, "content": text, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": special,
        }
        for offset, (text, special) in enumerate(texts.items())
    ]  # fmt: skip


def _split(regex: str) -> Document:
    return {
        "type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


def _byte_level(use_regex: bool) -> Document:
    return {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex
    }  # fmt: skip


def _sequence(*parts: Document) -> Document:
    return {"type": "Sequence", "pretokenizers": list(parts)}


PRE_TOKENIZERS: dict[str, Document] = {
    "gpt-2": _byte_level(True),
    "smollm": _sequence({"type": "Digits", "individual_digits": True}, _byte_level(True)),
    "llama-bpe": _sequence(_split(LLAMA3_REGEX), _byte_level(False)),
    "qwen2": _sequence(_split(QWEN2_REGEX), _byte_level(False)),
}


def _template(single: list[str], pair: list[str], ids: Mapping[str, int]) -> Document:
    def parts(names: list[str]) -> list[Document]:
        found: list[Document] = []
        for name in names:
            kind, _, segment = name.partition(":")
            what = "Sequence" if kind in ("A", "B") else "SpecialToken"
            found.append({what: {"id": kind, "type_id": int(segment or 0)}})
        return found

    special = {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in ids.items()}
    return {
        "type": "TemplateProcessing", "single": parts(single), "pair": parts(pair),
        "special_tokens": special,
    }  # fmt: skip


def bpe_tokenizer(family: str, bos: str = "", user_defined: str = "") -> Document:
    """Return a byte-level tokenizer.json of a pre-tokenizer family; ids 0-2 are special."""
    special = {"<|endoftext|>": True, "<|im_start|>": True, "<|im_end|>": True}
    pieces = [*byte_alphabet(), *PAIRS, *WORDS]
    vocabulary = {text: index for index, text in enumerate([*special, *pieces])}
    merges = [[pair[0], pair[1]] for pair in PAIRS] + [["th", "e"], ["an", "d"], ["in", "g"]]
    added = _added(special, 0)
    if user_defined:
        added += _added({user_defined: False}, len(vocabulary))
    post: Document = _byte_level(True)
    if bos:
        start = {bos: vocabulary[bos]}
        post = _template([bos, "A"], [bos, "A", bos + ":1", "B:1"], start)
        post = {"type": "Sequence", "processors": [_byte_level(True), post]}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "NFC"} if family == "qwen2" else None,
        "pre_tokenizer": PRE_TOKENIZERS[family], "post_processor": post,
        "decoder": _byte_level(True),
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": family == "llama-bpe", "vocab": vocabulary, "merges": merges,
        },
    }  # fmt: skip


def _spm_pieces() -> list[tuple[str, float, int]]:
    pieces: list[tuple[str, float, int]] = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    merged = [*PAIRS, *WORDS, SPACE + "t", SPACE + "the"]
    pieces += [(text, -1.0 - number, 1) for number, text in enumerate(merged)]
    letters = [SPACE, *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?'0123456789"]
    return pieces + [(text, -20.0 - number, 1) for number, text in enumerate(letters)]


def spm_model(prefix: bool = True) -> bytes:
    """Return a SentencePiece BPE `tokenizer.model`."""
    trainer = protobuf(3, 2) + protobuf(35, 1)  # model_type BPE, byte_fallback
    normalizer = protobuf(1, b"identity") + protobuf(3, int(prefix)) + protobuf(4, 0)
    normalizer += protobuf(5, 1)
    return sentencepiece_model(_spm_pieces(), trainer, normalizer)


def spm_tokenizer(prefix: bool = True) -> Document:
    """Return the tokenizer.json of the same vocabulary, as Llama 2 and Mistral have it."""
    pieces = [text for text, _, _ in _spm_pieces()]
    order = {text: number for number, text in enumerate(pieces)}
    cuts = [(text, cut) for text in pieces[259:] for cut in range(1, len(text))]
    merges = [[t[:cut], t[cut:]] for t, cut in cuts if {t[:cut], t[cut:]} <= order.keys()]
    ids = {"<s>": 1}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": _added({"<unk>": True, "<s>": True, "</s>": True}, 0),
        "normalizer": {"type": "Sequence", "normalizers": [
            *([{"type": "Prepend", "prepend": SPACE}] if prefix else []),
            {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        ]},
        "pre_tokenizer": None,
        "post_processor": _template(["<s>", "A"], ["<s>", "A", "<s>:1", "B:1"], ids),
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
        ]},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>",
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": False,
            "vocab": {text: index for index, text in enumerate(pieces)}, "merges": merges,
        },
    }  # fmt: skip


def wordpiece_tokenizer(lowercase: bool = True) -> Document:
    """Return a BERT tokenizer.json."""
    special = dict.fromkeys(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'"
    pieces = [*special, *letters, *(f"##{c}" for c in letters), *PAIRS, *WORDS]
    pieces += [f"##{pair}" for pair in PAIRS]
    ids = {"[CLS]": 2, "[SEP]": 3}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": _added(special, 0),
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": None, "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template(
            ["[CLS]", "A", "[SEP]"], ["[CLS]", "A", "[SEP]", "B:1", "[SEP]:1"], ids
        ),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {text: index for index, text in enumerate(pieces)},
        },
    }  # fmt: skip


def exact_values(shape: tuple[int, ...], seed: int, scale: float) -> np.ndarray[Any, Any]:
    """Return float32 values in [-scale, scale) made by integer hashing."""
    count = int(np.prod(shape, dtype=np.int64))
    state = np.arange(count, dtype=np.uint64) + np.uint64(seed * 1_000_003 + 12345)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    state ^= state >> np.uint64(31)
    uniform = (state >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    return (uniform * np.float32(scale)).reshape(shape)


@dataclass(frozen=True)
class FolderCase:
    """A folder: its name (which names the model), config, tokenizer files and others."""

    name: str
    config: Document
    files: dict[str, bytes] = field(default_factory=dict)
    dtype: str = "float32"
    pre: str = "default"
    prefix: str = ""
    extra: dict[str, tuple[int, ...]] = field(default_factory=dict)


def write_folder_case(case: FolderCase, parent: Path) -> Path:
    """Write the folder below `parent`; return its path."""
    folder = parent / case.name
    folder.mkdir(parents=True)
    architecture = get_architecture(case.config["model_type"])
    config = architecture.canonical_config(case.config)
    arrays = {}
    tied = bool(config.get("tie_word_embeddings"))
    for number, spec in enumerate(architecture.weight_specs(config)):
        if not spec.name or (spec.key.role is Role.OUTPUT_HEAD and tied):
            continue
        if spec.optional and spec.key.role is not Role.OUTPUT_HEAD:
            continue
        shape = spec.shape[::-1] if architecture.transposed(spec.key) else spec.shape
        values = exact_values(shape, number, 0.25)
        if spec.key.role.is_norm and spec.key.kind == "weight":
            values += np.float32(1)
        typed = values.astype(DTYPES[case.dtype])
        if spec.expert_name:
            pieces = {spec.expert_name.format(i): piece for i, piece in enumerate(typed)}
        else:
            pieces = {spec.name: typed}
        arrays |= {case.prefix + name: piece for name, piece in pieces.items()}
    for number, (name, shape) in enumerate(case.extra.items(), 1000):
        arrays[name] = exact_values(shape, number, 0.25).astype(DTYPES[case.dtype])
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    classes = {"architectures": [architecture.hugging_face_class], "dtype": case.dtype}
    (folder / "config.json").write_text(json.dumps({**classes, **case.config}, indent=1))
    for name, content in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def as_json(document: Any) -> bytes:
    """Return a document as the bytes of a file."""
    return json.dumps(document, ensure_ascii=False).encode()
