"""Tiny checkpoints on disk, with a tokenizer, for tests of whole conversions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from halfbyte.converters import get_format
from halfbyte.converters.format import WriteOptions
from halfbyte.converters.tokenizers import from_hugging_face
from halfbyte.ir.model import Model
from halfbyte.ir.tokenizer import Tokenizer
from halfbyte.quant.plan import apply_plan, make_plan
from halfbyte.runtime.session import Session
from support.random_models import random_model

VOCABULARY = 320
SAMPLE = (
    "The quick brown fox doesn't jump over 12345 lazy dogs.\n\n  def f(x):\n\treturn x ** 2\n"
    "Ünïcödé, 日本語, русский, العربية, "
    "emoji \U0001f600\U0001f468‍\U0001f469‍\U0001f467 and\x00\x1b controls."
)


def byte_level_tokenizer() -> Tokenizer:
    """Return a small GPT-2-like tokenizer trained on the sample."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([SAMPLE], trainer)
    config = b'{"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", '
    config += b'"tokenizer_class": "GPT2Tokenizer"}'
    return _record(backend, config)


def word_piece_tokenizer() -> Tokenizer:
    """Return a small BERT-like tokenizer trained on the sample."""
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=specials, show_progress=False
    )
    backend.train_from_iterator([SAMPLE], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = b'{"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", '
    config += b'"pad_token": "[PAD]", "mask_token": "[MASK]", "tokenizer_class": "BertTokenizer"}'
    return _record(backend, config)


def _record(backend: Backend, config: bytes) -> Tokenizer:
    files = {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": config}
    found = from_hugging_face(files)
    assert found is not None
    return found


def tiny_model(model_type: str, seed: int = 0, **settings: Any) -> Model:
    """Return a random model of an architecture with a tokenizer that fits it."""
    is_encoder = model_type == "bert"
    tokenizer = word_piece_tokenizer() if is_encoder else byte_level_tokenizer()
    model = random_model(model_type, seed, vocab_size=VOCABULARY, **settings)
    return replace(model, tokenizer=tokenizer, _graph=[])


def write_model(model: Model, path: Path, type_name: str = "") -> Path:
    """Write a model in the format that the path's ending names; return the path."""
    names = {".gguf": "gguf", ".hb": "hb", ".onnx": "onnx"}
    target = get_format(names.get(path.suffix, "hf"))
    plan = make_plan(model, target.profile(), type_name, requantize=bool(type_name))
    target.write(apply_plan(model, plan), path, WriteOptions())
    return path


def write_text(path: Path) -> Path:
    """Write a text to calibrate and to judge on: the words of SAMPLE, often and in disorder."""
    words = np.random.default_rng(0).permutation(SAMPLE.split() * 60)
    path.write_text(" ".join(words), encoding="utf-8")
    return path


def outputs_of(model: Model, ids: list[int]) -> dict[str, np.ndarray[Any, Any]]:
    """Return what a model gives for token ids, in exact arithmetic."""
    return Session(model).run({"input_ids": np.array([ids], np.int64)})
