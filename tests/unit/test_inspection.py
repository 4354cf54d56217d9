"""Descriptions of models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from halfbyte.errors import GraphError
from halfbyte.ir.model import Model, Provenance
from halfbyte.ir.tensor import tensor_from_array
from halfbyte.verification.inspection import (
    describe,
    encoding_summary,
    shorten,
    weight_problems,
)
from support.model_folders import tiny_model


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        ("two\n  lines\t", "two lines"),
        (b"abc", "3 bytes"),
        ([1, 2], "[1, 2]"),
        (list(range(1000)), "[0, 1, 2, 3, ...] (1,000 entries)"),
        (np.arange(9), "[0, 1, 2, 3, ...] (9 entries)"),
        ("a\x1b[31mb\0", "a\ufffd[31mb\ufffd"),
        ("x" * 100, "x" * 100),
        ("x" * 101, "x" * 96 + " ..."),
    ],
)
def test_shorten(value, text):
    assert shorten(value) == text


def test_a_sound_model():
    found = describe(tiny_model("llama"), "here", read_weights=True)
    assert (found.source, found.format, found.problems) == ("here", "test", [])
    assert found.operators["halfbyte.CachedAttention"] == 2
    assert list(found.operators) == sorted(found.operators)
    roles = [entry["role"] for entry in found.tensors]
    assert "layers.0.attention_query.weight" in roles
    assert encoding_summary(found) == [("float32", len(found.tensors), found.bytes)]
    assert found.to_json()["config"]["model_type"] == "llama"


def test_an_empty_model():
    found = describe(Model({}), "here")
    assert (found.parameters, found.bits_per_weight, found.tokenizer) == (0, 0.0, "")
    assert found.problems == ["architecture 'unknown' cannot be run"]


def test_an_empty_tensor():
    empty = tensor_from_array("none", np.zeros((0, 4), np.float32))
    found = describe(Model({"none": empty}), "here", read_weights=True)
    assert found.tensors[0]["bits_per_weight"] == 0
    assert found.tensors[0]["role"] == ""


def test_a_graph_that_cannot_be_built():
    def build(model: Model):
        raise GraphError("n", "is wrong")

    found = describe(Model({}, build=build), "here")
    assert found.problems == ["graph node n: is wrong"]


def test_more_tokens_than_rows():
    model = tiny_model("llama")
    config = {**model.config, "vocab_size": 300}
    found = describe(replace(model, config=config, build=None), "here")
    assert "the tokenizer has 320 tokens, the embedding 300 rows" in found.problems


def test_metadata_of_every_shape():
    class Entry:
        value = [7] * 20

    metadata = {"gguf": {"a.b": Entry(), "c": "d"}, "note": "plain"}
    model = Model({}, metadata=metadata, provenance=Provenance("gguf", "x"))
    assert describe(model, "x").metadata == {
        "a.b": "[7, 7, 7, 7, ...] (20 entries)",
        "c": "d",
        "note": "plain",
    }


def test_values_that_are_not_finite():
    weights = {
        "whole": tensor_from_array("whole", np.arange(4)),
        "good": tensor_from_array("good", np.ones(4, np.float16)),
        "bad": tensor_from_array("bad", np.array([[1, np.nan], [-np.inf, 2]], np.float32)),
    }
    assert weight_problems(Model(weights)) == ["tensor 'bad' has 2 values that are not finite"]


def test_chat_template_is_named():
    model = tiny_model("llama")
    chat = replace(model.tokenizer, chat_template="{{ messages }}")
    assert describe(replace(model, tokenizer=chat), "x").tokenizer.endswith(", chat template")


def test_metadata_of_other_groups_stands_behind_the_group():
    model = replace(
        tiny_model("llama"), metadata={"origin": {"format": "hf"}, "files": {"a": b"1"}}
    )
    assert describe(model, "x").metadata == {"origin.format": "hf", "a": "1 bytes"}
