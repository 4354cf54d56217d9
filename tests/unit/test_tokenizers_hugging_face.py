"""Reading and writing Hugging Face tokenizer files."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from halfbyte.converters.tokenizers import from_gguf, from_hugging_face, to_gguf, to_hugging_face
from halfbyte.converters.tokenizers.agreement import SAMPLE
from halfbyte.converters.tokenizers.codec import Codec
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.tokenizer import Tokenizer, TokenType
from support import tiny_tokenizers as tiny

KINDS = tiny.every_kind()


def read(files: dict[str, bytes]) -> Tokenizer:
    tokenizer = from_hugging_face(files)
    assert tokenizer is not None
    return tokenizer


def dump(document: Any) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize("name", KINDS)
def test_files_come_back_byte_for_byte(name: str) -> None:
    assert to_hugging_face(read(KINDS[name])) == KINDS[name]


def test_no_tokenizer() -> None:
    assert from_hugging_face({"config.json": b"{}", "README.md": b"x"}) is None


def test_special_ids_flags_and_stop_ids() -> None:
    files = {
        **KINDS["gpt-2"],
        "generation_config.json": dump({"eos_token_id": [2, 0], "pad_token_id": 2}),
        "config.json": dump({"eos_token_id": 0, "bos_token_id": 1}),
    }
    tokenizer = read(files)
    assert tokenizer.special_ids == {"bos": 0, "eos": 2, "pad": 2}
    assert tokenizer.stop_ids == (2, 0)
    assert (tokenizer.add_bos, tokenizer.add_eos) == (False, False)
    assert tokenizer.chat_template == tiny.CHATML
    assert "config.json" not in tokenizer.source
    spm = read(KINDS["spm"])
    assert spm.special_ids == {"unk": 0, "bos": 1, "eos": 2}
    assert (spm.add_bos, spm.add_eos) == (True, None)
    t5 = read(KINDS["unigram"])
    assert (t5.add_bos, t5.add_eos, t5.special_ids["eos"]) == (None, True, 1)


def test_ids_from_the_model_config_alone() -> None:
    files = {"tokenizer.json": KINDS["gpt-2"]["tokenizer.json"]}
    files["config.json"] = dump({"eos_token_id": 2, "bos_token_id": 0})
    assert read(files).special_ids == {"bos": 0, "eos": 2}
    assert read(files).stop_ids == (2, 0)


def test_ids_outside_the_vocabulary_are_ignored_with_a_warning() -> None:
    generation = {"eos_token_id": [2, 600], "pad_token_id": -1}
    files = {**KINDS["gpt-2"], "generation_config.json": dump(generation)}
    tokenizer = read(files)
    assert tokenizer.stop_ids == (2, 0) and "pad" not in tokenizer.special_ids
    assert tokenizer.warnings == (
        "generation_config.json: eos_token_id is 600, the tokenizer has 600 tokens; it is ignored",
    )


def test_special_tokens_given_as_objects_and_in_the_map() -> None:
    config = {"bos_token": {"content": "<|endoftext|>"}, "eos_token": None, "add_bos_token": True}
    files = tiny.files(tiny.byte_level_json("llama-bpe"), config)
    files["special_tokens_map.json"] = dump({"pad_token": "<|im_end|>", "bos_token": "x"})
    tokenizer = read(files)
    assert tokenizer.special_ids == {"bos": 0, "pad": 2}
    assert tokenizer.add_bos is True


def template(single: list[str], pair: list[str]) -> dict[str, Any]:
    def entries(parts: list[str]) -> list[dict[str, Any]]:
        kinds = {"A": "Sequence", "B": "Sequence"}
        return [{kinds.get(p, "SpecialToken"): {"id": p, "type_id": 0}} for p in parts]

    ids = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    used = {p: {"id": p, "ids": [ids[p]], "tokens": [p]} for p in {*single, *pair} if p in ids}
    return {
        "type": "TemplateProcessing",
        "single": entries(single),
        "pair": entries(pair),
        "special_tokens": used,
    }


@pytest.mark.parametrize(
    ("single", "pair", "config", "ids", "flags"),
    [
        # An end token that the configuration does not know becomes eos, the old one eot.
        (
            ["A", "<|im_end|>"],
            ["A", "B", "<|im_end|>"],
            {"eos_token": "<|endoftext|>"},
            {"eos": 2, "eot": 0},
            (None, True, None),
        ),
        # A begin token that is not bos is cls.
        (
            ["<|im_start|>", "A"],
            ["<|im_start|>", "A", "<|im_end|>", "B"],
            {"bos_token": "<|endoftext|>", "sep_token": "<|im_end|>"},
            {"bos": 0, "eos": 2, "sep": 2, "cls": 1},
            (True, None, True),
        ),
        (["A"], ["A", "B"], {}, {}, (None, None, None)),
    ],
)
def test_post_processor_templates(
    single: list[str],
    pair: list[str],
    config: dict[str, Any],
    ids: dict[str, int],
    flags: tuple[bool | None, ...],
) -> None:
    document = json.loads(tiny.byte_level_json())
    document["post_processor"] = template(single, pair)
    tokenizer = read(tiny.files(json.dumps(document), config))
    assert tokenizer.special_ids == ids
    assert (tokenizer.add_bos, tokenizer.add_eos, tokenizer.add_sep) == flags


def test_roberta_post_processor() -> None:
    document = json.loads(tiny.byte_level_json())
    roberta = {
        "type": "RobertaProcessing",
        "sep": ["<|im_end|>", 2],
        "cls": ["<|im_start|>", 1],
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    document["post_processor"] = {"type": "Sequence", "processors": [roberta]}
    tokenizer = read(tiny.files(json.dumps(document), {}))
    assert tokenizer.special_ids == {"bos": 1, "eos": 2, "cls": 1, "sep": 2}
    assert (tokenizer.add_bos, tokenizer.add_eos, tokenizer.add_sep) == (True, True, True)


def test_chat_templates_in_every_place() -> None:
    base = KINDS["smollm"]
    listed = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    files = {**base, "tokenizer_config.json": dump({"chat_template": listed})}
    assert (read(files).chat_template, read(files).chat_templates) == ("d", {"tool_use": "t"})
    files = {**base, "chat_template.json": dump({"chat_template": "from json"})}
    files["tokenizer_config.json"] = b"{}"
    assert read(files).chat_template == "from json"
    files["chat_template.jinja"] = b"from jinja"
    files["additional_chat_templates/rag.jinja"] = b"from folder"
    assert read(files).chat_template == "from jinja"
    assert read(files).chat_templates == {"rag": "from folder"}
    assert to_hugging_face(read(files)) == files


def test_a_changed_template_is_written() -> None:
    changed = replace(read(KINDS["smollm"]), chat_template="new")
    files = to_hugging_face(changed)
    assert files["tokenizer.json"] == KINDS["smollm"]["tokenizer.json"]
    assert read(files).chat_template == "new"
    named = replace(changed, chat_templates={"tool_use": "t"})
    assert read(to_hugging_face(named)).chat_templates == {"tool_use": "t"}
    bare = replace(changed, chat_template=None)
    assert read(to_hugging_face(bare)).chat_template is None
    jinja = {**KINDS["smollm"], "chat_template.jinja": b"old"}
    assert read(to_hugging_face(replace(read(jinja), chat_template="x"))).chat_template == "x"


def test_holes_and_token_types() -> None:
    document = json.loads(tiny.byte_level_json())
    document["added_tokens"] += [
        {"id": 602, "content": "<tool>", "special": False},
        {"id": 603, "content": "<|looks|>", "special": False},
    ]
    tokenizer = read(tiny.files(json.dumps(document)))
    assert tokenizer.tokens[600:] == ("[PAD600]", "[PAD601]", "<tool>", "<|looks|>")
    assert tokenizer.token_types[599:] == (
        TokenType.NORMAL,
        TokenType.UNUSED,
        TokenType.UNUSED,
        TokenType.USER_DEFINED,
        TokenType.CONTROL,
    )
    assert tokenizer.is_hole(600) and not tokenizer.is_hole(602)


def test_a_word_level_tokenizer_travels_whole() -> None:
    document = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "b": 2}, "unk_token": "[UNK]"},
    }
    tokenizer = read({"tokenizer.json": dump(document)})
    warnings: list[str] = []
    again = from_gguf(to_gguf(tokenizer, None, warnings))
    assert warnings and Codec(again).encode("a b c") == [1, 2, 0]


def test_model_type_may_be_missing() -> None:
    for name, kind in (("gpt-2", "bpe"), ("unigram", "unigram"), ("wordpiece", "wordpiece")):
        document = json.loads(KINDS[name]["tokenizer.json"])
        del document["model"]["type"]
        assert read({"tokenizer.json": dump(document)}).kind == kind


def test_merges_in_the_older_form() -> None:
    document = json.loads(tiny.byte_level_json())
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    assert read({"tokenizer.json": dump(document)}).merges == read(KINDS["gpt-2"]).merges


def test_normalizer_flags_of_byte_level_tokenizers() -> None:
    document = json.loads(tiny.byte_level_json())
    document["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Lowercase"}, {"type": "StripAccents"}],
    }
    tokenizer = read({"tokenizer.json": dump(document)})
    assert (tokenizer.lowercase, tokenizer.strip_accents) == (True, True)


def test_scores_come_from_the_model_file_beside() -> None:
    document = json.loads(tiny.spm_json())
    vocab = document["model"]["vocab"]
    pieces = [(text, -float(index), 1) for text, index in vocab.items()]
    files = {**KINDS["spm"], "tokenizer.model": tiny.sentencepiece_model(pieces)}
    assert read(files).scores == tuple(-float(index) for index in range(len(vocab)))
    other = {**KINDS["spm"], "tokenizer.model": tiny.sentencepiece_model([("x", 1.0, 1)])}
    assert read(other).scores == read(KINDS["spm"]).scores
    broken = {**KINDS["spm"], "tokenizer.model": b"\xff"}
    assert read(broken).scores == read(KINDS["spm"]).scores


def test_metaspace_with_the_older_flag() -> None:
    document = json.loads(tiny.spm_json())
    document["normalizer"] = None
    document["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": tiny.SPACE,
        "add_prefix_space": False,
    }
    assert read({"tokenizer.json": dump(document)}).add_space_prefix is False


def test_unigram_with_charsmap_and_bytes() -> None:
    charsmap = "ALQCAACEAAAAAACAAQAAgAAAgPw="  # not a valid map
    document = json.loads(tiny.unigram_json())
    document["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    with pytest.raises(FormatError, match="precompiled_charsmap"):
        read({"tokenizer.json": dump(document)})
    document["normalizer"]["precompiled_charsmap"] = "***"
    with pytest.raises(FormatError, match="not base64"):
        read({"tokenizer.json": dump(document)})
    document["normalizer"]["precompiled_charsmap"] = base64.b64encode(b"").decode()
    document["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "WhitespaceSplit"}, document["pre_tokenizer"]],
    }
    document["model"]["byte_fallback"] = True
    document["model"]["vocab"][3] = ["<0x41>", -1.0]
    tokenizer = read({"tokenizer.json": dump(document)})
    assert tokenizer.remove_extra_whitespaces and tokenizer.token_types[3] == TokenType.BYTE


VOCAB = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "Ġab": 5}
MERGES = b"#version: 0.2\na b\n\n\xc4\xa0 ab\n"


def test_vocab_json_and_merges() -> None:
    files = {"vocab.json": dump(VOCAB), "merges.txt": MERGES}
    tokenizer = read(files)
    assert (tokenizer.kind, tokenizer.pre, tokenizer.token_types[0]) == ("bpe", "gpt-2", 3)
    assert Codec(tokenizer).encode("ab ab<|endoftext|>") == [3, 5, 0]
    written = to_hugging_face(tokenizer)
    assert written["merges.txt"] == MERGES and Codec(read(written)).encode("ab ab") == [3, 5]
    files["added_tokens.json"] = dump({"<|im_end|>": 7, "tool": 8})
    entry = {"content": "<|im_start|>", "special": True}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": {"6": entry}}
    files["tokenizer_config.json"] = dump({**config, "eos_token": "<|im_end|>"})
    qwen = read(files)
    assert (qwen.pre, qwen.special_ids) == ("qwen2", {"eos": 7})
    assert qwen.tokens[6:] == ("<|im_start|>", "<|im_end|>", "tool")
    assert qwen.token_types[6:] == (3, 3, 4)


def test_vocab_txt() -> None:
    words = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\n##s\nworld\n\n"
    tokenizer = read({"vocab.txt": words.encode()})
    assert (tokenizer.kind, tokenizer.pre, tokenizer.lowercase) == ("wordpiece", "bert-bge", True)
    assert Codec(tokenizer).encode("Hellos WORLD x") == [2, 5, 6, 7, 1, 3]
    keys = to_gguf(tokenizer)
    assert Codec(from_gguf(keys)).encode("Hellos WORLD x") == [2, 5, 6, 7, 1, 3]
    cased = {"vocab.txt": words.encode(), "tokenizer_config.json": dump({"do_lower_case": False})}
    assert (read(cased).lowercase, read(cased).pre) == (False, "default")
    assert Codec(read(cased)).encode("Hello") == [2, 1, 3]
    assert Codec(read(to_hugging_face(read(cased)))).encode("Hello world") == [2, 1, 7, 3]


def test_sentencepiece_bpe_alone() -> None:
    document = json.loads(tiny.spm_json())
    vocab = document["model"]["vocab"]
    ranks = {a + b: i for i, (a, b) in reversed(list(enumerate(document["model"]["merges"])))}
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    pieces = [
        (text, -float(ranks.get(text, 10_000)), kinds.get(text, 6 if 3 <= index < 259 else 1))
        for text, index in vocab.items()
    ]
    trainer = tiny.field(3, 2) + tiny.field(35, 1) + tiny.field(43, -1)
    model = tiny.sentencepiece_model(pieces, trainer, tiny.field(3, 1))
    tokenizer = read({"tokenizer.model": model})
    assert (tokenizer.kind, tokenizer.special_ids) == ("spm", {"unk": 0, "bos": 1, "eos": 2})
    reference = Codec(read(KINDS["spm"]))
    written = to_hugging_face(tokenizer)
    for text in SAMPLE:
        assert Codec(tokenizer).encode(text) == reference.encode(text)
        assert Codec(read(written)).encode(text) == reference.encode(text)
        assert Codec(from_gguf(to_gguf(tokenizer))).encode(text) == reference.encode(text)
    assert written["tokenizer.model"] == model


def test_sentencepiece_unigram_and_fairseq_order() -> None:
    vocab = json.loads(tiny.unigram_json())["model"]["vocab"]
    pieces = [
        (text, score, 2 if text == "<unk>" else 3 if i < 2 else 1)
        for i, (text, score) in enumerate(vocab)
    ]
    trainer = tiny.field(3, 1) + tiny.field(40, 2) + tiny.field(41, -1) + tiny.field(42, 1)
    trainer += tiny.field(43, 0)
    model = tiny.sentencepiece_model(pieces, trainer)
    tokenizer = read({"spiece.model": model})
    assert tokenizer.special_ids == {"unk": 2, "eos": 1, "pad": 0}
    reference = Codec(read(KINDS["unigram"]))
    for text in SAMPLE:
        assert Codec(tokenizer).encode(text) == reference.encode(text)
    fairseq = read({"sentencepiece.bpe.model": model})
    assert fairseq.tokens[:5] == ("<s>", "<pad>", "</s>", "<unk>", vocab[3][0])
    assert fairseq.tokens[-1] == "<mask>" and fairseq.special_ids["mask"] == len(vocab) + 1
    assert (fairseq.add_bos, fairseq.add_eos) == (True, True)


def test_unknown_model_kind() -> None:
    document = {"model": {"type": "Magic", "vocab": {}}}
    with pytest.raises(UnsupportedError, match="tokenizer model 'Magic' is not supported"):
        read({"tokenizer.json": dump(document)})
