"""Token ids against transformers, sentencepiece and llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.tokenizers import (
    apply_chat_template,
    from_gguf,
    from_hugging_face,
    to_gguf,
    to_hugging_face,
)
from halfbyte.converters.tokenizers.agreement import NOT_NFC, SAMPLE, special_sample
from halfbyte.converters.tokenizers.codec import Codec
from halfbyte.ir.tokenizer import Tokenizer
from support import tiny_tokenizers as tiny
from support.llama_vocabulary import write_metadata
from support.real_models import require_model

pytestmark = pytest.mark.peer
KINDS = tiny.every_kind()
LLAMA3_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{%- endif %}"
)
QWEN_CHAT = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- generation %}
        {{- '<|im_start|>assistant\\n' + content }}
        {%- endgeneration %}
        {%- if ns.last == loop.index0 and message.tool_calls is defined %}{{- 'x' }}{%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
CHATS = {"chatml": tiny.CHATML, "llama-3": LLAMA3_CHAT, "qwen": QWEN_CHAT}
MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "  Grüße <b>'x'</b> 🙂  "},
    {"role": "assistant", "content": "<think>hm</think>\nHi"},
    {"role": "user", "content": "Bye"},
]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "ü", "description": "d", "parameters": {"type": "object"}},
    }
]


def read(files: dict[str, bytes]) -> Tokenizer:
    tokenizer = from_hugging_face(files)
    assert tokenizer is not None
    return tokenizer


def save(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def llama_cpp_vocabulary(path: Path) -> Any:
    llama_cpp = pytest.importorskip("llama_cpp")
    return llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)


@pytest.mark.parametrize("name", KINDS)
def test_files_we_write_load_in_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = from_gguf(to_gguf(read(KINDS[name])))
    save(to_hugging_face(tokenizer), tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    codec = Codec(tokenizer, original=True)
    for text in SAMPLE:
        assert codec.encode(text) == peer(text)["input_ids"], text
        assert codec.encode(text, add_special=False) == peer.encode(text, add_special_tokens=False)
    ids = codec.encode(SAMPLE[0])
    assert peer.decode(ids, skip_special_tokens=True) == codec.decode(ids)
    assert peer.eos_token_id == tokenizer.special_ids.get("eos")
    assert peer.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_chat_templates_render_as_in_transformers(
    chat: str, tools: Any, prompt: bool, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    config = {**tiny.CHAT_CONFIG, "chat_template": CHATS[chat]}
    files = tiny.files(tiny.byte_level_json(), config)
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(save(files, tmp_path))
    expected = peer.apply_chat_template(
        MESSAGES, tools=tools, add_generation_prompt=prompt, tokenize=False
    )
    assert apply_chat_template(read(files), MESSAGES, prompt, tools) == expected


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_sentencepiece_models(model_type: str, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = [line for text in tiny.TEXTS * 3 for line in text.split("\n") if line.strip()]
    corpus = [line.replace("\0", "").replace("\r", "") for line in corpus]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(tmp_path / "m"),
        vocab_size=700 if model_type == "bpe" else 420,
        model_type=model_type,
        byte_fallback=model_type == "bpe",
        normalization_rule_name="identity" if model_type == "bpe" else "nmt_nfkc",
        remove_extra_whitespaces=model_type != "bpe",
        character_coverage=1.0 if model_type == "unigram" else 0.98,
        minloglevel=2,
    )
    data = (tmp_path / "m.model").read_bytes()
    peer = sentencepiece.SentencePieceProcessor(model_proto=data)
    name = "tokenizer.model" if model_type == "bpe" else "spiece.model"
    tokenizer = read({name: data})
    assert list(tokenizer.tokens) == [peer.id_to_piece(i) for i in range(len(peer))]
    through_gguf = from_gguf(to_gguf(tokenizer))
    through_files = read(to_hugging_face(through_gguf))
    for each in (tokenizer, through_gguf, through_files):
        codec = Codec(each)
        for text in SAMPLE:
            if "\0" in text:
                continue
            found, expected = codec.encode(text, add_special=False), peer.encode(text)
            if (
                model_type == "unigram"
            ):  # Of equally likely cuts, such as "!!!", either may be taken.
                found, expected = sorted(found), sorted(expected)
            assert found == expected, text


def test_smollm2(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = require_model("smollm2")
    fields = gguf.GGUFReader(path).fields
    keys = {k: f.contents() for k, f in fields.items() if k.startswith("tokenizer.")}
    tokenizer = from_gguf(keys)
    codec = Codec(tokenizer)
    written = read(to_hugging_face(tokenizer))
    assert written.pre == tokenizer.pre == "smollm"
    again = to_gguf(written)
    for key, value in keys.items():
        if key not in ("tokenizer.ggml.add_space_prefix",):
            assert np.array_equal(again[key], value), key
    peers = [llama_cpp_vocabulary(path)]
    peers.append(llama_cpp_vocabulary(write_metadata(tmp_path / "v.gguf", again)))
    for text in [*SAMPLE, *NOT_NFC, *special_sample(tokenizer)]:
        for peer in peers:
            assert codec.encode(text) == peer.tokenize(text.encode(), add_bos=True, special=True)
        assert Codec(written).encode(text) == codec.encode(text)
        ids = codec.encode(text)
        assert codec.decode(ids, skip_special=False) == text
    rendered = apply_chat_template(tokenizer, [{"role": "user", "content": "Hi"}])
    assert rendered.startswith("<|im_start|>system\n") and rendered.endswith("assistant\n")


def test_minilm(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = require_model("minilm")
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
    files = {name: (folder / name).read_bytes() for name in names}
    peer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    peer.no_padding()
    peer.no_truncation()
    tokenizer = read(files)
    words = read({"vocab.txt": files["vocab.txt"]})
    keys = to_gguf(tokenizer)
    assert keys["tokenizer.ggml.pre"] == "bert-bge"
    found = [tokenizer, words, from_gguf(keys), read(to_hugging_face(from_gguf(keys)))]
    for text in [*SAMPLE, *NOT_NFC]:
        for each in found:
            assert Codec(each, original=True).encode(text) == peer.encode(text).ids, text
    vocabulary = llama_cpp_vocabulary(write_metadata(tmp_path / "v.gguf", keys))
    for text in [*SAMPLE, *NOT_NFC]:
        expected = vocabulary.tokenize(text.encode(), add_bos=True, special=True)
        assert Codec(from_gguf(keys)).encode(text) == expected, text


def test_decoder() -> None:
    folder = require_model("decoder")
    tokenizers = pytest.importorskip("tokenizers")
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json")
    tokenizer = read({name: (folder / name).read_bytes() for name in names})
    peer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    keys = to_gguf(tokenizer, json.loads((folder / "config.json").read_text())["vocab_size"])
    for text in SAMPLE:
        for each in (tokenizer, from_gguf(keys)):
            assert Codec(each).encode(text) == peer.encode(text).ids
