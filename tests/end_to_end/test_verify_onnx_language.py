"""Graphs of ONNX language models give the logits of the model they were written from."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

import halfbyte
from halfbyte.cli.group import run
from halfbyte.runtime.session import Session
from support.model_folders import tiny_model, write_model

TYPES = ("float32", "Q4_0", "Q4_K", "Q8_0", "int4-g128")
CASES = [
    *(("llama", name) for name in TYPES),
    *((name, kind) for name in ("qwen2", "qwen3", "gpt2") for kind in ("float32", "Q4_K")),
]
FLAVOURS = ("onnx", "onnx:static", "onnx:ort")
WIDTH = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
GPT2_WIDTH = {"n_embd": 256, "n_head": 8}
TEXT = "the quick brown fox jumps over the lazy dog " * 40
LENGTH = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a function that writes a model of an architecture in a type once."""
    folder = tmp_path_factory.mktemp("sources")

    @cache
    def write(architecture: str, type_name: str) -> Path:
        if type_name == "float32":
            width = GPT2_WIDTH if architecture == "gpt2" else WIDTH
            return write_model(tiny_model(architecture, **width), folder / architecture)
        path = folder / f"{architecture}-{type_name}.hb"
        halfbyte.quantize(write(architecture, "float32"), path, type=type_name)
        return path

    return write


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("architecture", "type_name"), CASES)
def test_a_written_graph_gives_the_same_logits(architecture, type_name, flavour, source, tmp_path):
    reference, path = source(architecture, type_name), tmp_path / "m.onnx"
    halfbyte.convert(reference, path, to=flavour)
    assert type_name in {str(t.encoding) for t in halfbyte.open(path).weights.values()}
    (tmp_path / "text.txt").write_text(TEXT)
    result = halfbyte.verify(reference, path, data=tmp_path / "text.txt", context=16, chunks=2)
    assert result.figures["max_kl"] < 1e-6 and result.figures["top1_agreement"] == 1
    arrays_run_on_the_stored_graph(reference, path, tmp_path)


def arrays_run_on_the_stored_graph(reference: Path, path: Path, folder: Path) -> None:
    """Run inputs by name, in two steps that hand the cache on, through the command line."""
    ids = np.random.default_rng(0).integers(1, 300, (2, LENGTH))
    expected = Session(halfbyte.open(reference)).run({"input_ids": ids})["logits"]
    limit = 1e-4 * np.abs(expected).max()
    inputs = halfbyte.open(path).over_stored_graph().graph.inputs
    held, state = 0, {}
    for count in (LENGTH - 1, 1):
        feeds = {"input_ids": ids[:, held : held + count]}
        for value in inputs:
            name = value.name
            if name in state:
                feeds[name] = state[name]
            elif len(value.shape) == 4:
                places = LENGTH + 1 if "_cache." in name else 0
                feeds[name] = np.zeros((2, value.shape[1], places, value.shape[3]), np.float32)
            elif name == "attention_mask":
                feeds[name] = np.ones((2, held + count), np.int64)
            elif name == "position_ids":
                feeds[name] = np.tile(np.arange(held, held + count), (2, 1))
            elif name != "input_ids":
                feeds[name] = np.full(2, held + count * (name == "nonpad_kv_seqlen"))
        np.savez(folder / "x.npz", **feeds)
        options = ["--input", str(folder / "x.npz"), "--output", str(folder / "y.npz")]
        assert run(["run", str(path), *options]) == 0
        with np.load(folder / "y.npz") as found:
            wanted = expected[:, held : held + count]
            np.testing.assert_allclose(found["logits"], wanted, rtol=0, atol=limit)
            state = {
                name.removeprefix("updated_").replace("present", "past_key_values"): found[name]
                for name in found.files
                if name != "logits"
            }
        held += count
