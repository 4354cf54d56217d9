"""Tokenizers rebuilt from GGUF metadata alone against llama.cpp's ids."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.gguf.container import read_container
from halfbyte.converters.gguf.metadata_value import plain
from halfbyte.converters.tokenizers import from_gguf, from_hugging_face, to_gguf
from halfbyte.converters.tokenizers.agreement import special_sample
from halfbyte.converters.tokenizers.codec import Codec
from halfbyte.converters.tokenizers.ggml_chains import ggml_chain
from halfbyte.converters.tokenizers.pretokenizers import PRE_TOKENIZERS
from halfbyte.errors import UnsupportedError
from support import tiny_tokenizers as tiny
from support.llama_vocabulary import LlamaVocabulary, pair_keys, write_metadata
from support.tokenizer_exceptions import EXCEPTIONS
from support.torture_texts import TEXTS

pytestmark = pytest.mark.peer
G = "tokenizer.ggml."
SOURCE = Path(os.environ.get("HALFBYTE_LLAMA_CPP_SOURCE", "/nowhere"))
NAMES = [path.name[len("ggml-vocab-") : -len(".gguf")] for path in SOURCE.glob("models/*.gguf")]
MODES = [(False, False), (False, True), (True, False), (True, True)]
needs_source = pytest.mark.skipif(
    not NAMES, reason="HALFBYTE_LLAMA_CPP_SOURCE does not point to llama.cpp's source tree"
)
SEPARATOR = b"\n__ggml_vocab_test__\n"


def vocabulary_path(name: str) -> Path:
    return SOURCE / "models" / f"ggml-vocab-{name}.gguf"


def rebuilt(path: Path) -> Codec:
    return Codec(from_gguf(plain(read_container(path).metadata)))


@contextmanager
def expected(name: str, what: str) -> Iterator[None]:
    """Fail where a known exception is gone; pass where it is there."""
    reason = EXCEPTIONS.get((name, what))
    try:
        yield
    except AssertionError:
        if reason is None:
            raise
        return
    assert reason is None, f"{name} {what} agrees now: take it out of the exceptions ({reason})"


@needs_source
@pytest.mark.parametrize("name", NAMES or ["none"])
def test_ids_that_llama_cpp_keeps_with_its_vocabularies(name: str) -> None:
    path = vocabulary_path(name)
    inputs, outputs = Path(f"{path}.inp"), Path(f"{path}.out")
    if not inputs.exists():
        pytest.skip("this vocabulary has no texts beside it")
    texts = [text.decode() for text in inputs.read_bytes().split(SEPARATOR)]
    lines = outputs.read_text().split("\n")
    codec = rebuilt(path)
    with expected(name, "fixture"):
        for text, line in zip(texts, lines, strict=False):
            found = codec.encode(text, add_special=False, parse_special=False)
            assert found == [int(part) for part in line.split()], text


@needs_source
@pytest.mark.parametrize("name", NAMES or ["none"])
def test_every_vocabulary_encodes_and_decodes_as_llama_cpp_does(name: str) -> None:
    codec = rebuilt(vocabulary_path(name))
    texts = [*TEXTS, *special_sample(codec.tokenizer)]
    with LlamaVocabulary(vocabulary_path(name)) as peer:
        with expected(name, "ids"):
            for text in texts:
                for mode in MODES:
                    assert codec.encode(text, *mode) == peer.encode(text, *mode), (text, mode)
        with expected(name, "pieces"):
            for index in range(codec.vocab_size):
                assert codec.id_to_piece(index) == peer.piece(index), index
        with expected(name, "ends"):
            ends = [index for index in range(codec.vocab_size) if peer.is_end(index)]
            assert sorted(codec.tokenizer.stop_ids) == ends


@needs_source
def test_every_name_that_llama_cpp_knows_is_known() -> None:
    text = (SOURCE / "src" / "llama-vocab.cpp").read_text()
    names = set(re.findall(r'tokenizer_pre == "([^"]+)"', text))
    assert names == set(PRE_TOKENIZERS)
    models = set(re.findall(r'tokenizer_model == "([^"]+)"', text)) - {"none", "no_vocab"}
    for model in models:
        with expected(model, "load"):
            keys = {G + "model": model, G + "tokens": ["a", "b"], G + "merges": []}
            try:
                from_gguf(keys)
            except UnsupportedError as error:
                raise AssertionError(str(error)) from error


CHAINS = {ggml_chain(row): name for name, row in reversed(PRE_TOKENIZERS.items())}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_pre_tokenizer_cuts_as_llama_cpp_does(name: str, tmp_path: Path) -> None:
    """The first name of each chain is tried on all texts, the others on some."""
    seed, row = sorted(PRE_TOKENIZERS).index(name), PRE_TOKENIZERS[name]
    texts = TEXTS if name in CHAINS.values() else TEXTS[1:12]
    keys = pair_keys(name, texts, seed, row.raw)
    codec = Codec(from_gguf(keys))
    with LlamaVocabulary(write_metadata(tmp_path / "v.gguf", keys)) as peer:
        for text in texts:
            for special in (False, True):
                found = codec.encode(text, special, False)
                assert found == peer.encode(text, special, False), text


def test_the_texts_tell_llama_cpp_and_the_original_apart() -> None:
    """Names whose original cuts otherwise differ on these texts, so the test above has teeth."""
    for name in ("gpt-4o", "tekken", "youtu", "tiny_aya", "kimi-k2", "falcon", "deepseek-llm"):
        keys = pair_keys(name, TEXTS, 1, raw=False)
        ours, original = Codec(from_gguf(keys)), Codec(from_gguf(keys), original=True)
        assert any(ours.encode(text) != original.encode(text) for text in TEXTS), name


def rwkv_keys() -> dict[str, Any]:
    words = [
        "the",
        "Hello",
        "12",
        "123",
        " x",
        "\n\n",
        "é",
        "中",
        "中文",
        "👍",
        "<s>x",
        "'",
        '"',
        "\\",
    ]
    spelled = [repr(bytes([byte]))[2:-1] for byte in range(256)]
    spelled += [repr(word.encode())[2:-1] for word in words]
    tokens = list(dict.fromkeys(["<s>", *spelled]))
    types = [3] + [1] * (len(tokens) - 1)
    return {G + "model": "rwkv", G + "tokens": tokens, G + "token_type": np.array(types, np.int32)}


def plamo_keys() -> dict[str, Any]:
    names = ["<|plamo:unk|>", "<|plamo:bos|>", "<|plamo:eos|>", "<|plamo:pad|>", "</s>"]
    start = [*names, *(f"<0x{byte:02X}>" for byte in range(256))]
    words = sorted({text[i : i + n] for text in TEXTS[:40] for i in range(40) for n in (1, 2, 3)})
    words = [word for word in words if word and "\0" not in word and word not in start]
    random = np.random.default_rng(2)
    scores = np.concatenate([np.zeros(len(start)), -random.uniform(0, 15, len(words))])
    types = [2, 3, 3, 3, 1] + [6] * 256 + [1] * len(words)
    return {
        G + "model": "plamo2",
        G + "pre": "default",
        G + "tokens": start + words,
        G + "scores": scores.astype(np.float32),
        G + "token_type": np.array(types, np.int32),
        G + "add_space_prefix": False,
    }


def kind_keys(name: str) -> dict[str, Any]:
    if name in ("rwkv", "plamo2"):
        return rwkv_keys() if name == "rwkv" else plamo_keys()
    tokenizer = from_hugging_face(tiny.every_kind()[name])
    assert tokenizer is not None
    return to_gguf(tokenizer)


@pytest.mark.parametrize("name", [*tiny.every_kind(), "rwkv", "plamo2"])
def test_every_kind_of_tokenizer(name: str, tmp_path: Path) -> None:
    keys = kind_keys(name)
    codec = Codec(from_gguf(keys))
    texts = [*TEXTS, *special_sample(codec.tokenizer)]
    with LlamaVocabulary(write_metadata(tmp_path / "v.gguf", keys)) as peer:
        for text in texts:
            for mode in MODES:
                assert codec.encode(text, *mode) == peer.encode(text, *mode), (text, mode)
        for index in range(codec.vocab_size):
            assert codec.id_to_piece(index) == peer.piece(index), index
        again = to_gguf(codec.tokenizer)
        assert Codec(from_gguf(again)).encode(TEXTS[1]) == codec.encode(TEXTS[1])


SPECIALS = {
    "<|ab|>": 3,
    "b|>c": 4,
    "c<|x": 4,
    "<|xy|>": 3,
    "<|im_end|>": 1,
    "<|end|>": 3,
    "<|call|>": 3,
    "<|return|>": 3,
    "<|start|>": 3,
    "</s>": 1,
    "<|tool_response>": 4,
    "<fim-suffix>": 1,
    "[PAD]": 1,
    "un": 2,
}


def test_overlapping_and_retyped_special_tokens(tmp_path: Path) -> None:
    keys = pair_keys("gpt-2", TEXTS[:40], 3, raw=False)
    keys[G + "tokens"] = [*keys[G + "tokens"], *SPECIALS]
    types = [*keys[G + "token_type"].tolist(), *SPECIALS.values()]
    keys[G + "token_type"] = np.array(types, np.int32)
    joined = "".join(SPECIALS)
    texts = ["x<|ab|>c<|xy|>y", "b|>c<|x", "<|ab|>c", "un b|>c<|xy|>", joined, joined[::-1]]
    texts += [f"a {token}  {token}{token}\n{token}b" for token in SPECIALS]
    codec = Codec(from_gguf(keys))
    with LlamaVocabulary(write_metadata(tmp_path / "v.gguf", keys)) as peer:
        for text in texts:
            for mode in MODES:
                assert codec.encode(text, *mode) == peer.encode(text, *mode), (text, mode)
        ends = [index for index in range(codec.vocab_size) if peer.is_end(index)]
        assert sorted(codec.tokenizer.stop_ids) == ends


@pytest.mark.parametrize("name", ["Phi-3 mini", "other"])
def test_spaces_that_go_with_special_tokens(name: str, tmp_path: Path) -> None:
    keys = {**kind_keys("spm"), "general.name": name}
    types = keys[G + "token_type"]
    types[-3:] = [3, 4, 3]
    tokens = keys[G + "tokens"]
    tokens[-4] = "<|endoftext|>"
    codec = Codec(from_gguf(keys))
    with LlamaVocabulary(write_metadata(tmp_path / "v.gguf", keys)) as peer:
        for token in [*tokens[-3:], "<s>", "</s>", "<unk>"]:
            for text in (f"a  {token} \n b", f"{token}{token}  {token}\u00a0 x", f" {token} "):
                for mode in MODES:
                    assert codec.encode(text, *mode) == peer.encode(text, *mode), (text, mode)
