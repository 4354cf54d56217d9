"""Small real tokenizers of every kind, trained on the spot."""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from halfbyte.converters.tokenizers.agreement import SAMPLE

SPACE = "\u2581"
TEXTS = [
    *(text for text in SAMPLE if "\0" not in text),
    "The quick brown fox jumps over the lazy dog. It was the best of times, the worst of times.",
    "Der schnelle braune Fuchs springt über den faulen Hund. Zwölf Boxkämpfer jagen Viktor.",
    "El veloz murciélago hindú comía feliz cardillo y kiwi. La cigüeña tocaba el saxofón.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. 今日は天気がいいですね。",
    "for i in range(10):\n    print(i, end='')\nreturn {'a': [1, 2, 3], 'b': None}\n",
    "antidisestablishmentarianism internationalization unbelievable running runner runs ran",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_REGEX = LLAMA3_REGEX.replace("{1,3}", "")
STRANGE_REGEX = r"\p{L}{1,4}|\p{N}{2}|[^\p{L}\p{N}]"


def split(regex: str) -> Any:
    from tokenizers import Regex

    return pre_tokenizers.Split(Regex(regex), "isolated")


def pre_tokenizer(family: str) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps = {
        "gpt-2": [gpt2],
        "smollm": [pre_tokenizers.Digits(True), gpt2],
        "llama-bpe": [split(LLAMA3_REGEX), byte_level],
        "qwen2": [split(QWEN2_REGEX), byte_level],
        "strange": [split(STRANGE_REGEX), byte_level],
    }[family]
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


@lru_cache
def byte_level_json(family: str = "gpt-2", size: int = 600) -> str:
    """Return a byte-level BPE tokenizer.json whose text is split as `family` does."""
    tokenizer = Tokenizer(models.BPE())
    if family == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer(family)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if family == "llama-bpe":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A",
            pair="<|endoftext|> $A <|endoftext|> $B",
            special_tokens=[("<|endoftext|>", 0)],
        )
        document = json.loads(tokenizer.to_str())
        document["model"]["ignore_merges"] = True
        return json.dumps(document)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return str(tokenizer.to_str())


@lru_cache
def spm_json(prefix: bool = True) -> str:
    """Return a Llama-2-style tokenizer.json: BPE over U+2581 text with byte fallback."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    steps = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [
                {
                    "id": index,
                    "content": text,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for index, text in enumerate(names[:3])
            ],
            "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": None,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [
                    start,
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
            },
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
                ],
            },
            "model": {
                "type": "BPE",
                "unk_token": "<unk>",
                "fuse_unk": True,
                "byte_fallback": True,
                "vocab": {text: index for index, text in enumerate(names + pieces)},
                "merges": trained["merges"],
            },
        }
    )


@lru_cache
def unigram_json() -> str:
    """Return a T5-style Unigram tokenizer.json."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(regex(r"\A +| +\z"), ""), normalizers.Replace(regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    document = json.loads(tokenizer.to_str())
    for entry in document["model"]["vocab"]:
        entry[1] = struct.unpack("<f", struct.pack("<f", entry[1]))[0]
    return json.dumps(document)


def regex(pattern: str) -> Any:
    from tokenizers import Regex

    return Regex(pattern)


@lru_cache
def wordpiece_json(lowercase: bool = True) -> str:
    """Return a BERT-style tokenizer.json."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=700, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return str(tokenizer.to_str())


BERT_CONFIG = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT_CONFIG = {
    "bos_token": "<|endoftext|>",
    "eos_token": "<|im_end|>",
    "chat_template": CHATML,
}
LLAMA_CONFIG = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
T5_CONFIG = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def files(tokenizer_json: str, config: dict[str, Any] | None = None) -> dict[str, bytes]:
    """Return Hugging Face files by name."""
    found = {"tokenizer.json": tokenizer_json.encode()}
    if config is not None:
        found["tokenizer_config.json"] = json.dumps(config).encode()
    return found


def every_kind() -> dict[str, dict[str, bytes]]:
    """Return one set of Hugging Face files per kind of tokenizer."""
    chat = ("gpt-2", "smollm", "llama-bpe", "qwen2")
    return {
        **{family: files(byte_level_json(family), CHAT_CONFIG) for family in chat},
        "spm": files(spm_json(), LLAMA_CONFIG),
        "spm-no-prefix": files(spm_json(prefix=False), LLAMA_CONFIG),
        "unigram": files(unigram_json(), T5_CONFIG),
        "wordpiece": files(wordpiece_json(), BERT_CONFIG),
        "wordpiece-cased": files(wordpiece_json(lowercase=False), BERT_CONFIG),
    }


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes | float) -> bytes:
    """Return one protobuf field."""
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value & (1 << 64) - 1)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def sentencepiece_model(
    pieces: list[tuple[str, float, int]], trainer: bytes = b"", normalizer: bytes = b""
) -> bytes:
    """Return a SentencePiece model file."""
    out = b"".join(
        field(1, field(1, text.encode()) + field(2, float(score)) + field(3, kind))
        for text, score, kind in pieces
    )
    return out + field(2, trainer) + field(3, normalizer)
