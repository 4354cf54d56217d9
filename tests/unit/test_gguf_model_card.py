"""The `general.*` keys: sampling, names, model cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.converters.gguf.ggml_types import ValueType
from halfbyte.converters.gguf.metadata_value import MetadataValue, plain, typed
from halfbyte.converters.gguf.model_card import (
    authorship_keys,
    front_matter,
    general_keys,
    model_id,
    read_sampling,
    sampling_keys,
    size_label,
)
from halfbyte.converters.gguf.model_name import NameParts, name_parts, title
from halfbyte.ir.model import Model, Provenance


def named(source: str, revision: str = "", **fields: Any) -> Model:
    return Model({}, provenance=Provenance("hf", source, revision), **fields)


def test_general_keys() -> None:
    generation = {"temperature": 0.5, "top_k": 40, "repetition_penalty": 1.25, "top_p": None}
    model = named("/models/n", generation_config=generation)
    found = {k: typed(v) for k, v in general_keys(model, "llama", "model", 1_100_000_000).items()}
    assert found == {
        "general.architecture": typed("llama"),
        "general.type": typed("model"),
        "general.sampling.top_k": MetadataValue(40, ValueType.INT32),
        "general.sampling.temp": typed(0.5),
        "general.sampling.penalty_repeat": typed(1.25),
        "general.name": typed("N"),
        "general.size_label": typed("1.1B"),
    }
    assert "general.size_label" not in general_keys(model, "llama", "model", 0)


@pytest.mark.parametrize(
    ("count", "label"),
    [
        (134_515_008, "135M"), (1.1e9, "1.1B"), (9.6e9, "10B"), (3e12, "3.0T"), (15_000, "15K"),
        (300, "0.30K"), (1e6, "1000K"),
    ],
)  # fmt: skip
def test_size_labels(count: float, label: str) -> None:
    assert size_label(int(count)) == label


def test_sampling_comes_back() -> None:
    generation = {
        "sequence": "top_k;temp", "top_k": 40, "top_p": 0.9, "min_p": 0.05, "temperature": 0.6,
        "xtc_probability": 0.1, "penalty_last_n": 64, "repetition_penalty": 1.1, "mirostat": 2,
        "mirostat_tau": 5.0, "mirostat_eta": 0.1,
    }  # fmt: skip
    keys = sampling_keys(generation)
    assert isinstance(keys["general.sampling.top_k"], np.int32)
    assert next(iter(keys)) == "general.sampling.sequence"
    back = plain({key: typed(value) for key, value in keys.items()})
    assert read_sampling(back) == generation


def test_sampling_that_cannot_be_written_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert sampling_keys({"top_k": 2**40, "top_p": True, "temperature": "hot"}) == {}
    assert "top_k" in caplog.text
    nan = {"general.sampling.top_k": float("nan"), "general.sampling.top_p": "x"}
    assert read_sampling(nan) == {}


def test_names() -> None:
    parts = name_parts("meta-llama/Llama-3.2-1B-Instruct", 1_200_000_000)
    assert parts == NameParts(
        "Llama-3.2-1B-Instruct", "meta-llama", "Llama-3.2", "Instruct", "", "1B"
    )
    assert name_parts("Mistral-7B-Instruct-v0.3").version == "v0.3"
    assert name_parts("bloom-7b1").size_label == "7.1B"
    assert name_parts("phi-3-mini-128k-instruct", 3_800_000_000).finetune == "128k-instruct"
    assert name_parts("plain") == NameParts("plain")
    assert name_parts("A name of words") == NameParts("A name of words")
    assert name_parts("./model").organization == ""
    assert name_parts("tiny-7B-lora", -7_000_000_000).finetune == ""
    assert title("SmolLM2-135M-instruct-v0.2") == "SmolLM2 135M Instruct v0.2"


def test_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_id(named("org/name", "abc")) == "org/name"
    assert model_id(named("/a/b/name.q4-1")) == "name.q4-1"
    assert model_id(named("/a/folder/model.safetensors")) == "folder"
    assert model_id(named("/a/file.gguf")) == "file"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert model_id(named(".")) == "here"
    origin = {"origin": {"source": "org/first", "revision": "r"}}
    assert model_id(named("x.hb", metadata=origin)) == "org/first"


CARD = """---
license: [mit, apache-2.0]
license_name: own
model_creator: Somebody
version: 1.5
language:
- en
- no
tags: chat
pipeline_tag: text-generation
base_model:
- org/Base-7B-v2
- https://huggingface.co/other/Thing
- https://example.com/x
- {name: By hand, doi: 1/2}
datasets: org/some-data
---
text
"""


def test_model_card() -> None:
    found = authorship_keys(front_matter({"README.md": CARD.encode()}), ["", "m"], 10)
    assert found == {
        "general.name": "M",
        "general.author": "Somebody",
        "general.version": "1.5",
        "general.size_label": "0.01K",
        "general.license": "mit,apache-2.0",
        "general.license.name": "own",
        "general.base_model.count": 4,
        "general.base_model.0.name": "Base 7B v2",
        "general.base_model.0.organization": "Org",
        "general.base_model.0.version": "v2",
        "general.base_model.0.repo_url": "https://huggingface.co/org/Base-7B-v2",
        "general.base_model.1.name": "Thing",
        "general.base_model.1.organization": "Other",
        "general.base_model.1.repo_url": "https://huggingface.co/other/Thing",
        "general.base_model.2.repo_url": "https://example.com/x",
        "general.base_model.3.name": "By hand",
        "general.base_model.3.doi": "1/2",
        "general.dataset.count": 1,
        "general.dataset.0.name": "Some Data",
        "general.dataset.0.organization": "Org",
        "general.dataset.0.repo_url": "https://huggingface.co/org/some-data",
        "general.tags": ["chat", "text-generation"],
        "general.languages": ["en", "no"],
    }


@pytest.mark.parametrize(
    "text",
    [
        b"", b"no head", b"---", b"---\n- a list\n---\n", b"---\n: : :\n\x00---",
        b"---\na: [\n---",
        b"---\n" + b"[" * 100_000, b"---\na: &a [*a]\nb: *a\n---\n", b"\xff\xfe---\n",
        b"---\na: !!python/object/apply:os.system [id]\n---\n",
        b"---\nn: " + b"9" * 9000 + b"\n---",
        b"---\nd: 2024-13-45\n---\n",
    ],
)  # fmt: skip
def test_broken_cards_say_nothing(text: bytes) -> None:
    card = front_matter({"README.md": text})
    assert authorship_keys(card, ["m"], 0) == {"general.name": "M"}


def test_strange_values_of_a_card_are_left_out() -> None:
    card = {
        "name": True, "license": {"a": 1}, "tags": {"a": 1}, "language": False, "base_model": None,
        "datasets": [["x"], 5, {"name": [1, None]}], "author": None, "model_author": "A",
    }  # fmt: skip
    assert authorship_keys(card, ["m"], 0) == {
        "general.name": "M",
        "general.author": "A",
        "general.base_model.count": 0,
        "general.dataset.count": 1,
        "general.dataset.0.name": "1",
    }


def test_name_of_the_config() -> None:
    files = {"config.json": b'{"_name_or_path": "org/Real-7B-Chat"}'}
    found = general_keys(named("/x/folder", metadata={"files": files}), "llama", "model", 0)
    assert found["general.name"] == "Real 7B Chat"
    assert found["general.organization"] == "Org"
    assert found["general.finetune"] == "Chat"
    for broken in (b"[]", b"{", b'{"_name_or_path": 5}', b'{"_name_or_path": "/a/b/c"}'):
        model = named("/x/folder", metadata={"files": {"config.json": broken}})
        assert general_keys(model, "llama", "model", 0)["general.name"] == "Folder"
