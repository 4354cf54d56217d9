"""Prompts, stop ids, and text out of a session."""

from __future__ import annotations

from dataclasses import replace

import pytest

from halfbyte.converters.tokenizers.codec import Codec
from halfbyte.errors import HalfbyteError
from halfbyte.runtime.sampling import Sampling
from halfbyte.runtime.session import Session
from halfbyte.text_generation import TextRequest, generate_text, prompt_tokens, stop_ids
from support.model_folders import tiny_model

TEMPLATE = "{% for m in messages %}<|endoftext|>{{ m.role }}:{{ m.content }};{% endfor %}"
GREEDY = {"sampling": Sampling(temperature=0.0), "max_tokens": 10}


def chat_model(template: str | None = TEMPLATE, **changes):
    model = tiny_model("llama")
    tokenizer = replace(model.tokenizer, chat_template=template, **changes)
    return replace(model, tokenizer=tokenizer, _graph=[])


def tokens_of(model, *arguments, **options) -> list[int]:
    return prompt_tokens(model, Codec(model.tokenizer), TextRequest(*arguments, **options))


def test_a_prompt_inside_the_template():
    model = chat_model()
    codec = Codec(model.tokenizer)
    found = tokens_of(model, "hi", system="short")
    assert codec.decode(found, skip_special=False) == (
        "<|endoftext|>system:short;<|endoftext|>user:hi;"
    )
    assert found[0] == 0
    assert codec.decode(tokens_of(model, "hi"), skip_special=False) == "<|endoftext|>user:hi;"


def test_the_template_adds_no_second_beginning():
    model = chat_model(add_bos=True, source={})
    assert tokens_of(model, "hi").count(0) == 1
    assert tokens_of(model, "hi", raw=True).count(0) == 1


@pytest.mark.parametrize("raw", [False, True])
def test_special_tokens_in_a_prompt_are_tokens(raw):
    assert tokens_of(chat_model(None), "<|endoftext|>", raw=raw) == [0]


def test_an_empty_prompt():
    with pytest.raises(HalfbyteError, match="the prompt has no tokens"):
        tokens_of(chat_model(None), "")


@pytest.mark.parametrize("listed", [None, 7, [7, 9]])
def test_stop_ids(listed):
    model = chat_model(stop_ids=(5,))
    model = replace(model, generation_config={"eos_token_id": listed})
    extra = set() if listed is None else {listed} if listed == 7 else set(listed)
    assert stop_ids(model) == {0, 5} | extra
    assert stop_ids(replace(model, tokenizer=None)) == extra


def test_no_stop_without_an_end():
    model = chat_model(special_ids={}, stop_ids=())
    assert stop_ids(replace(model, generation_config={})) == set()


def test_pieces_make_the_text():
    model = tiny_model("llama")
    pieces: list[str] = []
    request = TextRequest("The quick", **GREEDY)
    found = generate_text(model, Session(model), request, pieces.append)
    assert "".join(pieces) == found.text
    assert found.to_json()["token_ids"] == found.token_ids
    assert found.stopped_by in ("length", "end")
    silent = generate_text(model, Session(model), request)
    assert (silent.text, silent.token_ids) == (found.text, found.token_ids)


def test_an_end_id_ends_the_text():
    model = tiny_model("llama")
    request = TextRequest("The quick", **GREEDY)
    first = generate_text(model, Session(model), request).token_ids
    ended = replace(model, generation_config={"eos_token_id": first[2]}, _graph=[])
    found = generate_text(ended, Session(ended), request)
    assert found.token_ids == first[: first.index(first[2])]
    assert found.stopped_by == "end"


def test_models_without_text():
    request = TextRequest("x")
    bert = tiny_model("bert")
    with pytest.raises(HalfbyteError, match="is no language model"):
        generate_text(bert, Session(bert), request)
    mute = replace(tiny_model("llama"), tokenizer=None, _graph=[])
    with pytest.raises(HalfbyteError, match="has no tokenizer"):
        generate_text(mute, Session(mute), request)


def test_a_negative_seed():
    model = tiny_model("llama")
    with pytest.raises(HalfbyteError, match="seed is -1, 0 or more required"):
        generate_text(model, Session(model), TextRequest("x", sampling=Sampling(seed=-1)))
