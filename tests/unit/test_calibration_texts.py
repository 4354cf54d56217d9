"""Texts, JSONL, the embedded text and data sets of the hub as calibration data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest

from halfbyte.calibration_data import DataRequest, batches_hash, read_calibration
from halfbyte.calibration_documents import file_documents, spread
from halfbyte.calibration_texts import sequences_of
from halfbyte.converters.tokenizers.codec import Codec
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError
from halfbyte.ir.model import Model
from support.hub_server import HubServer, Repository, connected_hub
from support.model_folders import tiny_model

TEMPLATE = "{% for m in messages %}<|endoftext|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
WORDS = "The quick brown fox doesn't jump over 12345 lazy dogs. "


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model("llama", 3)


def with_bos(model: Model, template: str = "") -> Model:
    """Return the model with a tokenizer from GGUF keys that begins texts with a token."""
    assert model.tokenizer is not None
    changed = replace(model.tokenizer, source={}, add_bos=True, chat_template=template or None)
    return replace(model, tokenizer=changed, _graph=[])


def read(model: Model, *sources: Any, **options: Any) -> Any:
    settings = {"samples": 4, "length": 16, **options}
    return read_calibration(model, DataRequest(tuple(map(str, sources)), **settings))


def ids_of(found: Any) -> Any:
    return np.concatenate([run["input_ids"] for run in found.batches.runs])


def jsonl(path: Path, *entries: Any) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def test_samples_come_from_the_whole_text(model: Model, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(str(n) for n in range(2000)))
    assert model.tokenizer is not None
    whole = Codec(model.tokenizer).encode(text.read_text(), parse_special=False)
    rows = np.array(whole[: len(whole) // 16 * 16]).reshape(-1, 16)
    found = read(model, text)
    places = [int(np.flatnonzero((rows == row).all(1))[0]) for row in ids_of(found)]
    assert places == sorted(places) and len(places) == 4 and places[-1] > len(rows) // 4
    again, other = read(model, text), read(model, text, seed=1)
    assert found.facts == again.facts != other.facts
    assert found.facts["sha256"] == batches_hash(found.batches)
    assert found.facts["sources"] == ["text.txt"] and found.facts["length"] == 16
    assert str(tmp_path) not in json.dumps(found.facts)
    assert batches_hash(other.batches) != batches_hash(found.batches)


def test_texts_that_are_too_short_are_told(model: Model, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(WORDS * 4)
    found = read(model, text, samples=99)
    assert 1 < found.batches.samples < 99
    (notice,) = found.notices
    assert f"have {found.batches.samples} sequences of 16 tokens, 99 were asked for" in notice
    text.write_text("a b")
    with pytest.raises(HalfbyteError, match=r"text.txt: its text is shorter than one sequence"):
        read(model, text)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(HalfbyteError, match=r"empty.jsonl: its text is shorter than one sequence"):
        read(model, tmp_path / "empty.jsonl")
    limit = model.config["max_position_embeddings"]
    text.write_text(WORDS * 99)
    long = read(model, text, length=limit + 1)
    assert long.facts["length"] == limit and "no more places" in long.notices[0]


def test_sources_are_mixed(model: Model, tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.jsonl"
    first.write_text("7 " * 4000)
    jsonl(second, {"text": "x " * 4000})
    found = read(model, first, second, samples=6)
    assert model.tokenizer is not None
    sevens = set(Codec(model.tokenizer).encode("7 7 7"))
    kinds = [bool(set(row.tolist()) <= sevens) for row in ids_of(found)]
    assert kinds == [True] * 3 + [False] * 3
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (first, second):
        (folder / path.name).write_bytes(path.read_bytes())
    assert read(model, folder).facts["sources"] == ["folder"]


@pytest.mark.parametrize("template", [TEMPLATE, TEMPLATE.replace("<|endoftext|>", "")])
def test_conversations_have_one_beginning(model: Model, tmp_path: Path, template: str) -> None:
    chat = with_bos(model, template)
    assert chat.tokenizer is not None
    codec, bos = Codec(chat.tokenizer), chat.tokenizer.special_ids["bos"]
    messages = [{"role": "user", "content": WORDS}, {"role": "assistant", "content": WORDS * 5}]
    path = jsonl(tmp_path / "chat.jsonl", {"messages": messages}, {"text": "end " * 200})
    sequences = sequences_of(chat, [file_documents(path)], 999, 8, 0).tables[0]
    assert (sequences[:, 0] == bos).all()
    flat = sequences.reshape(-1)
    assert not ((flat[1:] == bos) & (flat[:-1] == bos)).any(), "two beginnings in a row"
    said = "".join(f"{'<|endoftext|>' if 'endof' in template else ''}{m['role']}: {m['content']}\n"
                   for m in messages)  # fmt: skip
    wanted = codec.encode(said, add_special=False, parse_special=True)
    inner = np.arange(len(flat))[: len(wanted)]
    inner = inner[inner % 8 > 0]
    assert flat[inner].tolist() == np.array(wanted)[inner].tolist(), "split, not dropped"


def test_encoders_see_whole_texts(tmp_path: Path) -> None:
    bert = tiny_model("bert", 3)
    text = tmp_path / "text.txt"
    text.write_text(WORDS * 30)
    rows = ids_of(read(bert, text))
    assert (rows[:, 0] == 2).all() and (rows[:, -1] == 3).all()
    assert not np.isin(rows[:, 1:-1], [2, 3]).any()


def test_the_embedded_text(model: Model) -> None:
    found = read(model, "preset:novels", samples=8)
    assert found.batches.samples == 8 and found.facts["sources"] == ["preset:novels"]
    with pytest.raises(UnsupportedError, match="supported: preset:novels"):
        read(model, "preset:none")


def test_the_embedded_text_is_not_judged_on() -> None:
    from importlib.resources import files

    shipped = files("halfbyte").joinpath("quant/calibration/texts/novels.txt").read_text("utf-8")
    judged = files("halfbyte").joinpath("verification/texts/shakespeare.txt").read_text("utf-8")
    judged += files("halfbyte").joinpath("demo/validation.txt").read_text("utf-8")
    assert 200_000 < len(shipped.encode()) < 300_000
    paragraphs = [p for p in shipped.split("\n\n") if len(p) > 80]
    assert len(paragraphs) > 200 and not [p for p in paragraphs if p in judged]


def test_long_texts_are_not_tokenized_whole(tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("".join(f"line {n} of a long text\n" for n in range(40_000)))
    documents = file_documents(text)
    kept = spread(documents, 60_000, 10_000, 5)
    assert 40_000 < sum(len(d.text) for d in kept) <= 70_000 and len(kept) > 3
    assert all(d.text.endswith("\n") and d.text.lstrip().startswith("line") for d in kept)
    assert kept == spread(documents, 60_000, 10_000, 5) != spread(documents, 60_000, 10_000, 6)
    assert kept == sorted(kept, key=lambda d: int(d.text.split()[1]))
    assert spread(documents, 10**9, 10_000, 5) == documents


BROKEN = {
    "json": (b'{"text": "a"}\n\n{"text": \n', "line 3: is no JSON"),
    "list": (b'{"text": "a"}\n["b"]\n', "line 2: has neither `text`"),
    "number": (b'{"text": 3}\n', "line 1: has neither"),
    "messages": (b'{"messages": [{"content": "x"}]}\n', "line 1: has neither"),
    "empty messages": (b'{"messages": []}\n', "line 1: has neither"),
    "deep": (b"[" * 100_000 + b"\n", "line 1: is no JSON"),
    "digits": (b'{"text": "a"}\n' + b"9" * 5000 + b"\n", "line 2: is no JSON (Exceeds the limit"),
    "bytes": (b'{"text": "a"}\n{"text": "\xff"}\n', "at byte 24: is not UTF-8"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_lines(name: str, model: Model, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(BROKEN[name][0])
    with pytest.raises(FormatError) as caught:
        read(model, path)
    assert BROKEN[name][1] in str(caught.value) and "data.jsonl" in str(caught.value)


def test_other_refusals(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(FormatError, match="latin.txt at byte 3: is not UTF-8"):
        read(model, tmp_path / "latin.txt")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(UnsupportedError, match=r"\.parquet as calibration data.*give a \.txt"):
        read(model, tmp_path / "rows.parquet")
    jsonl(tmp_path / "half.jsonl", {"text": "a"}, {"text": "x \ud800 y"})
    with pytest.raises(HalfbyteError, match=r"half.jsonl: line 2: .*not valid Unicode"):
        read(model, tmp_path / "half.jsonl")
    chat = jsonl(tmp_path / "chat.jsonl", {"messages": [{"role": "user", "content": "x"}]})
    with pytest.raises(HalfbyteError, match=r"chat.jsonl: line 1: .*no chat template"):
        read(model, chat)
    monkeypatch.setattr("halfbyte.calibration_documents.LARGEST_FILE", 2)
    with pytest.raises(HalfbyteError, match="at most 2 are read"):
        read(model, chat)
    with pytest.raises(HalfbyteError, match="has no tokenizer"):
        read(replace(model, tokenizer=None, _graph=[]), "preset:novels")
    with pytest.raises(HalfbyteError, match="no such file or folder, no preset:NAME"):
        read(model, tmp_path / "none.txt")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with connected_hub(tmp_path / "cache", monkeypatch) as server:
        yield server


def test_data_sets_of_the_hub(
    model: Model, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = json.dumps({"text": WORDS * 40}).encode()
    files = {"data/train.jsonl": lines, "data/test.jsonl": b"{", "README.md": b"card"}
    hub.repositories["org/data"] = Repository(files)
    hub.repositories["org/rows"] = Repository({"rows.parquet": b"PAR1", "README.md": b"card"})
    several = {"a.txt": b"a", "b.txt": (WORDS * 40).encode()}
    hub.repositories["org/several"] = Repository(several)
    found = read(model, "org/data")
    assert found.facts["sources"] == ["org/data"] and found.batches.samples == 4
    assert read(model, "org/several/b.txt@main").batches.samples == 4
    with pytest.raises(HalfbyteError, match=r"2 files of text \(a.txt, b.txt\).*org/several/a.txt"):
        read(model, "org/several")
    with pytest.raises(HalfbyteError, match=r"holds README.md, rows.parquet; a .txt or .jsonl"):
        read(model, "org/rows")
    with pytest.raises(HalfbyteError, match=r"org/rows/rows.parquet: holds rows.parquet"):
        read(model, "org/rows/rows.parquet")
    with pytest.raises(HalfbyteError, match="no such repository"):
        read(model, "org/none")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert read(model, "org/data/data/train.jsonl").batches.samples == 4
    with pytest.raises(HalfbyteError, match="org/other: "):
        read(model, "org/other")
