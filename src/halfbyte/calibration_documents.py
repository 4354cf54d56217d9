"""Documents to calibrate on: text files, JSONL files, the embedded text, data sets of the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError

PRESET = "preset:"
PRESETS = {"novels": "texts/novels.txt"}
LINES = (".jsonl", ".ndjson")
OTHER_FORMS = (".parquet", ".arrow", ".json", ".csv", ".gz", ".zst", ".zip", ".xz", ".bz2")
LARGEST_FILE = 256 << 20


@dataclass(frozen=True)
class Document:
    """A text, or the messages of a conversation. where: what errors name."""

    text: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    where: str = ""


def preset_documents(name: str) -> list[Document]:
    """Return the embedded text called `preset:NAME`.

    Raises:
        UnsupportedError: there is none of this name.
    """
    found = PRESETS.get(name.removeprefix(PRESET))
    if found is None:
        raise UnsupportedError(f"--calib {name}", "quantize", [PRESET + n for n in PRESETS])
    text = files("halfbyte.quant.calibration").joinpath(found).read_text(encoding="utf-8")
    return [Document(text, where=name)]


def file_documents(path: Path) -> list[Document]:
    """Return the documents of a file: of a text file one, of a JSONL file one for each line.

    Raises:
        FormatError: the file is not UTF-8, or a line is not as it must be.
    """
    if path.suffix.lower() in OTHER_FORMS:
        raise UnsupportedError(
            f"{path.suffix} as calibration data",
            str(path),
            advice="give a .txt, or a .jsonl with `text` or `messages` on each line",
        )
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise HalfbyteError(
            f"{path}: has {size} bytes, at most {LARGEST_FILE} are read; give a part of it"
        )
    raw = path.read_bytes()
    if path.suffix.lower() in LINES:
        return list(_lines(path, raw)) or [Document(where=str(path))]
    return [Document(_decoded(path, raw), where=str(path))]


def _decoded(path: Path, raw: bytes, offset: int = 0) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        rule = "is not UTF-8 text; convert it first"
        raise FormatError(path, rule, offset + error.start) from None


def _lines(path: Path, raw: bytes) -> Iterator[Document]:
    offset = 0
    for number, line in enumerate(raw.split(b"\n"), 1):
        text = _decoded(path, line, offset)
        offset += len(line) + 1
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", "") or str(error).split(";")[0]
            raise FormatError(path, f"line {number}: is no JSON ({reason})") from None
        yield _document(path, number, entry)


def _document(path: Path, number: int, entry: Any) -> Document:
    where = f"{path}: line {number}"
    if isinstance(entry, dict):
        if isinstance(entry.get("text"), str):
            return Document(entry["text"], where=where)
        messages = entry.get("messages")
        if isinstance(messages, list) and messages and all(map(_is_message, messages)):
            return Document(messages=tuple(messages), where=where)
    rule = "has neither `text` (a string) nor `messages` (a list of objects with `role` and "
    raise FormatError(path, f"line {number}: {rule}`content`); one is required")


def _is_message(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("role"), str) and "content" in entry


def spread(documents: Sequence[Document], limit: int, piece: int, seed: int) -> list[Document]:
    """Return documents of at most about `limit` characters of text, chosen over the whole.

    Where there is more, texts are cut into pieces of about `piece` characters at white space, and
    pieces are drawn; conversations stay whole. The order stays.
    """
    from halfbyte.quant.calibration.packing import chosen

    if sum(map(_length, documents)) <= limit:
        return list(documents)
    pieces = [part for document in documents for part in _pieces(document, piece)]
    mean = max(1, sum(map(_length, pieces)) // len(pieces))
    return [pieces[place] for place in chosen(len(pieces), max(1, limit // mean), seed)]


def _length(document: Document) -> int:
    return len(document.text) or sum(len(str(m["content"])) for m in document.messages)


def _pieces(document: Document, size: int) -> Iterator[Document]:
    if len(document.text) <= size:
        yield document
        return
    start, text = 0, document.text
    while start < len(text):
        end = start + size
        if end < len(text):
            line, word = text.rfind("\n", start + size // 2, end), text.rfind(" ", start, end)
            found = line if line >= 0 else word
            end = end if found < 0 else found + 1
        yield Document(text[start:end], where=document.where)
        start = end
