"""What a verification runs."""

from __future__ import annotations

import zipfile
from dataclasses import replace

import numpy as np
import pytest

from halfbyte.array_files import read_arrays
from halfbyte.errors import FormatError, HalfbyteError
from halfbyte.evaluation_data import (
    ENCODER_LINES,
    ENCODER_TOKENS,
    evaluation_data,
    is_language_model,
    read_text,
)
from halfbyte.ir.graph import Graph
from halfbyte.ir.model import Model
from halfbyte.runtime.session import Session
from halfbyte.verification import outputs
from support.model_folders import tiny_model


def adder(shape: tuple[object, ...] = ("batch", 3), name: str = "sum") -> Model:
    """Return a model that adds two inputs: no tokens anywhere."""
    graph = Graph("adder")
    left = graph.add_input("left", "float32", shape)
    right = graph.add_input("right", "float32", shape)
    total = graph.add("Add", [left, right], name=name, dtype="float32", since_version=14)
    total.shape = shape
    graph.outputs.append(total)
    return Model({}, build=lambda model: graph)


def test_language_models():
    assert is_language_model(tiny_model("llama"))
    assert not is_language_model(tiny_model("bert"))
    assert not is_language_model(adder())


def test_the_shipped_text():
    text = read_text(None)
    assert len(text) > 100_000
    assert "Shakespeare" in text or "First Citizen" in text


def test_a_text_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("näh\n".encode())
    assert read_text(path) == "näh\n"
    path.write_bytes(b"ab\xff")
    with pytest.raises(FormatError, match="at byte 2: is not UTF-8"):
        read_text(path)
    with pytest.raises(HalfbyteError, match="no such file"):
        read_text(tmp_path)


def test_arrays(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(3), b=np.ones((2, 2), np.float32))
    found = read_arrays(path)
    assert found["a"].tolist() == [0, 1, 2]
    assert found["b"].dtype == np.float32
    np.savez(path, a=np.array([None, object()]))
    with pytest.raises(FormatError, match=r"is not an \.npz of plain arrays"):
        read_arrays(path)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\3\4", b"PK\5\6" + bytes(18)])
def test_arrays_that_are_none(content, tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    if content.startswith(b"PK\5"):
        assert read_arrays(path) == {}
        return
    with pytest.raises(FormatError, match=r"is not an \.npz of plain arrays"):
        read_arrays(path)


def test_damaged_archives(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.arange(1000))
    raw = bytearray(path.read_bytes())
    for place in range(30, len(raw) // 2, 7):
        damaged = raw.copy()
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            read_arrays(path)
        except FormatError:
            continue
    np.save(tmp_path / "one.npy", np.arange(3))
    path.write_bytes((tmp_path / "one.npy").read_bytes())
    with pytest.raises(FormatError, match="one array without a name"):
        read_arrays(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\1\0\x10\0{'descr': '<f4',")
    with pytest.raises(FormatError, match="is not an"):
        read_arrays(path)


def test_tokens_of_a_language_model(tmp_path):
    model = tiny_model("llama")
    path = tmp_path / "x.txt"
    path.write_text("lazy dogs")
    found = evaluation_data(model, model, path)
    assert list(found.tokens) and found.first_token is None and not found.batches
    assert 0 not in found.tokens


def test_the_first_token_where_the_vocabulary_adds_one(tmp_path):
    model = tiny_model("llama")
    begins = replace(model, tokenizer=replace(model.tokenizer, add_bos=True, source={}), _graph=[])
    path = tmp_path / "x.txt"
    path.write_text("lazy dogs <|endoftext|>")
    found = evaluation_data(begins, begins, path)
    assert found.first_token == begins.tokenizer.special_ids["bos"] == found.tokens[0] == 0
    assert 0 not in found.tokens[1:]
    with pytest.raises(HalfbyteError, match="its tokenizer gives other tokens"):
        evaluation_data(begins, model, path)


def test_lines_for_an_encoder():
    model = tiny_model("bert")
    found = evaluation_data(model, model, None)
    assert len(found.batches) == ENCODER_LINES and not found.tokens
    for batch in found.batches:
        (ids,) = batch.values()
        assert ids.dtype == np.int64 and ids.shape[0] == 1
        assert 3 <= ids.shape[1] <= ENCODER_TOKENS


def test_random_inputs_where_there_are_no_tokens(tmp_path):
    model = adder()
    found = evaluation_data(model, model, None).batches
    again = evaluation_data(model, model, None).batches
    for first, second in zip(found, again, strict=True):
        assert first.keys() == {"left", "right"}
        assert first["left"].shape == (outputs.SYMBOL_SIZE, 3)
        assert np.array_equal(first["left"], second["left"])
    path = tmp_path / "x.txt"
    path.write_text("text")
    with pytest.raises(HalfbyteError, match=r"takes arrays, not text; give an \.npz"):
        evaluation_data(model, model, path)


def test_random_whole_numbers():
    graph = Graph("ids")
    graph.outputs.append(graph.add_input("ids", "int64", (2, "n")))
    for batch in outputs.random_inputs(graph):
        assert batch["ids"].dtype == np.int64
        assert batch["ids"].shape == (2, outputs.SYMBOL_SIZE)
        assert set(np.unique(batch["ids"])) <= {0, 1}


def test_outputs_that_cannot_be_compared():
    one, other = Session(adder().graph), Session(adder(name="total").graph)
    inputs = [{"left": np.ones((2, 3), np.float32), "right": np.ones((2, 3), np.float32)}]
    (entry,) = outputs.compare(one, one, inputs * 3)
    assert entry == {"name": "sum", "cosine": pytest.approx(1), "max_abs_error": 0.0} | {
        "max_rel_error": 0.0
    }
    with pytest.raises(HalfbyteError, match="share no output: sum against total"):
        outputs.compare(one, other, inputs)

    class Wider:
        def run(self, _inputs):
            return {"sum": np.ones((2, 4), np.float32)}

    with pytest.raises(HalfbyteError, match=r"shapes \(2, 3\) and \(2, 4\) differ"):
        outputs.compare(one, Wider(), inputs)
